"""From a frontend to the objects of IPVS."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.backends.ipvs.exclude import Excluded
from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Hairpin,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.netlink.ipvs import HASH_PORT, PERSISTENT, RealServer, ServiceKey, VirtualServer
from meshlib.agent.objects import ObjectKey
from meshlib.model.service import ServiceKey as Name

OWNER = PortKey(Name("shop", "orders"), "http", "TCP")
PLACE = Place(4, ("10.0.0.1", "10.0.0.2", "127.0.0.1"), source="10.0.0.1")
A, B = Target("10.1.0.1", 8080), Target("10.1.0.2", 8080)
FORWARD = Route(Action.FORWARD, (A, B))


def frontend(address: str = "10.96.0.10", port: int = 80, route: Route = FORWARD, **more: Any) -> Frontend:
    return Frontend(FrontendKey("TCP", address, port), FrontendKind.CLUSTER_IP, OWNER, route, **more)


class _Nothing:
    """A companion that needs no objects: its presence says that sources on this node can be led elsewhere."""

    kinds = ()

    def fixed(self, place: Place) -> dict[ObjectKey, Any]:
        return {}

    def translate(self, frontend: Frontend, place: Place) -> dict[ObjectKey, Any]:
        return {}


def objects(given: Frontend, place: Place = PLACE, **options: Any) -> dict[tuple[Any, ...], Any]:
    """By kind and name, in one flat key."""
    found = IpvsBackend(**options).translate(given, place)
    return {
        (key.kind, *(key.name if isinstance(key.name, tuple) else (key.name,))): value
        for key, value in found.items()
    }


@pytest.mark.acceptance(54)
def test_a_cluster_ip() -> None:
    """A route with the node's address as the source, a virtual server, and its destinations."""
    assert objects(frontend()) == {
        ("route", "10.96.0.10"): "10.0.0.1",
        ("service", "TCP", "10.96.0.10", 80): VirtualServer("rr", 0, 0, 32),
        ("destination", "TCP", "10.96.0.10", 80, "10.1.0.1", 8080): RealServer(1),
        ("destination", "TCP", "10.96.0.10", 80, "10.1.0.2", 8080): RealServer(1),
    }


@pytest.mark.acceptance(55, 59)
@pytest.mark.parametrize("action", [Action.REJECT, Action.DROP])
def test_no_endpoints(action: Action) -> None:
    """An empty virtual server, whether it is to refuse or to be dropped before it is reached."""
    assert objects(frontend(route=Route(action))) == {
        ("route", "10.96.0.10"): "10.0.0.1",
        ("service", "TCP", "10.96.0.10", 80): VirtualServer(),
    }


@pytest.mark.acceptance(67)
def test_a_node_port() -> None:
    """Every address of the node but loopback; no route, for they are local already."""
    assert {key[:3] for key in objects(frontend("", 30080, Route(Action.REJECT)))} == {
        ("service", "TCP", "10.0.0.1"),
        ("service", "TCP", "10.0.0.2"),
    }


@pytest.mark.parametrize(
    ("scheduler", "weights", "found", "flags"),
    [
        ("rr", (1, 1), "rr", 0),
        ("rr", (2, 1), "wrr", 0),
        ("lc", (1, 3), "wlc", 0),
        ("sh", (2, 1), "sh", 0),
        ("mh", (1, 1), "mh", HASH_PORT),
    ],
)
def test_schedulers(scheduler: str, weights: tuple[int, int], found: str, flags: int) -> None:
    """Those that do not know weights give way to their twins where weights differ from one; mh hashes ports too."""
    route = Route(Action.FORWARD, (A._replace(weight=weights[0]), B._replace(weight=weights[1])))
    made = objects(frontend(route=route, scheduler=scheduler))
    assert made["service", "TCP", "10.96.0.10", 80] == VirtualServer(found, flags)
    assert [made[key].weight for key in made if key[0] == "destination"] == list(weights)


@pytest.mark.acceptance(80)
def test_session_affinity() -> None:
    """Persistence of one client address, only where it is asked for."""
    made = objects(frontend(affinity_seconds=300))
    assert made["service", "TCP", "10.96.0.10", 80] == VirtualServer("rr", PERSISTENT, 300, 32)
    six = objects(frontend("fd96::10", affinity_seconds=300), Place(6, source="fd00::1"))
    assert six["service", "TCP", "fd96::10", 80] == VirtualServer("rr", PERSISTENT, 300, 128)


