"""Whose virtual servers are whose, what happens behind our back, and dying at the worst moment, on a real kernel."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from itertools import count

import pytest

from meshlib.agent.desired import Frontend
from meshlib.agent.engine.guard import Guard
from meshlib.agent.engine.programmer import Written
from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.ipvs import ServiceKey, VirtualServer
from meshlib.agent.netlink.messages import Request
from meshlib.agent.netlink.socket import NetlinkSocket
from tests.kernel.uml.node import Crash, Node, Wire, frontend, service_object
from tests.kernel.uml.space import Space, connect, said

VIP, OTHER_VIP, FOREIGN = "10.96.0.10", "10.96.0.11", "192.0.2.1"
A, B, C = "10.1.0.1", "10.1.0.2", "10.1.0.3"


@pytest.fixture
def node(space: Space) -> Node:
    """Three endpoints."""
    space.address("10.0.0.1", A, B, C)
    return Node()


def foreign(space: Space) -> str:
    """What somebody else has made: virtual servers by address and by mark, a local route, and an address."""
    space.shell(f"ipvsadm -A -t {FOREIGN}:80 -s wlc && ipvsadm -a -t {FOREIGN}:80 -r {C}:80 -m -w 7")
    space.shell(f"ipvsadm -a -t {FOREIGN}:80 -r {B}:80 -m -w 0")
    space.shell("ipvsadm -A -f 7 -s rr && ipvsadm -A -t [2001:db8::1]:80 -s rr")
    space.shell(f"ip route add local {FOREIGN} dev lo table local proto 200")
    return shown(space)


def shown(space: Space) -> str:
    """Everything, as others see it."""
    return space.shell("ipvsadm -Sn; ip route show table local; ip address")


@pytest.mark.acceptance(95, 96, 97)
def test_what_others_made_survives_everything(space: Space, node: Node) -> None:
    """Start, audits, changes, restart and clean-up leave the rest of the kernel exactly as it was."""
    before = foreign(space)
    assert node.want(frontend(VIP, 80, A, B), frontend(OTHER_VIP, 80)).ok
    assert node.audit().plan == ()
    node.want(frontend(VIP, 80, B))
    new = node.restart()
    new.ask(frontend(VIP, 80, C))
    assert new.write().ok
    assert new.want().ok  # clean-up is wanting nothing
    assert shown(space) == before
    again = new.audit()
    assert (again.ok, again.plan) == (True, ())
    assert shown(space) == before


@pytest.mark.acceptance(96)
def test_a_foreign_virtual_server_in_a_wanted_place_is_left_alone(space: Space, node: Node) -> None:
    """It is reported, not changed, and neither are its destinations; told to adopt, it becomes ours."""
    space.shell(f"ipvsadm -A -t {VIP}:80 -s wlc && ipvsadm -a -t {VIP}:80 -r {C}:9 -m")
    node.want(frontend(VIP, 80, A), frontend(VIP, 81, A))
    assert service_object(VIP, 80) in node.programmer.planner.foreign
    assert "wlc" in space.shell("ipvsadm -Sn")
    reals = {(service.port, real.address) for service, real in node.destinations()}
    assert reals == {(80, C), (81, A)}
    adopting = node.restart(adopt=True)
    adopting.ask(frontend(VIP, 80, A), frontend(VIP, 81, A))
    adopting.write()
    adopting.audit()
    assert node.services() == dict.fromkeys(
        (ServiceKey("TCP", VIP, 80), ServiceKey("TCP", VIP, 81)), VirtualServer()
    )


def test_a_virtual_server_made_between_reading_and_writing_is_not_overwritten(
    space: Space, node: Node
) -> None:
    """The addition is refused as existing; after the next reading it is known as foreign."""
    node.want(frontend(VIP, 81, A))
    space.shell(f"ipvsadm -A -t {VIP}:80 -s wlc")
    written = node.want(frontend(VIP, 81, A), frontend(VIP, 80, A, B))
    assert [failure.errno for failure in written.failed] == [errno.EEXIST, 0, 0]
    assert all("somebody else" in failure.text for failure in written.failed)
    assert f"-A -t {VIP}:80 -s wlc" in space.shell("ipvsadm -Sn")
    assert {service.port for service, _ in node.destinations()} == {81}
    node.write()
    assert service_object(VIP, 80) in node.programmer.planner.foreign


@pytest.mark.acceptance(95)
def test_excluded_networks_are_never_touched(space: Space) -> None:
    """Neither when we made the server ourselves once, nor when it is wanted."""
    space.address("10.0.0.1", A)
    node = Node()
    node.want(frontend(VIP, 80, A), frontend("10.97.0.1", 80, A))
    new = node.restart(excluded=("10.97.0.0/16",))
    new.ask(frontend(VIP, 80, A), frontend("10.97.0.2", 80, A))
    new.write()
    assert {key.address for key in node.services()} == {VIP, "10.97.0.1"}


@pytest.mark.acceptance(98)
@pytest.mark.parametrize(
    "damage",
    [
        f"ipvsadm -D -t {VIP}:80",
        f"ipvsadm -d -t {VIP}:80 -r {A}:8080",
        f"ipvsadm -e -t {VIP}:80 -r {A}:8080 -m -w 9",
        f"ipvsadm -E -t {VIP}:80 -s wlc -p 60",
        f"ipvsadm -a -t {VIP}:80 -r {C}:8080 -m",
        f"ip route del local {VIP} dev lo table local",
        f"ip route replace local {VIP} dev lo table local proto 109",
        "ipvsadm -C; ip route flush table local proto 109",
    ],
)
def test_damage_done_behind_our_back_is_mended(space: Space, node: Node, damage: str) -> None:
    """Whatever is deleted or changed by hand is as wanted after one audit, and stays so."""
    wanted = frontend(VIP, 80, A, B), frontend(OTHER_VIP, 80, C)
    node.want(*wanted)
    before = shown(space)
    space.shell(damage)
    assert shown(space) != before
    assert node.audit().ok
    assert sorted(shown(space).split("\n")) == sorted(before.split("\n"))
    assert node.audit().plan == ()


def test_changes_meet_damage_that_is_not_known_yet(space: Space, node: Node) -> None:
    """Removing what is gone is no failure; adding what is there corrects it; the rest is told and then mended."""
    node.want(frontend(VIP, 80, A, B), frontend(VIP, 81, A))
    space.shell(f"ipvsadm -d -t {VIP}:80 -r {A}:8080; ipvsadm -D -t {VIP}:81")
    space.shell(f"ipvsadm -a -t {VIP}:80 -r {C}:8080 -m -w 5")
    space.shell(f"ip route del local {VIP} dev lo table local")
    assert node.want(frontend(VIP, 80, B, C)).ok
    assert node.weights() == {B: 1, C: 1}
    space.shell(f"ipvsadm -D -t {VIP}:80")
    written = node.want(frontend(VIP, 80, A, B, C))
    assert [failure.errno for failure in written.failed] == [errno.ESRCH]
    assert node.write().ok
    assert node.weights() == {A: 1, B: 1, C: 1}
    assert node.routes() == {VIP: "10.0.0.1"}


@pytest.mark.acceptance(99)
def test_a_restart_with_nothing_changed_writes_nothing(space: Space, node: Node) -> None:
    """Not one message, and open connections do not notice."""
    space.echo(A, 8080)
    wanted = frontend(VIP, 80, A, B), frontend(VIP, 53, A, protocol="UDP"), frontend("", 30080, A)
    node.want(*wanted)
    with connect("10.0.0.1", 30080) as flow:
        assert said(flow)[0] == A
        new = node.restart()
        new.ask(*wanted)
        written = new.write()
        assert (written.ok, written.plan, new.wire.writes) == (True, (), 0)
        assert said(flow)[0] == A


BEFORE = (
    frontend(VIP, 80, A, B),
    frontend(VIP, 81, A),
    frontend(OTHER_VIP, 80, A),
    frontend("", 30080, A),
)
AFTER = (
    frontend(VIP, 80, B, C, scheduler="wlc"),
    frontend("10.96.0.12", 53, A, protocol="UDP"),
    frontend("", 30080, C, affinity_seconds=60),
)


SETTLED = {
    ServiceKey("TCP", VIP, 80): VirtualServer("wlc"),
    ServiceKey("UDP", "10.96.0.12", 53): VirtualServer(),
    ServiceKey("TCP", "10.0.0.1", 30080): VirtualServer("rr", 1, 60),
}


@pytest.mark.acceptance(101)
def test_a_crash_at_every_single_write(space: Space, node: Node) -> None:
    """The agent dies before its n-th write; the next one, with the journal, gets there, and orphans nothing."""
    before = foreign(space)
    for number in count():
        assert node.want(*BEFORE).ok
        node.wire.crash_at = node.wire.writes + number
        crashed = _crashes(node, AFTER)
        new = node.restart()
        new.ask(*AFTER)
        assert new.write().ok, number
        assert new.audit().plan == (), number
        assert {key: value for key, value in new.services().items() if key.address != FOREIGN} == SETTLED
        assert new.routes() == dict.fromkeys((VIP, "10.96.0.12"), "10.0.0.1")
        # Cleaned up by yet another one.
        node = new.restart()
        node.ask()
        assert node.write().ok, number
        assert shown(space) == before, number
        if not crashed:
            break
    assert number >= 12  # as many writes as the change takes at least


@pytest.mark.acceptance(97, 101)
def test_a_crash_while_cleaning_up(space: Space, node: Node) -> None:
    """Whatever was left is removed by the next clean-up."""
    before = foreign(space)
    for number in count():
        assert node.want(*BEFORE).ok
        node.wire.crash_at = node.wire.writes + number
        crashed = _crashes(node, ())
        node = node.restart()
        node.ask()
        assert node.write().ok, number
        assert shown(space) == before, number
        if not crashed:
            break
    assert number >= 6


def _crashes(node: Node, wanted: Sequence[Frontend]) -> bool:
    try:
        node.want(*wanted)
    except Crash:
        return True
    return False


class _SmallBuffer(NetlinkSocket):
    """Room for a few answers only, and sends that are too large for that."""

    def __init__(self, protocol: int) -> None:
        super().__init__(protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 2304)  # SO_RCVBUFFORCE

    def batch(self, requests: Iterable[Request], *rest: int) -> dict[int, Refusal]:
        return super().batch(requests, 100_000, 1 << 20)


def test_lost_answers(space: Space) -> None:
    """ENOBUFS: every operation whose fate is not known counts as failed, and the next write settles all of them."""
    space.address("10.0.0.1", A)
    wanted = [frontend(VIP, port, A) for port in range(1000, 1200)]
    node = Node(connect=_SmallBuffer)
    node.programmer.guard = Guard(share=1.0)
    # Refused by the hundred: an endpoint that is no host's address.
    bad = [frontend(OTHER_VIP, port, "224.0.0.1") for port in range(1000, 1400)]
    written: Written = node.want(*wanted, *bad)
    numbers = {failure.errno for failure in written.failed}
    assert errno.ENOBUFS in numbers
    assert node.backend.servers.refused[errno.ENOBUFS] > 0
    assert node.want(*wanted).ok
    assert node.audit().plan == ()
    assert len(node.destinations()) == len(wanted)


@pytest.mark.acceptance(107)
def test_without_the_capability_nothing_is_lost_and_it_is_told(space: Space, node: Node) -> None:
    """EPERM comes back as the error of the write; with the right to do it the same change goes through."""
    node.ask(frontend(VIP, 80, A))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            written = node.write()
            os.write(write, f"{getattr(written.error, 'errno', None)} {len(written.plan)}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == f"{errno.EPERM} 0"
    os.waitpid(child, 0)
    assert node.services() == {}
    assert node.write().ok
    assert len(node.services()) == 1


def test_every_operation_refused_says_why(space: Space, node: Node) -> None:
    """Operations that the kernel refuses come back one by one with errno and reason; the others are done."""
    written = node.want(frontend(VIP, 80, A, "224.0.0.1"), frontend(VIP, 81, B))
    (failure,) = written.failed
    assert failure.errno == errno.EINVAL
    assert "224.0.0.1" in str(failure.operation.key.name)
    assert "no host's" in failure.text
    assert node.weights() == {A: 1, B: 1}
    assert Wire().writes == 0
