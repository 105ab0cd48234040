"""The ipvs backend with something beside it that drops, masquerades and leads sources on this node elsewhere.

This guest has no nft for IPv4, so iptables stands in for the companion table: what is shown is the part of IPVS.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from meshlib.agent.backends.base import Probe
from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.desired import Action, Frontend, Hairpin, Place, Route, Target
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb
from tests.kernel.uml.node import Node, frontend, node_is_empty
from tests.kernel.uml.space import Space, connect, said

VIP, A, B = "192.0.2.70", "10.1.0.1", "10.1.0.2"


class Tables:
    """A companion of two kinds of rules: drop, and lead local sources to the private virtual server."""

    kinds = ("rule",)

    def __init__(self, space: Space) -> None:
        self.space = space
        self.private = PrivateAddresses()
        self.ticks = 0

    def fixed(self, place: Place) -> Objects:
        return {}

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        found: dict[ObjectKey, None] = {}
        protocol, address, port = frontend.key
        match = f"-d {address} -p {protocol.lower()} --dport {port}"
        if frontend.route.action is Action.DROP:
            found[ObjectKey("rule", f"mangle OUTPUT {match} -j DROP")] = None
        if frontend.inside is not None:
            private = self.private.key(frontend.key, 4)
            target = f"{private.address}:{private.port}"
            found[ObjectKey("rule", f"nat OUTPUT {match} -j DNAT --to {target}")] = None
            found[ObjectKey("rule", f"nat PREROUTING -s 10.9.0.0/24 {match} -j DNAT --to {target}")] = None
        return found

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        return {}

    def ledger_key(self, key: ObjectKey) -> None:
        return None

    def dump(self, family: int) -> Objects:
        return {}

    def apply(self, plan: Sequence[Operation], now: float) -> Sequence[Failed]:
        for operation in plan:
            table, chain, rule = str(operation.key.name).split(" ", 2)
            verb = "-D" if operation.verb is Verb.REMOVE else "-A"
            self.space.shell(f"iptables-legacy -t {table} {verb} {chain} {rule}")
        return ()

    def probe(self) -> Probe:
        return Probe(True, "rules", (4,))

    def tick(self, now: float) -> float | None:
        self.ticks += 1
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def node(space: Space) -> Node:
    """Two endpoints that answer."""
    space.address("10.0.0.1", A, B)
    space.sysctl("net.ipv4.vs.conntrack", 1)
    for each in (A, B):
        space.echo(each, 8080)
    tables = Tables(space)
    return Node(companion=tables, private=tables.private)


@pytest.mark.acceptance(35, 38)
def test_dropped_is_not_refused(space: Space, node: Node) -> None:
    """With a companion a flow to a dropped frontend gets no answer; the reject beside it is refused at once."""
    node.want(frontend(VIP, 80, action=Action.DROP), frontend(VIP, 81, action=Action.REJECT))
    assert space.ask(VIP, 80, timeout=1.5) == "nothing"
    assert space.ask(VIP, 81) == "refused"
    node.want(frontend(VIP, 80, A), frontend(VIP, 81))
    assert space.ask(VIP, 80) == A


@pytest.mark.acceptance(39, 41)
def test_the_short_circuit(space: Space, node: Node) -> None:
    """A frontend without local endpoints for others serves the node itself, through its private virtual server."""
    inside = Route(Action.FORWARD, (Target(A, 8080), Target(B, 8080)))
    written = node.want(frontend(VIP, 80, action=Action.REJECT, inside=inside))
    assert written.ok, written
    assert {space.ask(VIP, 80) for _ in range(4)} == {A, B}
    assert set(node.routes()) == {VIP, "240.0.2.70"}
    with connect(VIP, 80) as flow:
        first = said(flow)[0]
        # The endpoint of the open flow goes: it drains there as anywhere.
        left = B if first == A else A
        node.want(
            frontend(VIP, 80, action=Action.REJECT, inside=Route(Action.FORWARD, (Target(left, 8080),)))
        )
        assert said(flow)[0] == first
        assert {space.ask(VIP, 80) for _ in range(4)} == {left}
    node.want()
    assert node_is_empty(node)


@pytest.mark.acceptance(39)
def test_two_addresses_that_would_share_a_private_one(space: Space, node: Node) -> None:
    """Sources on this node reach the endpoints of each, and never those of the other."""
    twin = "208.0.2.70"  # the same last 28 bits as VIP
    first, second = Route(Action.FORWARD, (Target(A, 8080),)), Route(Action.FORWARD, (Target(B, 8080),))
    assert node.want(
        frontend(VIP, 80, action=Action.REJECT, inside=first),
        frontend(twin, 80, action=Action.REJECT, inside=second),
    ).ok
    assert len(node.routes()) == 4
    assert {space.ask(VIP, 80) for _ in range(3)} == {A}
    assert {space.ask(twin, 80) for _ in range(3)} == {B}


def _martians() -> list[int]:
    """Packets of every processor that were refused because of their source or destination."""
    lines = Path("/proc/thread-self/net/stat/rt_cache").read_text().splitlines()
    names = lines[0].split()
    return [sum(int(line.split()[names.index(name)], 16) for line in lines[1:]) for name in _MARTIANS]


_MARTIANS = ("in_martian_dst", "in_martian_src")


@pytest.mark.acceptance(39, 41)
def test_private_addresses_are_no_martians(space: Space, node: Node) -> None:
    """A pod behind a link reaches the private virtual server with the strictest checks that a host may have."""
    space.shell("ip link add near type veth peer name far && ip link set near up")
    space.shell("ip address add 10.9.0.1/24 dev near")
    for where in ("all", "near"):
        space.sysctl(f"net.ipv4.conf.{where}.rp_filter", 1)
        space.sysctl(f"net.ipv4.conf.{where}.log_martians", 1)
    space.sysctl("net.ipv4.ip_forward", 1)
    with Space() as pod:
        with space.inside():
            space.give("far", pod)
        pod.shell("ip link set far up && ip address add 10.9.0.2/24 dev far")
        pod.shell("ip route add default via 10.9.0.1")
        with space.inside():
            inside = Route(Action.FORWARD, (Target(A, 8080), Target(B, 8080)))
            assert node.want(frontend(VIP, 80, action=Action.DROP, inside=inside)).ok
            before = _martians()
        assert {pod.ask(VIP, 80) for _ in range(4)} == {A, B}
        with space.inside():
            assert _martians() == before
        # The control: what does come from nowhere is counted.
        pod.shell("ip address add 10.77.0.1/32 dev lo")
        with pytest.raises(TimeoutError):
            connect("10.9.0.1", 9, source="10.77.0.1", timeout=0.5)
        with space.inside():
            assert _martians() != before


def test_the_probe_asks_the_companion_as_well(space: Space, node: Node) -> None:
    """Families are those of both, and the reasons stand side by side."""
    probe = node.backend.probe()
    assert (probe.usable, probe.families) == (True, (4,))
    assert probe.reason.endswith("beside it rules")
    node.backend.tick(0.0)


@pytest.mark.acceptance(62)
def test_the_source_is_kept(space: Space, node: Node) -> None:
    """Without a masquerade the endpoint sees the client's own address."""
    space.address("10.5.5.5")
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80, source="10.5.5.5") as flow:
        assert said(flow) == (A, "10.5.5.5")


@pytest.mark.acceptance(66)
def test_another_machine_and_the_nodes_own_address(space: Space, node: Node) -> None:
    """Over a real link: the remote endpoint answers the node, and a remote client is served through the node."""
    space.shell("ip link add near type veth peer name far && ip link set near up")
    space.shell("ip address add 10.9.0.1/24 dev near")
    space.sysctl("net.ipv4.ip_forward", 1)
    with Space() as other:
        with space.inside():
            space.give("far", other)
        other.shell("ip link set far up && ip address add 10.9.0.2/24 dev far")
        other.shell("ip route add default via 10.9.0.1")
        other.echo("10.9.0.2", 8080)
        with space.inside():
            assert node.want(frontend(VIP, 80, "10.9.0.2"), frontend(VIP, 81, A)).ok
            with connect(VIP, 80) as flow:
                assert said(flow) == ("10.9.0.2", "10.0.0.1")
        assert other.ask(VIP, 81) == A
