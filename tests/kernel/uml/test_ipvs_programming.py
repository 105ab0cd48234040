"""What the ipvs backend makes of frontends, read back from a real kernel."""

from __future__ import annotations

import contextlib
import os

import pytest

from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.backends.ipvs.kernel import IpvsKernel
from meshlib.agent.desired import Place
from meshlib.agent.engine.cleanup import clean
from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.generic import find_family, parse_family
from meshlib.agent.netlink.ipvs import Codec, RealKey, RealServer, ServiceKey, Timeouts, VirtualServer
from meshlib.agent.netlink.socket import GENERIC, NetlinkSocket
from meshlib.agent.objects import ObjectKey
from tests.kernel.uml.node import Node, frontend, node_is_empty
from tests.kernel.uml.space import Space, connect, said

VIP, OTHER_VIP = "10.96.0.10", "10.96.0.11"
A, B, C = "10.1.0.1", "10.1.0.2", "10.1.0.3"


@pytest.fixture
def node(space: Space) -> Node:
    """A node with one address and three endpoints that answer on port 8080."""
    space.address("10.0.0.1", A, B, C)
    return Node()


@pytest.fixture
def node6(space: Space) -> Node:
    """The same in IPv6."""
    space.address("fd00::1", "fd01::1", "fd01::2")
    space.wait_for_addresses()
    return Node(family=6)


def test_the_probe_finds_both_families_and_leaves_nothing(space: Space) -> None:
    """The functional probe makes its virtual servers elsewhere, or removes them."""
    probe = IpvsBackend().probe()
    assert probe.usable, probe.reason
    assert probe.families == (4, 6)
    assert not probe.complete
    assert "without a companion" in probe.reason
    assert "1.2.1" in probe.reason
    assert Node().services() == {}
    assert Node(family=6).services() == {}


