"""Userspace: which socket a frontend claims, and what the socket has to be."""

from __future__ import annotations

from meshlib.agent.backends.userspace.translate import (
    Bind,
    Claim,
    Served,
    Shape,
    reachable,
    route_for,
    serving,
    shape,
    translate,
    words,
)
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.objects import ObjectKey
from meshlib.model.service import ServiceKey

OWNER = PortKey(ServiceKey("shop", "web"), "http", "TCP")
THERE = Route(Action.FORWARD, (Target("10.1.0.2", 8080),))
CLUSTER = Route(Action.FORWARD, (Target("10.1.1.2", 8080),))
REJECT, DROP = Route(Action.REJECT), Route(Action.DROP)
PLACE = Place(4, ("10.0.0.1",), ("10.1.0.0/24",))


def frontend(address: str, kind: FrontendKind = FrontendKind.CLUSTER_IP, **more: object) -> Frontend:
    facts: dict[str, object] = {"route": THERE, **more}
    return Frontend(FrontendKey("TCP", address, 80), kind, OWNER, **facts)  # type: ignore[arg-type]


def claims(found: object) -> list[Claim]:
    return [key.name for key in found]  # type: ignore[attr-defined]


def test_mapped_onto_every_address_of_the_family() -> None:
    """A virtual address that is none of ours is served on all of them, of its family."""
    found = translate(frontend("10.96.0.1"), PLACE, ("127.0.0.1", "::1", "127.0.0.2"))
    assert claims(found) == [
        Claim(Bind("TCP", "127.0.0.1", 80), "10.96.0.1"),
        Claim(Bind("TCP", "127.0.0.2", 80), "10.96.0.1"),
    ]


def test_its_own_address_alone() -> None:
    """A virtual address that is configured is served there and nowhere else."""
    found = translate(frontend("10.96.0.1"), PLACE, ("127.0.0.1", "10.96.0.1"))
    assert claims(found) == [Claim(Bind("TCP", "10.96.0.1", 80), "10.96.0.1")]


def test_ranges_count_for_load_balancers_only() -> None:
    """As in every mode; and who is inside is only remembered where it matters."""
    for kind in FrontendKind:
        (value,) = translate(frontend("10.96.0.1", kind, source_ranges=()), PLACE, ("127.0.0.1",)).values()
        assert value.source_ranges == (() if kind is FrontendKind.LOAD_BALANCER else None)
        assert value.pods == ()
    (value,) = translate(frontend("10.96.0.1", inside=CLUSTER), PLACE, ("127.0.0.1",)).values()
    assert (value.pods, value.hosts) == (PLACE.pod_ranges, PLACE.node_addresses)


def test_who_has_a_shared_socket() -> None:
    """The one whose own address it is, then the smallest; on the wildcard address everybody."""
    served = {"": Served(OWNER, THERE), "10.96.0.1": Served(OWNER, CLUSTER)}
    assert serving(served, "10.96.0.1") == "10.96.0.1"
    assert serving(served, "127.0.0.1") == ""
    assert list(reachable(served, Bind("TCP", "127.0.0.1", 80))) == [""]
    assert list(reachable(served, Bind("TCP", "10.96.0.1", 80))) == ["10.96.0.1"]
    assert list(reachable(served, Bind("TCP", "0.0.0.0", 80))) == ["", "10.96.0.1"]
    assert reachable({}, Bind("TCP", "127.0.0.1", 80)) == {}


def test_shapes() -> None:
    """Open while somebody is forwarded; silent or closed by the one who would be served."""
    bind = Bind("TCP", "127.0.0.1", 80)

    def of(route: Route, **more: object) -> Shape:
        return shape({"10.96.0.1": Served(OWNER, route, **more)}, bind)  # type: ignore[arg-type]

    assert of(THERE) is Shape.OPEN
    assert of(DROP, inside=CLUSTER) is Shape.OPEN
    assert of(DROP) is Shape.SILENT
    assert of(DROP, inside=REJECT) is Shape.SILENT
    assert of(REJECT) is Shape.CLOSED
    assert of(REJECT, source_ranges=()) is Shape.SILENT
    assert of(Route(Action.FORWARD)) is Shape.CLOSED
    assert shape({}, bind) is Shape.CLOSED
    hidden = {"": Served(OWNER, REJECT), "10.96.0.1": Served(OWNER, THERE)}
    assert shape(hidden, bind) is Shape.CLOSED
    assert shape(hidden, bind._replace(address="0.0.0.0")) is Shape.OPEN


def test_where_a_client_goes() -> None:
    """Source ranges first; then pods of this node, the node itself and loopback take the inside way."""
    served = Served(
        OWNER,
        THERE,
        CLUSTER,
        source_ranges=("10.0.0.0/8", "127.0.0.0/8"),
        pods=PLACE.pod_ranges,
        hosts=("10.0.0.1",),
    )
    assert route_for(served, "192.0.2.1") == DROP
    assert route_for(served, "10.9.0.1") == THERE
    for inside in ("10.1.0.9", "10.0.0.1", "127.0.0.1"):
        assert route_for(served, inside) == CLUSTER
    assert route_for(Served(OWNER, THERE), "192.0.2.1") == THERE
    six = Served(OWNER, THERE, CLUSTER, pods=("fd00::/64",))
    assert route_for(six, "fe80::1%eth0") == THERE
    assert route_for(six, "fd00::1%eth0") == CLUSTER


def test_the_host_itself() -> None:
    """A flow from an address to itself is the host's; ranges are asked for the node's own address then."""
    served = Served(OWNER, THERE, hosts=("10.0.0.1",))
    assert served.client("10.96.0.1", "10.96.0.1") == "10.0.0.1"
    assert served.client("10.9.0.1", "10.96.0.1") == "10.9.0.1"
    assert Served(OWNER, THERE).client("10.96.0.1", "10.96.0.1") == "10.96.0.1"


def test_words() -> None:
    """One line, with the Service where it is known."""
    key = ObjectKey("listener", Claim(Bind("UDP", "::1", 53), ""))
    assert words(key, Served(OWNER, THERE)) == "UDP [::1]:53 for a node port (shop/web:http/TCP)"
    assert words(key, None) == "UDP [::1]:53 for a node port"
