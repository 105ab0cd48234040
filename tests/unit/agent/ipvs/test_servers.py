"""Virtual servers over a socket that says what the test wants: the answers that a real kernel rarely gives."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.backends.ipvs import probe as probing
from meshlib.agent.desired import Place
from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.generic import HEADER
from meshlib.agent.netlink.ipvs import Codec, RealKey, RealServer, ServiceKey, VirtualServer
from meshlib.agent.netlink.messages import Message, Request, attribute
from meshlib.agent.netlink.socket import KernelRefused
from meshlib.agent.objects import ObjectKey, Operation, Verb

SERVICE = ServiceKey("TCP", "10.96.0.10", 80)
REAL = RealKey("10.1.0.1", 8080)
SERVICE_OBJECT = ObjectKey("service", SERVICE)
DESTINATION = ObjectKey("destination", (*SERVICE, *REAL))
ADD, SET, REMOVE = Verb.ADD, Verb.SET, Verb.REMOVE
NEW_DEST, SET_DEST, DEL_DEST = 5, 6, 7


class Script:
    """A kernel: ``refuse`` decides about each command, ``connections`` are those of every destination."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.refuse: Callable[[int], int] = lambda command: 0
        self.dumping: OSError | None = None
        self.connections = 0
        self.opening: OSError | None = None

    def __call__(self, protocol: int) -> Any:
        if self.opening:
            raise self.opening
        return self

    def request(self, request: Request) -> list[Message]:
        body = attribute(1, (0x1C).to_bytes(2, "little")) + attribute(2, b"IPVS\0")
        return [Message(0x10, 0, 1, 0, HEADER.pack(1, 1) + body)]

    def dump(self, request: Request) -> list[Message]:
        if self.dumping:
            raise self.dumping
        told = Codec(0x1C).add_destination(SERVICE, REAL, RealServer(0)).payload
        nest = told[4 + 48 + 4 :]  # behind the head, the virtual server, and the nest's own header
        counts = b"".join(attribute(kind, self.connections.to_bytes(4, "little")) for kind in (7, 8, 9))
        return [Message(0x1C, 0, 1, 0, HEADER.pack(NEW_DEST, 1) + attribute(2, nest + counts))]

    def batch(self, requests: Iterable[Request]) -> dict[int, Refusal]:
        commands = [request.payload[0] for request in requests]
        self.sent += commands
        refused = {index: self.refuse(command) for index, command in enumerate(commands)}
        return {index: Refusal(number, "") for index, number in refused.items() if number}

    def close(self) -> None:
        pass


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def backend(script: Script) -> IpvsBackend:
    return IpvsBackend(connect=script, drain_seconds=60.0)


def remove(backend: IpvsBackend, now: float = 0.0) -> Any:
    return backend.apply((Operation(REMOVE, DESTINATION, RealServer()),), now)


def test_no_ipvs_at_all(script: Script, backend: IpvsBackend) -> None:
    """Every operation fails with the reason, and nothing is raised."""
    script.opening = KernelRefused(errno.ENOENT, "No such file or directory")
    failed = backend.apply(
        (Operation(ADD, SERVICE_OBJECT, VirtualServer()), Operation(ADD, DESTINATION, RealServer())), 0.0
    )
    assert [(each.operation.verb, each.errno) for each in failed] == [(ADD, errno.ENOENT)] * 2
    with pytest.raises(OSError):
        backend.dump(4)


def test_connections_that_cannot_be_counted_are_not_cut(script: Script, backend: IpvsBackend) -> None:
    """The destination drains, and is looked at again when its time comes."""
    script.dumping = OSError(errno.ENOBUFS, "lost")
    assert remove(backend) == []
    assert script.sent == [SET_DEST]
    assert backend.servers.draining == 1
    due = backend.tick(0.0)
    assert due is not None
    assert backend.tick(due) is not None
    assert backend.servers.refused[errno.ENOBUFS] == 2
    script.dumping = None
    later = backend.tick(due)
    assert later is not None
    assert backend.tick(later) is None
    assert script.sent == [SET_DEST, DEL_DEST]


