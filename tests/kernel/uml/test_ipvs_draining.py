"""Endpoints that go while connections are open, on a real kernel."""

from __future__ import annotations

import socket
import struct

import pytest

from meshlib.agent.netlink.generic import find_family, parse_family
from meshlib.agent.netlink.ipvs import Codec, RealKey, RealServer, ServiceKey
from meshlib.agent.netlink.socket import GENERIC, NetlinkSocket
from tests.components.process import wait_for
from tests.kernel.uml.node import Node, frontend
from tests.kernel.uml.space import Space, connect, said

VIP = "10.96.0.10"
A, B = "10.1.0.1", "10.1.0.2"
KEY = ServiceKey("TCP", VIP, 80)


@pytest.fixture
def node(space: Space) -> Node:
    """Two endpoints, and the sysctls as the agent sets them."""
    space.address("10.0.0.1", A, B)
    space.sysctl("net.ipv4.vs.expire_nodest_conn", 1)
    for each in (A, B):
        space.echo(each, 8080)
    return Node()


def test_the_control_a_destination_deleted_at_once_resets(space: Space, node: Node) -> None:
    """What draining is for: removed and added anew, as kube-proxy does with one that returns, a flow is reset."""
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow, NetlinkSocket(GENERIC) as netlink:
        assert said(flow)[0] == A
        codec = Codec(parse_family(netlink.request(find_family("IPVS"))[0], "IPVS"))
        netlink.request(codec.remove_destination(KEY, RealKey(A, 8080)))
        with pytest.raises(ConnectionResetError):
            said(flow)
        netlink.request(codec.add_destination(KEY, RealKey(A, 8080), RealServer()))
        with pytest.raises(OSError):
            said(flow)


@pytest.mark.acceptance(48, 82)
def test_an_endpoint_with_connections_keeps_them_one_without_goes(space: Space, node: Node) -> None:
    """Weight 0 and still answering for the open flow, no new ones; the idle endpoint is deleted at once."""
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow:
        assert said(flow)[0] == A
        node.want(frontend(VIP, 80, A, B))
        assert node.want(frontend(VIP, 80)).ok
        assert node.weights() == {A: 0}
        assert said(flow)[0] == A
        assert space.ask(VIP, 80) == "refused"
        node.want(frontend(VIP, 80, B))
        assert {space.ask(VIP, 80) for _ in range(4)} == {B}
        assert said(flow)[0] == A
        assert node.audit().plan == ()


@pytest.mark.acceptance(49)
def test_udp_goes_at_once(space: Space, node: Node) -> None:
    """A UDP endpoint is deleted although a flow is known, and the flow moves on."""
    for each in (A, B):
        space.echo(each, 8080, "UDP")
    node.want(frontend(VIP, 80, A, protocol="UDP"))
    with connect(VIP, 80, "UDP") as flow:
        assert said(flow)[0] == A
        node.want(frontend(VIP, 80, B, protocol="UDP"))
        assert node.weights() == {B: 1}
        # The first packet ends the old flow in the kernel, and may be lost with it.
        flow.settimeout(1.0)

        def moved() -> bool:
            try:
                return said(flow)[0] == B
            except OSError:
                return False

        assert wait_for(moved, what="the flow to move")


@pytest.mark.acceptance(49)
def test_sctp_goes_at_once(space: Space, node: Node) -> None:
    """SCTP is treated as UDP is."""
    node.want(frontend(VIP, 80, A, B, protocol="SCTP"))
    node.want(frontend(VIP, 80, B, protocol="SCTP"))
    assert node.weights() == {B: 1}


@pytest.mark.acceptance(50)
def test_a_draining_endpoint_goes_with_its_last_connection(space: Space, node: Node) -> None:
    """It is looked at again and again; once the kernel has forgotten the connection, it is deleted."""
    node = Node(drain_seconds=1e6)
    node.want(frontend(VIP, 80, A))
    flow = connect(VIP, 80)
    with flow:
        assert said(flow)[0] == A
        node.want(frontend(VIP, 80))
        assert not node.drained()
        assert node.weights() == {A: 0}
        # A reset instead of a FIN: the kernel remembers that for 10 s instead of 2 minutes.
        flow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(node.drained, timeout=40, interval=0.5, what="the connection to be forgotten")
    assert node.weights() == {}


@pytest.mark.acceptance(51)
def test_an_endpoint_that_returns_while_draining_keeps_its_connections(space: Space, node: Node) -> None:
    """The weight is restored in place: one write, the old flow goes on, new ones come, nothing drains."""
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow:
        assert said(flow)[0] == A
        node.want(frontend(VIP, 80))
        assert node.weights() == {A: 0}
        before = node.wire.writes
        assert node.want(frontend(VIP, 80, A)).ok
        assert node.wire.writes == before + 1
        assert node.weights() == {A: 1}
        assert said(flow)[0] == A
        assert space.ask(VIP, 80) == A
        assert node.drained()
        assert said(flow)[0] == A


