"""Leaving mode ipvs, or changing its shape: make before break, on a real kernel."""

from __future__ import annotations

from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.engine.leftovers import Departed, Leftovers, others
from meshlib.agent.netlink.generic import find_family, parse_family
from meshlib.agent.netlink.ipvs import Codec, ServiceKey, VirtualServer
from meshlib.agent.netlink.socket import GENERIC, NetlinkSocket
from tests.kernel.uml.node import OPEN, Node, frontend, node_is_empty
from tests.kernel.uml.space import Space, connect, said

VIP, A = "10.96.0.10", "10.1.0.1"
FOREIGN = ServiceKey("TCP", "10.0.0.1", 9)


def leftovers(node: Node, kept: tuple[str, ...], told: list[Departed]) -> Leftovers:
    """As a new agent in another mode would make them, with the old one's ledger."""
    shapes = [IpvsBackend(binding="anyip"), IpvsBackend(binding="dummy")]
    OPEN.extend(shapes)
    olds = others("other", kept, [("ipvs", 4, each) for each in shapes])
    return Leftovers(olds, node.programmer.ledger, node.journal.extend, told.append)


def test_another_mode(space: Space) -> None:
    """Open connections keep their endpoint until their time is over; then all of ours is gone, and nothing else."""
    space.address("10.0.0.1", A)
    space.echo(A, 8080)
    node = Node()
    node.want(frontend(VIP, 80, A))
    with NetlinkSocket(GENERIC) as netlink:
        codec = Codec(parse_family(netlink.request(find_family("IPVS"))[0], "IPVS"))
        netlink.request(codec.add_service(FOREIGN, VirtualServer()))
    told: list[Departed] = []
    going = leftovers(node, (), told)
    with connect(VIP, 80) as flow:
        assert said(flow)[0] == A
        due = going.step(1000.0)
        assert due is not None
        assert node.weights() == {A: 0}
        assert said(flow)[0] == A
        due = going.step(due)
        assert due is not None
        assert said(flow)[0] == A
        while due is not None:
            due = going.step(due)
    assert set(node.services()) == {FOREIGN}
    assert node.routes() == {}
    assert not node.programmer.ledger.owned
    assert sum(each.removed for each in told) == 3
    assert all(not each.failed and not each.error for each in told)


def test_from_a_device_to_routes(space: Space) -> None:
    """The device goes; virtual servers and their connections stay; the next look gives addresses their routes."""
    space.address("10.0.0.1", A)
    space.echo(A, 8080)
    before = Node(binding="dummy")
    before.want(frontend(VIP, 80, A))
    assert "meshlib0" in space.shell("ip link")
    with connect(VIP, 80) as flow:
        assert said(flow)[0] == A
        node = before.restart(binding="anyip")
        assert node.want(frontend(VIP, 80, A)).ok
        told: list[Departed] = []
        assert leftovers(node, node.backend.kinds, told).step(1000.0) is None
        assert "meshlib0" not in space.shell("ip link")
        node.programmer.look_again(node.now)
        assert node.write().ok
        assert node.routes() == {VIP: "10.0.0.1"}
        assert said(flow)[0] == A
    assert space.ask(VIP, 80) == A
    assert not node_is_empty(node)
