"""nftables: what a change costs, and what elements a frontend has. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlib.agent.backends.nftables import expressions as x
from meshlib.agent.backends.nftables import layout, rules, translate
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Masquerade,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.engine.planner import Planner
from meshlib.agent.objects import ObjectKey
from meshlib.model.service import ServiceKey

PLACE = Place(4, ("192.0.2.1",), ("10.1.0.0/16",))


def frontend(number: int, pods: range, **more: object) -> Frontend:
    address = f"10.96.{number // 250}.{number % 250}"
    facts: dict[str, object] = {
        "kind": FrontendKind.CLUSTER_IP,
        "owner": PortKey(ServiceKey("shop", f"web-{number}"), "http", "TCP"),
        "route": Route(Action.FORWARD, tuple(Target(f"10.1.{number % 250}.{pod}", 8080) for pod in pods)),
        **more,
    }
    return Frontend(FrontendKey("TCP", address, 80), **facts)  # type: ignore[arg-type]


@pytest.mark.acceptance(105)
@pytest.mark.parametrize(
    ("pods", "most"), [(range(1, 4), 0), (range(2, 5), 5), (range(1, 5), 6), (range(1, 3), 6)]
)
def test_one_change_among_many(pods: range, most: int) -> None:
    """A few elements, however many Services there are: none for no change, as many as differ otherwise."""
    planner = Planner(translate.kinds())
    planner.change((0,), {}, translate.fixed(PLACE))
    for number in range(2000):
        each = frontend(number, range(1, 5 if number == 7 else 4))
        planner.change((1, each.key), {}, translate.translate(each, PLACE))
    planner.done(planner.plan())
    old, new = frontend(3, range(1, 4)), frontend(3, pods)
    planner.change((1, old.key), translate.translate(old, PLACE), translate.translate(new, PLACE))
    assert bool(planner.plan()) == bool(most)
    assert len(planner.plan()) <= most


@pytest.mark.acceptance(71, 73)
@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_local_is_never_marked(protocol: str) -> None:
    """Node ports and load balancers with externalTrafficPolicy Local are in no masquerade set, in any protocol."""
    for kind, address in ((FrontendKind.NODE_PORT, ""), (FrontendKind.LOAD_BALANCER, "192.0.2.70")):
        local = replace(frontend(1, range(1, 3), kind=kind), key=FrontendKey(protocol, address, 30080))
        marked = {*layout.MASQUERADED.values(), *layout.MASQUERADED_OFF_NODE.values()}
        assert not marked & {key.kind for key in translate.translate(local, PLACE)}
        cluster = replace(local, masquerade=Masquerade.ALWAYS)
        assert marked & {key.kind for key in translate.translate(cluster, PLACE)}


def test_the_hosts_own_addresses_are_not_protected() -> None:
    """Ports of the host stay open on a node's address, though a Service claims it as its external address too."""
    for kind in (FrontendKind.EXTERNAL_IP, FrontendKind.NODE_PORT):
        own = replace(frontend(1, range(1, 3), kind=kind), key=FrontendKey("TCP", "192.0.2.1", 80))
        assert not {layout.CLUSTER_IPS, layout.OTHER_IPS} & {
            key.kind for key in translate.translate(own, PLACE)
        }


def test_affinity_is_by_service_port() -> None:
    """Frontends of one port of a Service share a number, those of another port, protocol or Service do not."""
    owners = [
        PortKey(ServiceKey("a", "b"), "c", "TCP"),
        PortKey(ServiceKey("a", "b"), "c", "UDP"),
        PortKey(ServiceKey("a", "b"), "d", "TCP"),
        PortKey(ServiceKey("a", "bc"), "", "TCP"),
        PortKey(ServiceKey("ab", "c"), "", "TCP"),
    ]
    assert len({translate.owner_number(owner) for owner in owners}) == len(owners)


def test_objects_in_words() -> None:
    """Bytes are readable for people."""
    objects = translate.translate(frontend(3, range(1, 2), affinity_seconds=30), PLACE)
    words = {translate.describe(key, value, 4) for key, value in objects.items()}
    assert "vip_slot 10.96.0.3 . 6 . 80 . 0x0 : 10.1.3.1 . 8080" in words
    assert "cluster_ips 10.96.0.3" in words
    assert "chain vip_1_30s" in words


def test_too_many_endpoints_for_one_set() -> None:
    """A set has an end; within it every endpoint has its slot."""
    many = [Target(f"10.{a}.{b}.{c}", 80) for a in range(2) for b in range(100) for c in range(1, 100)]
    assert list(translate.slots(many[: layout.MOST_SLOTS])) == many[: layout.MOST_SLOTS]
    assert len(translate.slots(many)) == layout.MOST_SLOTS
    uneven = [target._replace(weight=index % 7 + 1) for index, target in enumerate(many[:5000])]
    assert {target.address for target in translate.slots(uneven)} == {target.address for target in uneven}
    assert len(translate.slots(uneven)) <= 5000


def test_classes_do_not_collide() -> None:
    """Slots and seconds of a class can be told apart, and from the special ones."""
    classes = {
        layout.class_number(slots, seconds)
        for slots in (1, 2, 3, layout.MOST_SLOTS)
        for seconds in (0, 1, 2, 86400)
    }
    assert len(classes) == 16
    assert max(classes) < 1 << 32
    assert not classes & {layout.REFUSED, layout.DROPPED, layout.PASSED}


def test_rules_with_one_difference_differ() -> None:
    """The digest by which a changed rule is found sees order, registers, constants and verdicts."""
    ways = [
        (x.destination(4, 0), x.found("s", 0), x.verdict(x.DROP)),
        (x.destination(4, 0), x.missing("s", 0), x.verdict(x.DROP)),
        (x.destination(4, 0), x.found("t", 0), x.verdict(x.DROP)),
        (x.destination(4, 1), x.found("s", 1), x.verdict(x.DROP)),
        (x.source(4, 0), x.found("s", 0), x.verdict(x.DROP)),
        (x.destination(4, 0), x.found("s", 0), x.verdict(x.ACCEPT)),
        (x.destination(4, 0), x.found("s", 0), x.verdict(x.GOTO, "c")),
        (x.destination(4, 0), x.found("s", 0), x.verdict(x.JUMP, "c")),
        (x.destination(4, 0), x.found("s", 0)),
        (x.found("s", 0), x.destination(4, 0), x.verdict(x.DROP)),
        x.set_mark(5),
        x.set_mark(6),
        x.clear_mark(5),
    ]
    assert len({rules.digest(b"".join(way)) for way in ways}) == len(ways)


def test_a_place_changes_few_objects() -> None:
    """A node address more is one element; pod ranges are one object of their own."""
    before = translate.fixed(PLACE)
    more = translate.fixed(replace(PLACE, node_addresses=("192.0.2.1", "192.0.2.2")))
    assert set(more.keys() ^ before.keys()) == {ObjectKey(layout.NODE_IPS, bytes((192, 0, 2, 2)))}
    moved = translate.fixed(replace(PLACE, pod_ranges=("10.2.0.0/16",)))
    assert [key for key in before if before[key] != moved[key]] == [ObjectKey(translate.RANGES, layout.PODS)]
