"""Departures under any sequence of events: no pod is given up for dead that may be alive."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.compile.departures import Departures
from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice, SliceEndpoint

SERVICES = [ServiceKey("shop", name) for name in ("orders", "carts")]
ADDRESSES = ["10.1.0.1", "10.1.0.2"]
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("new pod"), st.sampled_from(ADDRESSES), st.sets(st.sampled_from(SERVICES))),
        st.tuples(st.just("labels"), st.sampled_from(ADDRESSES), st.sets(st.sampled_from(SERVICES))),
        st.tuples(st.just("delete"), st.sampled_from(ADDRESSES), st.none()),
        st.tuples(st.just("end"), st.sampled_from(ADDRESSES), st.none()),
        st.tuples(st.just("look"), st.none(), st.sampled_from(SERVICES)),
    ),
    max_size=40,
)


@given(EVENTS)
def test_no_pod_that_may_be_alive(events: list[Any]) -> None:
    """Whatever is told: an address is given up only if a pod that was shown there has ended or is about to."""
    departures = Departures()
    world: dict[str, tuple[int, bool, set[ServiceKey]]] = {}
    shown: dict[ServiceKey, tuple[EndpointSlice, ...]] = dict.fromkeys(SERVICES, ())
    condemned: set[str] = set()
    for number, (what, address, more) in enumerate(events):
        held = world.get(address)
        if what == "new pod" and held is None:
            world[address] = (number, False, more)
        elif what == "labels" and held is not None:
            world[address] = (*held[:2], more)
        elif what == "delete" and held is not None:
            world[address] = (held[0], True, held[2])
            condemned.add(address)
        elif what == "end" and held is not None:
            del world[address]
            condemned.add(address)
        elif what == "look":
            found = tuple(
                SliceEndpoint(address=at, uid=f"pod-{uid}", terminating=ending)
                for at, (uid, ending, services) in world.items()
                if more in services
            )
            new = (EndpointSlice(namespace="shop", name=more.name, service=more, family=4, endpoints=found),)
            gone = departures.change(more, shown[more], new)
            shown[more] = new
            assert gone <= condemned