def test_a_torn_dump_is_an_error_not_an_empty_kernel(script: Script, backend: IpvsBackend) -> None:
    """Reading raises OSError; it is never taken for nothing being there."""
    script.dump = lambda request: [Message(0x1C, 0, 1, 0, b"\1\1\0\0" + b"\xff" * 7)]  # type: ignore[method-assign]
    with pytest.raises(OSError) as caught:
        backend.servers.dump(4)
    assert caught.value.errno == errno.EBADMSG


def test_a_removal_that_is_refused_goes_on_draining(script: Script, backend: IpvsBackend) -> None:
    """With weight 0 it takes nothing new; deleting it is tried again."""
    script.refuse = lambda command: errno.EBUSY if command == DEL_DEST else 0
    assert remove(backend) == []
    assert backend.servers.draining == 1
    script.refuse = lambda command: 0
    due = backend.tick(0.0)
    assert due is not None
    assert backend.tick(due) is None


def test_a_weight_that_cannot_be_set_is_a_failure(script: Script, backend: IpvsBackend) -> None:
    """Nothing is deleted, nothing drains."""
    script.refuse = lambda command: errno.EPERM if command == SET_DEST else 0
    (failure,) = remove(backend)
    assert failure.errno == errno.EPERM
    assert "CAP_NET_ADMIN" in failure.text
    assert (script.sent, backend.servers.draining) == ([SET_DEST], 0)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESRCH])
def test_what_is_gone_already_is_removed(script: Script, backend: IpvsBackend, number: int) -> None:
    """Somebody else was faster: nothing failed, nothing waits."""
    script.refuse = lambda command: number
    assert remove(backend) == []
    assert backend.tick(0.0) is None


def test_a_returning_destination_that_is_refused_goes_on_draining(
    script: Script, backend: IpvsBackend
) -> None:
    """Only success ends the draining."""
    script.connections = 1
    remove(backend)
    script.refuse = lambda command: errno.ENOMEM
    (failure,) = backend.apply((Operation(ADD, DESTINATION, RealServer()),), 1.0)
    assert (failure.errno, backend.servers.draining) == (errno.ENOMEM, 1)
    script.refuse = lambda command: 0
    assert backend.apply((Operation(ADD, DESTINATION, RealServer()),), 1.0) == []
    assert backend.servers.draining == 0
    assert script.sent == [SET_DEST] * 3


def test_a_service_that_stays_keeps_its_destinations_known(script: Script, backend: IpvsBackend) -> None:
    """Its removal is refused: what was to go with it did not go either."""
    script.refuse = lambda command: errno.EPERM if command == 3 else 0
    plan = Operation(REMOVE, DESTINATION, RealServer()), Operation(REMOVE, SERVICE_OBJECT, VirtualServer())
    failed = backend.apply(plan, 0.0)
    assert {each.operation.key for each in failed} == {DESTINATION, SERVICE_OBJECT}
    assert script.sent == [3]


def test_removing_again_keeps_the_deadline(script: Script, backend: IpvsBackend) -> None:
    """An audit that comes across a draining destination does not give it more time."""
    script.connections = 1
    remove(backend, now=0.0)
    backend.apply((Operation(REMOVE, DESTINATION, RealServer(0)),), 50.0)
    now = 0.0
    while (due := backend.tick(now)) is not None:
        now = due
    assert now == 60.0


@pytest.mark.acceptance(106)
@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOENT, "modprobe ip_vs"), (errno.EPERM, "CAP_NET_ADMIN"), (errno.EMFILE, "EMFILE")],
)
def test_the_probe_names_the_way_out(
    script: Script, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    """What is missing, and what to do about it."""
    monkeypatch.setattr(probing, "_elsewhere", lambda connect: connect(16))
    script.opening = OSError(number, "no")
    probe = IpvsBackend(connect=script).probe()
    assert not probe.usable
    assert hint in probe.reason


def test_the_fixed_part_is_empty() -> None:
    """Nothing of IPVS is there without a frontend."""
    assert IpvsBackend().fixed(Place(4)) == {}