@pytest.mark.acceptance(39)
def test_sources_on_this_node_have_a_virtual_server_of_their_own() -> None:
    """Where a companion can lead them there: private address, same port, the endpoints of ``inside``."""
    given = frontend("192.0.2.70", route=Route(Action.DROP), inside=Route(Action.FORWARD, (A,)))
    assert objects(given).keys() == {("route", "192.0.2.70"), ("service", "TCP", "192.0.2.70", 80)}
    assert objects(given, companion=_Nothing(), private=PrivateAddresses()) == {
        ("route", "192.0.2.70"): "10.0.0.1",
        ("route", "240.0.2.70"): "10.0.0.1",
        ("service", "TCP", "192.0.2.70", 80): VirtualServer(),
        ("service", "TCP", "240.0.2.70", 80): VirtualServer(),
        ("destination", "TCP", "240.0.2.70", 80, "10.1.0.1", 8080): RealServer(1),
    }


def private(address: str, held: PrivateAddresses) -> str:
    """The private address of an IPv4 frontend."""
    return held.key(FrontendKey("TCP", address, 80), 4).address


def test_private_addresses() -> None:
    """They keep protocol and port, are asked for twice and stay the same, and look like what they stand for."""
    held = PrivateAddresses()
    assert held.key(FrontendKey("UDP", "192.0.2.70", 53), 4) == FrontendKey("UDP", "240.0.2.70", 53)
    assert [private(each, held) for each in ("192.0.2.71", "10.0.2.70", "192.0.2.70")] == [
        "240.0.2.71",
        "250.0.2.70",
        "240.0.2.70",
    ]
    six = held.key(FrontendKey("UDP", "2001:db8::1", 53), 6)
    assert six.address.startswith("fd6d:6573:686c:")
    assert six[::2] == ("UDP", 53)


def test_private_addresses_of_twins() -> None:
    """Addresses that differ in their first four bits alone are kept apart, whichever came first."""
    twins = [f"{first}.1.2.3" for first in range(10, 224, 16)]
    held = PrivateAddresses()
    assert len({private(each, held) for each in twins}) == len(twins)
    other = PrivateAddresses()
    assert private(twins[1], other) == private(twins[0], PrivateAddresses()) == "250.1.2.3"


@pytest.mark.parametrize("address", ["15.255.255.255", "16.0.0.0", "240.1.2.3", ""])
def test_private_addresses_that_mean_something_else(address: str) -> None:
    """Never everybody's address, the block's own, or the very one that it stands for."""
    assert private(address, PrivateAddresses()) not in ("255.255.255.255", "240.0.0.0", address)


def test_another_block_for_private_addresses() -> None:
    """Where a cluster's pods live in 240.0.0.0/4, the private ones live elsewhere."""
    assert private("192.0.2.70", PrivateAddresses("250.0.0.0/8")) == "250.0.2.70"


def test_the_other_binding() -> None:
    """Addresses on a device of ours, which is always there, instead of routes."""
    backend = IpvsBackend(binding="dummy")
    assert backend.kinds == ("device", "address", "service", "destination")
    assert backend.fixed(PLACE) == {ObjectKey("device", "meshlib0"): None}
    assert ("address", "10.96.0.10") in objects(frontend(), binding="dummy")
    assert backend.translate_hairpin(Hairpin("10.1.0.1", "TCP", 8080), PLACE) == {}


@pytest.mark.acceptance(95)
def test_excluded_networks() -> None:
    """Nothing of IPVS is wanted there."""
    made = objects(frontend(), excluded=("10.96.0.0/16", "fd00::/8"))
    assert made.keys() == set()
    assert "10.97.0.1" not in Excluded(("10.96.0.0/16",))
    with pytest.raises(ValueError):
        Excluded(("10.96.0.1/16",))


def test_whose_is_what() -> None:
    """A destination is its virtual server's; routes and devices bear our mark."""
    backend = IpvsBackend()
    service = ObjectKey("service", ("TCP", "10.96.0.10", 80))
    assert backend.ledger_key(service) == service
    name = (*ServiceKey("TCP", "10.96.0.10", 80), "10.1.0.1", 8080)
    assert backend.ledger_key(ObjectKey("destination", name)) == service
    assert backend.ledger_key(ObjectKey("route", "10.96.0.10")) is None
    assert IpvsBackend(binding="dummy").ledger_key(ObjectKey("device", "meshlib0")) is None


def test_a_frontend_is_translated_alone() -> None:
    """Equal frontends give equal objects, and another address none of the same but shared routes."""
    assert objects(frontend()) == objects(replace(frontend()))
    shared = objects(frontend()).keys() & objects(frontend(port=81)).keys()
    assert shared == {("route", "10.96.0.10")}
