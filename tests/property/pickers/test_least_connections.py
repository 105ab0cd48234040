"""least_connections against a model that looks at everybody: picks, ends, exclusions, changes of the set."""

from __future__ import annotations

import threading
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshlib.model.endpoint import Endpoint
from meshlib.pickers.base import PickInfo
from meshlib.pickers.least_connections import BUILDER, LeastConnections
from meshlib.pickers.subchannel import Subchannel
from meshlib.testing.contracts import build


class LeastConnectionsMachine(RuleBasedStateMachine):
    """Every pick must be one of the least loaded; the index must mirror the counts after every step."""

    @initialize(weights=st.lists(st.integers(0, 4), min_size=1, max_size=8), seed=st.integers(0, 2**32))
    def start(self, weights: list[int], seed: int) -> None:
        self.everybody = [
            Subchannel(Endpoint(address=f"10.0.0.{i}", port=80, weight=weight), threading.Lock())
            for i, weight in enumerate(weights)
        ]
        self.members = list(self.everybody)
        self.random = Random(seed)
        self.picker = self.made(None)
        self.out: list[Subchannel] = []

    def made(self, previous: LeastConnections | None) -> LeastConnections:
        picker = build(BUILDER, {}, self.members, seed=self.random.randrange(2**32), previous=previous)
        assert isinstance(picker, LeastConnections)
        return picker

    @rule(excluded=st.sets(st.integers(0, 7), max_size=3))
    def pick(self, excluded: set[int]) -> None:
        exclude = frozenset(self.everybody[i] for i in excluded if i < len(self.everybody))
        usable = [m for m in self.members if m.endpoint.weight and m not in exclude]
        least = min((m.inflight / m.endpoint.weight for m in usable), default=None)
        chosen = self.picker.pick(PickInfo(exclude=exclude))
        if chosen is None:
            assert not usable
            return
        assert chosen in usable
        assert (chosen.inflight - 1) / chosen.endpoint.weight == least
        self.out.append(chosen)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 10**6))
    def end(self, which: int) -> None:
        self.out.pop(which % len(self.out)).end()

    @rule(keep=st.sets(st.integers(0, 7)), weight=st.integers(0, 5))
    def change_the_set(self, keep: set[int], weight: int) -> None:
        self.members = [m for i, m in enumerate(self.everybody) if i in keep]
        if self.members:
            first = self.members[0].endpoint
            self.members[0].endpoint = Endpoint(address=first.address, port=first.port, weight=weight)
        self.picker = self.made(self.picker)

    @invariant()
    def index_mirrors_the_counts(self) -> None:
        index = self.picker._index
        usable = {m: m.inflight / m.endpoint.weight for m in self.members if m.endpoint.weight}
        index.catch_up()
        assert index._keys == usable
        assert sorted(index._heap) == sorted(index._groups)
        for member, key in usable.items():
            assert index._groups[key][index._positions[member]] is member
        assert sum(map(len, index._groups.values())) == len(usable)
        listening = {m for m in self.everybody if m.on_load is not None}
        assert listening == set(usable)


LeastConnectionsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_least_connections = LeastConnectionsMachine.TestCase