@pytest.mark.acceptance(51)
def test_an_endpoint_that_returns_after_its_draining_entry_was_deleted(space: Space, node: Node) -> None:
    """Somebody deleted what drained: it is added anew."""
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow:
        said(flow)
        node.want(frontend(VIP, 80))
        space.shell(f"ipvsadm -d -t {VIP}:80 -r {A}:8080")
        assert node.want(frontend(VIP, 80, A)).ok
    assert node.weights() == {A: 1}
    assert space.ask(VIP, 80) == A


@pytest.mark.acceptance(52)
def test_the_deadline_ends_the_draining(space: Space, node: Node) -> None:
    """With an idle flow that never ends: after the deadline it is cut."""
    node = Node(drain_seconds=25.0)
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow:
        said(flow)
        node.want(frontend(VIP, 80))
        began = node.now
        while not node.drained():
            assert node.weights() == {A: 0}
        assert node.now == began + 25.0
        assert node.weights() == {}
        with pytest.raises(OSError):
            said(flow)


@pytest.mark.acceptance(52)
def test_an_endpoint_whose_node_is_gone_is_cut(space: Space, node: Node) -> None:
    """Nobody will answer any more: the client learns it with its next packet."""
    node.want(frontend(VIP, 80, A, B))
    flows = [connect(VIP, 80) for _ in range(2)]
    answers = {said(flow)[0]: flow for flow in flows}
    node.want(frontend(VIP, 80))
    assert node.weights() == {A: 0, B: 0}
    node.backend.cut({A}, node.now)
    node.backend.tick(node.now)
    assert node.weights() == {B: 0}
    with pytest.raises(OSError):
        said(answers[A])
    assert said(answers[B])[0] == B
    for flow in flows:
        flow.close()


def test_no_draining_at_all(space: Space, node: Node) -> None:
    """With no time to drain, removal is at once."""
    node = Node(drain_seconds=0)
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow:
        said(flow)
        node.want(frontend(VIP, 80))
        assert node.weights() == {}


def test_a_virtual_server_that_goes_takes_its_draining_endpoints_along(space: Space, node: Node) -> None:
    """Nothing is left to look at, the cut flows are counted, and a new server under its name starts afresh."""
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow:
        said(flow)
        node.want(frontend(VIP, 80))
        node.want()
        assert node.backend.servers.cut_connections == 1
        assert node.drained()
        assert node.want(frontend(VIP, 80, A)).ok
        assert node.weights() == {A: 1}


@pytest.mark.acceptance(99)
def test_a_restart_adopts_what_drains(space: Space, node: Node) -> None:
    """The new agent writes nothing at all, the flow goes on, and the draining ends as if there had been no restart."""
    node.want(frontend(VIP, 80, A, B))
    flows = [connect(VIP, 80) for _ in range(2)]
    answers = {said(flow)[0]: flow for flow in flows}
    node.want(frontend(VIP, 80, B))
    new = node.restart(drain_seconds=25.0)
    new.ask(frontend(VIP, 80, B))
    assert new.write().ok
    assert new.wire.writes == 0
    assert said(answers[A])[0] == A
    assert said(answers[B])[0] == B
    assert new.weights() == {A: 0, B: 1}
    assert new.audit().plan == ()
    while not new.drained():
        pass
    assert new.weights() == {B: 1}
    for flow in flows:
        flow.close()


@pytest.mark.acceptance(51, 99)
def test_a_restart_gives_a_returning_endpoint_its_weight_back(space: Space, node: Node) -> None:
    """One that drained under the old agent and is wanted again keeps its connections."""
    node.want(frontend(VIP, 80, A))
    with connect(VIP, 80) as flow:
        said(flow)
        node.want(frontend(VIP, 80))
        new = node.restart()
        new.ask(frontend(VIP, 80, A))
        assert new.write().ok
        assert new.wire.writes == 1
        assert new.weights() == {A: 1}
        assert said(flow)[0] == A


@pytest.mark.acceptance(53)
def test_a_rolling_update_under_load_fails_no_request(space: Space) -> None:
    """20 endpoints replaced one by one, with a request on a new and one on an open connection at every step."""
    old = [f"10.1.1.{each}" for each in range(1, 21)]
    new = [f"10.1.2.{each}" for each in range(1, 21)]
    space.address("10.0.0.1", *old, *new)
    space.sysctl("net.ipv4.vs.expire_nodest_conn", 1)
    for each in old + new:
        space.echo(each, 8080)
    node = Node()
    node.want(frontend(VIP, 80, *old))
    flows = [connect(VIP, 80) for _ in range(20)]
    owners = [said(flow)[0] for flow in flows]
    assert set(owners) == set(old)
    for step in range(1, 21):
        serving = new[:step] + old[step:]
        assert node.want(frontend(VIP, 80, *serving)).ok
        assert space.ask(VIP, 80) in serving
        assert [said(flow)[0] for flow in flows] == owners
    assert node.weights() == {**dict.fromkeys(old, 0), **dict.fromkeys(new, 1)}
    for flow in flows:
        flow.close()
