"""SliceStore against a plain dict through any history."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice, SliceEndpoint
from meshlib.model.store import SliceStore

KEYS = [ServiceKey("shop", name) for name in ("orders", "users", "")]
slices = st.builds(
    EndpointSlice,
    namespace=st.just("shop"),
    name=st.sampled_from("abc"),
    service=st.sampled_from(KEYS),
    family=st.just(4),
    endpoints=st.sampled_from([(), (SliceEndpoint(address="10.0.0.1"),)]),
    uid=st.sampled_from(["u1", "u2"]),
)


class Histories(RuleBasedStateMachine):
    """After any history the store holds what a dict holds, and every change names exactly the Services that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.store = SliceStore()
        self.model: dict[str, EndpointSlice] = {}

    def views(self) -> dict[ServiceKey, tuple[EndpointSlice, ...]]:
        return {
            key: tuple(self.model[name] for name in sorted(self.model) if self.model[name].service == key)
            for key in KEYS
        }

    def compare(
        self, before: dict[ServiceKey, tuple[EndpointSlice, ...]], changed: frozenset[ServiceKey]
    ) -> None:
        after = self.views()
        assert changed == {key for key in KEYS if key.name and before[key] != after[key]}

    @rule(slice_=slices)
    def apply(self, slice_: EndpointSlice) -> None:
        before = self.views()
        self.model[slice_.name] = slice_
        self.compare(before, self.store.apply(slice_))

    @rule(name=st.sampled_from("abcd"))
    def delete(self, name: str) -> None:
        before = self.views()
        self.model.pop(name, None)
        self.compare(before, self.store.delete("shop", name))

    @rule(listed=st.lists(slices, max_size=3, unique_by=lambda slice_: slice_.name))
    def replace(self, listed: list[EndpointSlice]) -> None:
        before = self.views()
        self.model = {slice_.name: slice_ for slice_ in listed}
        self.compare(before, self.store.replace(listed))

    @invariant()
    def holds_the_same(self) -> None:
        assert len(self.store) == len(self.model)
        for key, expected in self.views().items():
            assert self.store.slices_of(key) == expected
        assert self.store.services() == {s.service for s in self.model.values() if s.service.name}


Histories.TestCase.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
TestHistories = Histories.TestCase
