"""The slices of a whole cluster under arbitrary events: held endpoints come from somewhere and end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.discovery.kubernetes.cluster_resources import SliceObject
from meshlib.discovery.kubernetes.cluster_slices import ClusterSlices
from meshlib.discovery.kubernetes.holding import HOLD
from meshlib.discovery.kubernetes.reflector import Changed
from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort

SERVICES = [ServiceKey("n", "a"), ServiceKey("n", "b")]
NAMES = ["s", "t", "u"]
ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]

Content = tuple[ServiceKey, set[str], int]
contents = st.tuples(
    st.sampled_from(SERVICES), st.sets(st.sampled_from(ADDRESSES)), st.sampled_from([8080, 8080, 9090])
)
events = st.tuples(
    st.dictionaries(st.sampled_from(NAMES), st.none() | contents, min_size=1, max_size=2),
    st.sampled_from([0.0, 0.01, HOLD / 2, HOLD * 2]),
)


def made(name: str, content: Content) -> EndpointSlice:
    service, addresses, port = content
    return EndpointSlice(
        namespace="n",
        name=name,
        service=service,
        family=4,
        ports=(SlicePort("http", port),),
        endpoints=tuple(SliceEndpoint(address=each) for each in sorted(addresses)),
    )


def places(slices: tuple[EndpointSlice, ...]) -> set[tuple[str, int | None]]:
    return {(each.address, port.port) for one in slices for each in one.endpoints for port in one.ports}


@pytest.mark.acceptance(17)
@given(st.lists(events, max_size=12))
def test_removed_endpoints_are_held_and_let_go(
    happens: list[tuple[dict[str, Content | None], float]],
) -> None:
    """What the server says is always told, beyond it only what it said less than the holding time ago."""
    cluster = ClusterSlices()
    server: dict[str, EndpointSlice] = {}
    said: dict[ServiceKey, dict[tuple[str, int | None], float]] = {key: {} for key in SERVICES}
    now = 0.0
    told: dict[ServiceKey, tuple[EndpointSlice, ...]] = dict.fromkeys(SERVICES, ())
    for changes, passes in happens:
        upserts = {
            ("n", name): SliceObject((made(name, new),)) for name, new in changes.items() if new is not None
        }
        removals = tuple(("n", name) for name, new in changes.items() if new is None and name in server)
        for service in SERVICES:
            for place in places(tuple(each for each in server.values() if each.service == service)):
                said[service][place] = now
        changed = cluster.apply(Changed(upserts, removals), now)
        for (_, name), found in upserts.items():
            server[name] = found.slices[0]
        for _, name in removals:
            del server[name]
        for step in (0.0, passes):
            now += step
            changed |= cluster.expire(now)
            for service in SERVICES:
                current = places(tuple(each for each in server.values() if each.service == service))
                shown = places(cluster.slices_of(service))
                assert current <= shown
                assert all(now - said[service].get(place, -math.inf) < HOLD for place in shown - current)
                if cluster.slices_of(service) != told[service]:
                    assert service in changed
                    told[service] = cluster.slices_of(service)
            changed = set()
    now += HOLD
    cluster.expire(now)
    assert cluster.wake_at == math.inf
    for service in SERVICES:
        mine = sorted(
            (each for each in server.values() if each.service == service), key=lambda each: each.name
        )
        assert list(cluster.slices_of(service)) == mine


def test_nothing_is_held_for_a_service_that_is_gone() -> None:
    """With its Service an endpoint goes at once."""
    cluster = ClusterSlices()
    key = SERVICES[0]
    cluster.apply(Changed({("n", "s"): SliceObject((made("s", (key, {"10.0.0.1"}, 80)),))}, (), True), 0.0)
    cluster.apply(Changed({}, (("n", "s"),)), 1.0)
    assert places(cluster.slices_of(key)) == {("10.0.0.1", 80)}
    cluster.forget(key)
    assert cluster.slices_of(key) == ()
    assert cluster.wake_at == math.inf
