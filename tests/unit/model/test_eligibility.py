"""Eligibility beyond the golden vectors: explanations, the incremental form, vantage points, host names."""

from __future__ import annotations

import pytest

from meshlib.model.eligibility import (
    SliceUnion,
    eligible,
    explain,
    learn_vantage,
    needs_location,
    with_hostname,
)
from meshlib.model.endpoint import Verdict
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType, TrafficPolicy
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from meshlib.model.vantage import Path, VantagePoint

KEY = ServiceKey("shop", "orders")
PORT = ServicePort("http", 80)
SERVICE = Service(KEY, ports=(PORT,), ip_families=(4,))
HERE = VantagePoint("node-a", "zone-1")


def make(
    name: str, *endpoints: SliceEndpoint, family: int = 4, port: int = 8080, generation: int = 1
) -> EndpointSlice:
    return EndpointSlice(
        namespace="shop",
        name=name,
        service=KEY,
        family=family,
        ports=(SlicePort("http", port),),
        endpoints=endpoints,
        generation=generation,
    )


def at(address: str, **facts: object) -> SliceEndpoint:
    return SliceEndpoint(address=address, **facts)  # type: ignore[arg-type]


def reasons(
    service: Service, *slices: EndpointSlice, vantage: VantagePoint = HERE
) -> dict[str, tuple[bool, str]]:
    told = explain(service, service.ports[0], slices, vantage, Path.INTERNAL)
    return {f"{line.slice} {line.endpoint.address}": (line.eligible, line.reason) for line in told}


def test_explains_conditions() -> None:
    """Ready, unready and terminating endpoints are told apart."""
    told = reasons(
        SERVICE,
        make(
            "s",
            at("10.0.0.1"),
            at("10.0.0.2", ready=False, serving=False),
            at("10.0.0.3", ready=False, terminating=True),
            at("10.0.0.4", ready=False, serving=False, terminating=True),
        ),
    )
    assert told == {
        "s 10.0.0.1": (True, "ready"),
        "s 10.0.0.2": (False, "not ready"),
        "s 10.0.0.3": (False, "terminating, and ready endpoints are left"),
        "s 10.0.0.4": (False, "terminating"),
    }


def test_explains_fallback_and_copies() -> None:
    """The fallback, lost copies, and slices without the port say what happened."""
    told = reasons(
        SERVICE,
        make("a", at("10.0.0.1", ready=False, terminating=True)),
        make("b", at("10.0.0.1", ready=False, terminating=True), generation=2),
        EndpointSlice(namespace="shop", name="c", service=KEY, family=4, endpoints=(at("10.0.0.2"),)),
        make("d", at("10.0.0.3", ready=False, serving=False), at("10.0.0.3", ready=False, terminating=True)),
    )
    assert told["a 10.0.0.1"] == (False, "duplicate: the copy in slice b counts")
    assert told["b 10.0.0.1"] == (True, "terminating but serving, and no ready endpoint is left")
    assert told["c 10.0.0.2"] == (False, "its slice has no port named 'http' for TCP")
    assert told["d 10.0.0.3"] == (True, "terminating but serving, and no ready endpoint is left")
    lines = explain(
        SERVICE, PORT, [make("d", at("10.0.0.3", ready=False), at("10.0.0.3"))], HERE, Path.INTERNAL
    )
    assert [(line.eligible, line.reason) for line in lines] == [
        (False, "duplicate: another copy in the same slice counts"),
        (True, "ready"),
    ]


def test_explains_places() -> None:
    """Hints and Local policies say which place they keep traffic in."""
    zone = reasons(
        SERVICE, make("s", at("10.0.0.1", hint_zones=("zone-1",)), at("10.0.0.2", hint_zones=("zone-2",)))
    )
    assert zone["s 10.0.0.1"] == (True, "ready, and hinted for zone zone-1")
    assert zone["s 10.0.0.2"] == (False, "hints keep traffic in zone zone-1")
    node = reasons(
        SERVICE, make("s", at("10.0.0.1", hint_nodes=("node-a",)), at("10.0.0.2", hint_nodes=("node-b",)))
    )
    assert node["s 10.0.0.1"] == (True, "ready, and hinted for this node")
    assert node["s 10.0.0.2"] == (False, "hints keep traffic on this node")
    local = Service(KEY, ports=(PORT,), ip_families=(4,), internal_traffic_policy=TrafficPolicy.LOCAL)
    slices = make("s", at("10.0.0.1", node="node-a"), at("10.0.0.2", node="node-b"), at("10.0.0.3"))
    assert reasons(local, slices) == {
        "s 10.0.0.1": (True, "ready, and on this node"),
        "s 10.0.0.2": (False, "the traffic policy is Local, and it is on node node-b"),
        "s 10.0.0.3": (False, "the traffic policy is Local, and it is on no known node"),
    }
    unknown = reasons(local, slices, vantage=VantagePoint())
    assert unknown["s 10.0.0.1"] == (False, "the traffic policy is Local, and our own node is unknown")


def test_explains_families() -> None:
    """An endpoint of a family that is not used says which rule passed it over."""
    slices = (make("s4", at("10.0.0.1")), make("s6", at("fd00::1"), family=6))
    dual = Service(KEY, ports=(PORT,), ip_families=(4, 6))
    assert reasons(dual, *slices)["s6 fd00::1"] == (False, "IPv4 comes first and has endpoints")
    assert reasons(SERVICE, *slices)["s6 fd00::1"] == (False, "the Service does not list IPv6")
    only4 = VantagePoint(families=(4,))
    assert reasons(dual, *slices, vantage=only4)["s6 fd00::1"] == (False, "IPv6 cannot be dialled from here")
    name = Service(KEY, ServiceType.EXTERNAL_NAME, ports=(PORT,), external_name="x.example.com")
    assert "x.example.com" in reasons(name, *slices)["s4 10.0.0.1"][1]