@pytest.mark.acceptance(106)
def test_the_probe_says_what_is_missing_without_capabilities(space: Space) -> None:
    """Without CAP_NET_ADMIN the probe names it, and raises nothing."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            probe = IpvsBackend().probe()
            os.write(write, f"{probe.usable} {probe.reason}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    assert told.startswith("False "), told
    assert "CAP_NET_ADMIN" in told


@pytest.mark.acceptance(54, 104)
def test_a_frontend_becomes_a_virtual_server_with_its_destinations(space: Space, node: Node) -> None:
    """Addresses, ports, weights and order are what was asked for, and a second write does nothing."""
    written = node.want(frontend(VIP, 80, A, (B, 9090), (C, 8080)))
    assert written.ok, written
    key = ServiceKey("TCP", VIP, 80)
    assert node.services() == {key: VirtualServer("rr", 0, 0, 32)}
    assert node.destinations() == {
        (key, RealKey(A, 8080)): RealServer(1),
        (key, RealKey(B, 9090)): RealServer(1),
        (key, RealKey(C, 8080)): RealServer(1),
    }
    assert node.routes() == {VIP: "10.0.0.1"}
    before = node.wire.writes
    again = node.audit()
    assert (again.plan, node.wire.writes) == ((), before)


@pytest.mark.acceptance(108)
def test_ipv6(space: Space, node6: Node) -> None:
    """The same in IPv6, with traffic; the family beside it has nothing."""
    space.echo("fd01::1", 8080)
    written = node6.want(frontend("fd96::10", 80, "fd01::1"), frontend("fd96::10", 81))
    assert written.ok, written
    assert space.ask("fd96::10", 80) == "fd01::1"
    assert space.ask("fd96::10", 81) == "refused"
    assert node6.routes() == {"fd96::10": "fd00::1"}
    assert node6.audit().plan == ()
    assert Node().services() == {}
    node6.want()
    assert node_is_empty(node6)


@pytest.mark.acceptance(55, 59, 76)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_no_endpoint_refuses_at_once(space: Space, node: Node, protocol: str) -> None:
    """A virtual server without destinations stands, and refuses; with one it answers."""
    assert node.want(frontend(VIP, 80, protocol=protocol)).ok
    assert node.destinations() == {}
    assert len(node.services()) == 1
    assert space.ask(VIP, 80, protocol) == "refused"
    space.echo(A, 8080, protocol)
    node.want(frontend(VIP, 80, A, protocol=protocol))
    assert space.ask(VIP, 80, protocol) == A
    # The control: without a virtual server the address is the host's, where nobody listens; without a route it is not.
    node.want()
    assert node.routes() == {}


@pytest.mark.acceptance(56, 57)
def test_a_virtual_server_is_edited_in_place(space: Space, node: Node) -> None:
    """Scheduler, persistence and timeout change under an open connection; each change is one write."""
    space.echo(A, 8080)
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow:
        assert said(flow)[0] == A
        for change in (
            {"scheduler": "wlc"},
            {"scheduler": "wlc", "affinity_seconds": 300},
            {"affinity_seconds": 600},
            {},
        ):
            before = node.wire.writes
            written = node.want(frontend(VIP, 80, A, **change))
            assert written.ok, written
            assert node.wire.writes == before + 1
            assert said(flow)[0] == A
            assert node.audit().plan == ()
    assert node.services() == {ServiceKey("TCP", VIP, 80): VirtualServer("rr", 0, 0, 32)}


@pytest.mark.acceptance(8, 58)
def test_two_ports_share_the_route_of_an_address(space: Space, node: Node) -> None:
    """The address is bound once, and goes with the last of its ports; TCP and UDP are two."""
    frontends = frontend(VIP, 53, A), frontend(VIP, 53, A, protocol="UDP"), frontend(VIP, 80, A)
    assert node.want(*frontends).ok
    assert len(node.services()) == 3
    for left in (frontends[1:], frontends[2:]):
        node.want(*left)
        assert (len(node.services()), node.routes()) == (len(left), {VIP: "10.0.0.1"})
    node.want()
    assert node_is_empty(node)


@pytest.mark.acceptance(60)
def test_an_address_of_a_device_is_neither_bound_nor_removed(space: Space, node: Node) -> None:
    """A virtual address that the host has already is served, not routed, and still there at the end."""
    space.address(VIP)
    space.echo(A, 8080)
    assert node.want(frontend(VIP, 80, A)).ok
    assert space.ask(VIP, 80) == A
    assert f"local {VIP} dev lo proto kernel" in space.shell(f"ip route show table local {VIP}")
    assert node.routes() == {}
    assert node.audit().plan == ()
    assert node.want().ok
    assert VIP in space.shell("ip address show dev lo")


@pytest.mark.acceptance(60)
def test_an_address_that_leaves_its_device_becomes_ours(space: Space, node: Node) -> None:
    """Once no device has it any more, the next audit binds it."""
    space.address(VIP)
    node.want(frontend(VIP, 80, A))
    space.route.request(rtnl.remove_address(VIP, 1))
    assert node.audit().ok
    assert node.routes() == {VIP: "10.0.0.1"}


@pytest.mark.acceptance(67)
def test_a_node_port_is_served_on_every_address_of_the_node(space: Space) -> None:
    """One virtual server for each address and protocol, none on loopback, and no routes."""
    place = Place(4, ("10.0.0.1", "10.0.0.2", "127.0.0.1"), source="10.0.0.1")
    space.address("10.0.0.1", "10.0.0.2", A)
    node = Node(place=place)
    protocols = ("TCP", "UDP", "SCTP")
    assert node.want(*(frontend("", 30080, A, protocol=each) for each in protocols)).ok
    expected = {(each, address, 30080) for each in protocols for address in ("10.0.0.1", "10.0.0.2")}
    assert set(node.services()) == expected
    assert len(node.destinations()) == 6
    assert node.routes() == {}
    for protocol in ("TCP", "UDP"):
        space.echo(A, 8080, protocol)
        assert [space.ask(each, 30080, protocol) for each in place.node_addresses[:2]] == [A, A]


def test_the_node_gets_another_address(space: Space, node: Node) -> None:
    """Node ports move to it, and the routes' source hints change in place."""
    space.address("10.0.0.9")
    node.want(frontend(VIP, 80, A), frontend("", 30080, A))
    node.programmer.move(Place(4, ("10.0.0.9",), source="10.0.0.9"))
    assert node.write().ok
    assert node.routes() == {VIP: "10.0.0.9"}
    assert {key.address for key in node.services()} == {VIP, "10.0.0.9"}
    assert node.audit().plan == ()


def test_weights(space: Space, node: Node) -> None:
    """Round robin does not know weights, so unequal ones are served by its weighted twin."""
    space.echo(A, 8080)
    space.echo(B, 8080)
    node.want(frontend(VIP, 80, (A, 8080, 3), (B, 8080, 1)))
    assert node.services()[ServiceKey("TCP", VIP, 80)].scheduler == "wrr"
    answers = [space.ask(VIP, 80) for _ in range(20)]
    assert (answers.count(A), answers.count(B)) == (15, 5)


def test_a_scheduler_that_the_kernel_lacks(space: Space, node: Node) -> None:
    """Round robin serves in its place; it is told, is no drift, and a restart writes it once again at most."""
    wanted = frontend(VIP, 80, A, scheduler="nosuch")
    assert node.want(wanted).ok
    assert node.services()[ServiceKey("TCP", VIP, 80)].scheduler == "rr"
    assert node.backend.servers.missing_schedulers == {"nosuch"}
    assert node.audit().plan == ()
    assert node.want(frontend(VIP, 80, A, scheduler="lc")).ok
    assert node.services()[ServiceKey("TCP", VIP, 80)].scheduler == "lc"


