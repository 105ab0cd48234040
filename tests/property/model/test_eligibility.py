"""Eligibility against a slow, literal reading of the rules, and the incremental form against the pure function."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.model.eligibility import SliceUnion, eligible, explain
from meshlib.model.endpoint import EndpointSet, Locality, Verdict
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType, TrafficPolicy
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from meshlib.model.store import SliceStore
from meshlib.model.vantage import Path, VantagePoint

KEY = ServiceKey("shop", "orders")
nodes = st.sampled_from(["", "n1", "n2"])
zones = st.sampled_from(["", "z1", "z2"])
conditions = st.sampled_from(
    [(True, True, False)] * 4
    + [(False, False, False), (False, True, True), (False, False, True), (True, False, True)]
)


@st.composite
def endpoints(draw: st.DrawFn, family: int, hinted: bool) -> SliceEndpoint:
    last = draw(st.integers(1, 4))
    ready, serving, terminating = draw(conditions)
    return SliceEndpoint(
        address=f"10.0.0.{last}" if family == 4 else f"fd00::{last}",
        uid=draw(st.sampled_from(["", "u1", "u2"])),
        node=draw(nodes),
        zone=draw(zones),
        ready=ready,
        serving=serving,
        terminating=terminating,
        hint_zones=draw(st.sampled_from([("z1",), ("z2",), ("z1", "z2"), ()])) if hinted else (),
        hint_nodes=draw(st.sampled_from([("n1",), ("n2",), ()])) if hinted else (),
    )


@st.composite
def slice_lists(draw: st.DrawFn) -> list[EndpointSlice]:
    hinted = draw(st.booleans())
    found = []
    for number in range(draw(st.integers(0, 4))):
        family = draw(st.sampled_from([4, 4, 6]))
        found.append(
            EndpointSlice(
                namespace="shop",
                name=f"s{number}",
                service=KEY,
                family=family,
                ports=draw(st.sampled_from([(SlicePort("http", 80),)] * 3 + [(SlicePort("http", 81),), ()])),
                endpoints=tuple(draw(st.lists(endpoints(family, hinted), max_size=4))),
                generation=draw(st.integers(0, 2)),
            )
        )
    return found


services = st.builds(
    Service,
    key=st.just(KEY),
    type=st.sampled_from([ServiceType.CLUSTER_IP, ServiceType.NODE_PORT, *ServiceType]),
    ports=st.just((ServicePort("http", 80),)),
    ip_families=st.sampled_from([(4,), (6,), (4, 6), (6, 4), ()]),
    internal_traffic_policy=st.sampled_from(TrafficPolicy),
    external_traffic_policy=st.sampled_from(TrafficPolicy),
    external_ips=st.sampled_from([(), ("198.51.100.4",)]),
)
vantages = st.builds(VantagePoint, nodes, zones, st.sampled_from([(4, 6), (6, 4), (4,)]))
PORT = ServicePort("http", 80)


def literal(
    service: Service, slices: list[EndpointSlice], vantage: VantagePoint, path: Path
) -> tuple[Any, ...]:
    """The rules word by word, on plain dicts: (places, verdict, locality, fallback)."""
    if service.type is ServiceType.EXTERNAL_NAME:
        return [], Verdict.NO_ENDPOINTS, Locality.ANY, False
    dropped = False
    groups = [[f] for f in (service.ip_families or vantage.families) if f in vantage.families]
    if service.type is ServiceType.NAMES and not service.ip_families:
        groups = [[4, 6]]  # written by hand: everything counts
    for group in groups:
        copies: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
        for slice_ in slices:
            if slice_.family not in group or not slice_.ports:
                continue
            for order, e in enumerate(slice_.endpoints):
                local = bool(vantage.node) and e.node == vantage.node
                # within a slice only readiness and order decide; the copy of a slice then competes with other slices
                rank = (e.ready, e.serving), -order
                copies.setdefault((e.address, slice_.ports[0].port or 0), []).append(
                    (slice_.name, rank, local, slice_, e)
                )
        facts = {}
        for place, found in copies.items():
            best: dict[str, tuple[Any, ...]] = {}
            for copy in found:
                if copy[0] not in best or copy[1] > best[copy[0]][1]:
                    best[copy[0]] = copy
            winner = max(best.values(), key=lambda c: (c[1][0], c[2], c[3].generation, c[0]))
            facts[place] = winner[4]
        ready = {p: e for p, e in facts.items() if e.ready}
        leaving = {p: e for p, e in facts.items() if e.serving and e.terminating}
        if service.type in (ServiceType.HEADLESS, ServiceType.NAMES):
            if ready:
                return sorted(ready), Verdict.OK, Locality.ANY, False
            continue
        external = service.type in (ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER) or bool(
            service.external_ips
        )
        i_local = path is Path.INTERNAL and service.internal_traffic_policy is TrafficPolicy.LOCAL
        e_local = (
            path is Path.EXTERNAL and external and service.external_traffic_policy is TrafficPolicy.LOCAL
        )
        if i_local or e_local:
            here = {p for p, e in ready.items() if vantage.node and e.node == vantage.node}
            staying = bool(here)
            if not here:
                here = {p for p, e in leaving.items() if vantage.node and e.node == vantage.node}
            if here:
                return sorted(here), Verdict.OK, Locality.LOCAL_POLICY, not staying
            dropped = dropped or bool(ready or leaving)
            continue
        if not ready:
            if leaving:
                return sorted(leaving), Verdict.OK, Locality.ANY, True
            continue
        for level, own, hint in (
            (Locality.SAME_NODE, vantage.node, "hint_nodes"),
            (Locality.SAME_ZONE, vantage.zone, "hint_zones"),
        ):
            near = [p for p, e in ready.items() if own in getattr(e, hint)]
            if own and near and all(getattr(e, hint) for e in ready.values()):
                return sorted(near), Verdict.OK, level, False
        return sorted(ready), Verdict.OK, Locality.ANY, False
    if dropped:
        return [], Verdict.NO_LOCAL_ENDPOINTS, Locality.LOCAL_POLICY, False
    return [], Verdict.NO_ENDPOINTS, Locality.ANY, False


def told(found: EndpointSet) -> tuple[Any, ...]:
    places = [(e.address, e.port) for e in found.endpoints]
    return places, found.verdict, found.locality, found.terminating_fallback


@settings(max_examples=500)  # the rules have many arms, and rare meetings of them are what this test is for
@given(services, slice_lists(), vantages, st.sampled_from(Path), st.randoms())
def test_equals_the_literal_rules(
    service: Service, slices: list[EndpointSlice], vantage: VantagePoint, path: Path, random: Any
) -> None:
    """The fast function gives what a literal reading of the rules gives, for any order of the slices."""
    found = eligible(service, PORT, slices, vantage, path)
    assert told(found) == literal(service, slices, vantage, path)
    shuffled = list(slices)
    random.shuffle(shuffled)
    assert eligible(service, PORT, shuffled, vantage, path) == found


@given(services, slice_lists(), vantages, st.sampled_from(Path))
def test_explanation_agrees(
    service: Service, slices: list[EndpointSlice], vantage: VantagePoint, path: Path
) -> None:
    """Exactly the eligible endpoints are explained as eligible, and every entry is listed."""
    lines = explain(service, PORT, slices, vantage, path)
    assert (
        tuple(line.endpoint for line in lines if line.eligible)
        == eligible(service, PORT, slices, vantage, path).endpoints
    )
    assert len(lines) == sum(len(slice_.endpoints) for slice_ in slices)


steps = st.lists(st.tuples(slice_lists(), services, vantages), min_size=1, max_size=5)


@given(steps, st.sampled_from(Path))
def test_incremental_equals_pure(
    steps: list[tuple[list[EndpointSlice], Service, VantagePoint]], path: Path
) -> None:
    """Through any sequence of changes, kept in a store, the incremental form equals the pure function."""
    store, union = SliceStore(), SliceUnion()
    for slices, service, vantage in steps:
        store.replace(slices)
        held = store.slices_of(KEY)
        assert union.eligible(service, PORT, held, vantage, path) == eligible(
            service, PORT, slices, vantage, path
        )