def test_union_keeps_what_stays() -> None:
    """The incremental form joins a slice once for as long as the slice is the same object."""
    one, two = make("a", at("10.0.0.1")), make("b", at("10.0.0.2"))
    union = SliceUnion()
    first = union.eligible(SERVICE, PORT, (one, two), HERE, Path.INTERNAL)
    second = union.eligible(SERVICE, PORT, (one, make("b", at("10.0.0.3"))), HERE, Path.INTERNAL)
    assert first.endpoints[0] is second.endpoints[0]
    assert [e.address for e in second.endpoints] == ["10.0.0.1", "10.0.0.3"]


def test_union_follows_the_port() -> None:
    """Asked for another port, or a Service whose port changed, the incremental form joins anew."""
    slice_ = EndpointSlice(
        namespace="shop",
        name="a",
        service=KEY,
        family=4,
        ports=(SlicePort("http", 8080), SlicePort("grpc", 9090)),
        endpoints=(at("10.0.0.1"),),
    )
    union = SliceUnion()
    assert union.eligible(SERVICE, PORT, (slice_,), HERE, Path.INTERNAL).endpoints[0].port == 8080
    grpc = ServicePort("grpc", 81)
    assert union.eligible(SERVICE, grpc, (slice_,), HERE, Path.INTERNAL).endpoints[0].port == 9090


def test_sets_of_names_keep_weight_and_tier() -> None:
    """Weights and priority tiers pass through untouched: policies choose the tier, not eligibility."""
    names = Service(ServiceKey("", "x"), ServiceType.NAMES, ports=(ServicePort("", 80),))
    slice_ = EndpointSlice(
        namespace="",
        name="srv",
        service=names.key,
        family=4,
        ports=(SlicePort("", 80),),
        endpoints=(at("10.0.0.1", weight=0, priority=1), at("10.0.0.2", weight=5)),
    )
    found = eligible(names, names.ports[0], (slice_,), HERE, Path.INTERNAL)
    assert [(e.address, e.weight, e.priority) for e in found.endpoints] == [
        ("10.0.0.1", 0, 1),
        ("10.0.0.2", 5, 0),
    ]


def test_hostname_means_one_endpoint() -> None:
    """HOST.NAME.NS.svc is the endpoint of that hostname, or of that address with dashes when it has none."""
    found = eligible(
        SERVICE, PORT, [make("s", at("10.0.0.1", hostname="db-0"), at("10.0.0.2"))], HERE, Path.INTERNAL
    )
    assert [e.address for e in with_hostname(found, "db-0").endpoints] == ["10.0.0.1"]
    assert [e.address for e in with_hostname(found, "10-0-0-2").endpoints] == ["10.0.0.2"]
    for missing in ("10-0-0-1", "db-1", ""):
        nothing = with_hostname(found, missing)
        assert (nothing.endpoints, nothing.verdict) == ((), Verdict.NO_ENDPOINTS)


@pytest.mark.parametrize(
    ("endpoints", "node", "zone"),
    [
        ([at("10.0.0.1", node="node-a", zone="zone-1")], "node-a", "zone-1"),
        ([at("10.0.0.1", node="node-a"), at("10.0.0.1", zone="zone-1")], "node-a", "zone-1"),
        ([at("10.0.0.1", zone="zone-1"), at("10.0.0.2", zone="zone-2")], "", "zone-1"),
    ],
)
def test_learns_where_we_are(endpoints: list[SliceEndpoint], node: str, zone: str) -> None:
    """The entry that carries our own address tells our node and zone (D3)."""
    assert learn_vantage([make("s", *endpoints)], {"10.0.0.1"}, (4,)) == VantagePoint(node, zone, (4,))


@pytest.mark.parametrize(
    "endpoints",
    [
        [],
        [at("10.0.0.1")],
        [at("10.0.0.2", node="node-a")],
        [at("10.0.0.1", node="node-a"), at("10.0.0.1", node="node-b")],
        [at("10.0.0.1", node="node-a", zone="zone-1"), at("10.0.0.1", zone="zone-2")],
    ],
)
def test_does_not_guess_where_we_are(endpoints: list[SliceEndpoint]) -> None:
    """No entry, no place in it, or two that contradict each other: unknown."""
    assert learn_vantage([make("s", *endpoints)], {"10.0.0.1"}) is None


def test_needs_location() -> None:
    """An unknown place matters exactly when a Local policy or hints would use it (D3)."""
    nowhere, zone_only = VantagePoint(), VantagePoint(zone="zone-1")
    local = Service(KEY, ports=(PORT,), internal_traffic_policy=TrafficPolicy.LOCAL)
    headless = Service(KEY, ServiceType.HEADLESS, internal_traffic_policy=TrafficPolicy.LOCAL)
    plain = [make("s", at("10.0.0.1"))]
    zones = [make("s", at("10.0.0.1", hint_zones=("zone-1",)))]
    nodes = [make("s", at("10.0.0.1", hint_nodes=("node-a",)))]
    assert not needs_location(SERVICE, plain, nowhere)
    assert needs_location(SERVICE, zones, nowhere)
    assert needs_location(SERVICE, nodes, nowhere)
    assert not needs_location(SERVICE, zones, zone_only)
    assert needs_location(SERVICE, nodes, zone_only)
    assert not needs_location(SERVICE, nodes, HERE)
    assert needs_location(local, plain, zone_only)
    assert not needs_location(local, plain, HERE)
    assert not needs_location(headless, zones, nowhere)