def test_all_schedulers_of_the_settings_can_be_programmed(space: Space, node: Node) -> None:
    """mh comes with the hash over ports; the kernel loads the modules by itself."""
    names = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf")
    frontends = [frontend(VIP, port, A, scheduler=name) for port, name in enumerate(names, 1000)]
    assert node.want(*frontends).ok
    found = node.services()
    assert [found[ServiceKey("TCP", VIP, port)].scheduler for port in range(1000, 1013)] == list(names)
    assert found[ServiceKey("TCP", VIP, 1010)].flags == 0x10
    assert node.backend.servers.missing_schedulers == frozenset()


@pytest.mark.acceptance(80)
def test_session_affinity(space: Space, node: Node) -> None:
    """With ClientIP a client stays with one endpoint; switched off, it spreads again."""
    for each in (A, B, C):
        space.echo(each, 8080)
    node.want(frontend(VIP, 80, A, B, C, affinity_seconds=10800))
    assert node.services()[ServiceKey("TCP", VIP, 80)] == VirtualServer("rr", 1, 10800, 32)
    assert len({space.ask(VIP, 80) for _ in range(9)}) == 1
    node.want(frontend(VIP, 80, A, B, C))
    assert len({space.ask(VIP, 80) for _ in range(9)}) == 3


@pytest.mark.acceptance(66)
def test_the_node_talks_to_a_virtual_address_from_its_own(space: Space, node: Node) -> None:
    """The endpoint sees the node's address as the source, not the virtual one (which a remote one could not answer)."""
    space.echo(A, 8080)
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow:
        assert said(flow) == (A, "10.0.0.1")
    # The control: without the hint it would be the virtual address.
    bare = Node(place=Place(4, ("10.0.0.1",)))
    bare.want(frontend(OTHER_VIP, 80, A))
    with connect(OTHER_VIP, 80) as flow:
        assert said(flow) == (A, OTHER_VIP)


def test_the_dummy_device(space: Space) -> None:
    """The other binding: a device of ours holds the addresses, and goes with the last of them, in both families."""
    space.address("10.0.0.1", A, "fd01::1")
    four, six = Node(binding="dummy"), Node(family=6, binding="dummy")
    space.echo(A, 8080)
    assert four.want(frontend(VIP, 80, A), frontend(OTHER_VIP, 80, A)).ok
    assert six.want(frontend("fd96::10", 80, "fd01::1")).ok
    assert space.ask(VIP, 80) == A
    shown = space.shell("ip address show dev meshlib0")
    assert all(each in shown for each in (f"{VIP}/32", f"{OTHER_VIP}/32", "fd96::10/128", "NOARP"))
    assert four.audit().plan == six.audit().plan == ()
    four.want(frontend(VIP, 80, A))
    assert OTHER_VIP not in space.shell("ip address show dev meshlib0")
    four.want()
    four.programmer.planner.change((0,), four.backend.fixed(four.programmer.place), {})
    assert four.write().ok
    assert "meshlib0" in space.shell("ip link show")
    six.want()
    six.programmer.planner.change((0,), six.backend.fixed(six.programmer.place), {})
    assert six.write().ok
    assert "meshlib0" not in space.shell("ip link show")


@pytest.mark.acceptance(105)
def test_one_endpoint_among_many_is_one_write(space: Space, node: Node) -> None:
    """Whatever else is programmed, an endpoint that comes costs one message."""
    many = [frontend(VIP, port, A, B) for port in range(1000, 1300)]
    assert node.want(*many).ok
    before = node.wire.writes
    node.want(*many[1:], frontend(VIP, 1000, A, B, C))
    assert node.wire.writes == before + 1
    assert len(node.destinations()) == 601


def test_timeouts_that_are_asked_for(space: Space) -> None:
    """They are set, held against others who change them, and left as they are at the end; the rest is never touched."""
    node = Node(timeouts=Timeouts(0, 30, 60))
    assert node.want().ok
    assert node.backend.words(ObjectKey("timeouts", ""), Timeouts(0, 30, 60)).endswith(
        "tcp_fin 30 s, udp 60 s"
    )

    def there() -> Timeouts:
        with contextlib.closing(IpvsKernel(NetlinkSocket)) as kernel:
            return kernel.timeouts()

    assert there() == Timeouts(900, 30, 60)
    space.shell("ipvsadm --set 800 40 60")
    assert node.audit().ok
    assert there() == Timeouts(800, 30, 60)
    assert not node.audit().plan
    clean(node.backend, 4, node.programmer.ledger, lambda lines: None, node.now)
    assert there() == Timeouts(800, 30, 60)


def test_namespace_timeouts(space: Space) -> None:
    """The IPVS timeouts of the namespace can be read and set; zero leaves one alone."""
    with NetlinkSocket(GENERIC) as netlink:
        codec = Codec(parse_family(netlink.request(find_family("IPVS"))[0], "IPVS"))
        assert codec.timeouts(netlink.request(codec.get_timeouts())[0]) == Timeouts(900, 120, 300)
        netlink.request(codec.set_timeouts(Timeouts(0, 30, 0)))
        assert codec.timeouts(netlink.request(codec.get_timeouts())[0]) == Timeouts(900, 30, 300)
