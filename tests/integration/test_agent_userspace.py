"""Userspace mode over loopback: real sockets, real endpoints, the engine's contract."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from meshlib.agent.backends.userspace import Proxy, UserspaceBackend
from meshlib.agent.backends.userspace.backend import waiting
from meshlib.agent.backends.userspace.room import Room
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
from meshlib.agent.objects import Failed, Operation, Verb
from meshlib.model.service import ServiceKey
from tests.components.process import free_port, wait_for

HOME = "127.0.0.1"
OWNER = PortKey(ServiceKey("shop", "web"), "http", "TCP")


class Served:
    """A loop in a thread with a proxy on it, and the backend as the engine's worker has it."""

    def __init__(self, room: int = 10_000, drain: float = 900.0, listen: str = HOME, **more: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.told: list[str] = []
        self.room = Room(room)
        self.proxy = Proxy(self.loop, self.room, random.random, self.told.append, drain, **more)
        self.backend = UserspaceBackend(4, [listen], self.proxy, waiting(self._submit))
        self.place = Place(4)
        self.there: dict[Any, Any] = {}

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._submit(coroutine).result(20)

    def want(self, *frontends: Frontend, now: float | None = None) -> list[Failed]:
        wanted: dict[Any, Any] = {}
        for frontend in frontends:
            wanted.update(self.backend.translate(frontend, self.place))
        plan = [
            Operation(Verb.SET if key in self.there else Verb.ADD, key, value)
            for key, value in wanted.items()
            if self.there.get(key) != value
        ]
        plan += [Operation(Verb.REMOVE, key, value) for key, value in self.there.items() if key not in wanted]
        failed = list(self.backend.apply(tuple(plan), time.monotonic() if now is None else now))
        self.there = dict(self.backend.dump(4))
        return failed

    def close(self, grace: float = 0.0) -> None:
        self.run(self.proxy.close(grace))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        assert self.room.taken == 0, "descriptors were not given back"


class Endpoint:
    """A TCP server; each connection is handled by a function in a thread."""

    def __init__(self, handle: Callable[[socket.socket], None], host: str = HOME) -> None:
        self.server = socket.create_server((host, 0))
        self.target = Target(host, self.server.getsockname()[1])
        self.handle = handle
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                flow, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(flow,), daemon=True).start()

    def _one(self, flow: socket.socket) -> None:
        with contextlib.suppress(OSError), flow:
            self.handle(flow)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()


def named(name: bytes) -> Callable[[socket.socket], None]:
    """Says its name after each piece."""

    def handle(flow: socket.socket) -> None:
        while flow.recv(100):
            flow.sendall(name)

    return handle


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.close()


@pytest.fixture
def endpoints() -> Iterator[Callable[..., Endpoint]]:
    made: list[Endpoint] = []

    def make(handle: Callable[[socket.socket], None]) -> Endpoint:
        made.append(Endpoint(handle))
        return made[-1]

    yield make
    for each in made:
        each.close()


def frontend(
    port: int, *targets: Target, address: str = "10.96.0.1", action: Action | None = None, **more: Any
) -> Frontend:
    route = Route(action or (Action.FORWARD if targets else Action.REJECT), tuple(sorted(targets)))
    kind = more.pop("kind", FrontendKind.CLUSTER_IP)
    key = FrontendKey(more.pop("protocol", "TCP"), address, port)
    return Frontend(key, kind, more.pop("owner", OWNER), route, **more)


def ask(port: int, host: str = HOME) -> bytes:
    with socket.create_connection((host, port), 10) as flow:
        flow.settimeout(10)
        flow.sendall(b"?")
        return flow.recv(100)


def test_turns_changes_and_refusal(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """Endpoints take turns; a change is at once in force; without any the port refuses, and it can come back."""
    one, two = endpoints(named(b"one")), endpoints(named(b"two"))
    port = free_port()
    assert served.want(frontend(port, one.target, two.target)) == []
    assert {ask(port) for _ in range(2)} == {b"one", b"two"}
    served.want(frontend(port, two.target))
    assert {ask(port) for _ in range(4)} == {b"two"}
    served.want(frontend(port))
    with pytest.raises(ConnectionRefusedError):
        ask(port)
    served.want(frontend(port, one.target))
    assert ask(port) == b"one"
    served.want()
    with pytest.raises(ConnectionRefusedError):
        ask(port)
    assert served.backend.dump(4) == {}


def test_a_drop_is_silent(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """Nothing answers, not even the handshake; and the port serves again afterwards."""
    port = free_port()
    served.want(frontend(port, action=Action.DROP))
    with pytest.raises(TimeoutError):
        socket.create_connection((HOME, port), 0.3)
    served.want(frontend(port, endpoints(named(b"one")).target))
    assert ask(port) == b"one"


def test_half_close_both_ways(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """The end of a direction arrives, and the other goes on: requests that end before their answers begin."""

    def count(flow: socket.socket) -> None:
        total = 0
        while data := flow.recv(1 << 16):
            total += len(data)
        flow.sendall(str(total).encode())

    def greet(flow: socket.socket) -> None:
        flow.sendall(b"hello")
        flow.shutdown(socket.SHUT_WR)
        flow.recv(100)

    port, other = free_port(), free_port()
    served.want(frontend(port, endpoints(count).target), frontend(other, endpoints(greet).target))
    with socket.create_connection((HOME, port), 10) as flow:
        flow.sendall(b"x" * 300_000)
        flow.shutdown(socket.SHUT_WR)
        assert flow.makefile("rb").read() == b"300000"
    with socket.create_connection((HOME, other), 10) as flow:
        assert flow.makefile("rb").read() == b"hello"
        flow.sendall(b"bye")


def test_a_slow_reader_stops_the_sender(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """What is not read is not gathered here; in the end everything arrives, in order."""
    total = 64 << 20
    sent = threading.Event()

    def pour(flow: socket.socket) -> None:
        flow.sendall(b"0123456789abcdef" * (total // 16))
        sent.set()

    port = free_port()
    served.want(frontend(port, endpoints(pour).target))
    with socket.create_connection((HOME, port), 10) as flow:
        first = flow.recv(16, socket.MSG_WAITALL)
        assert not sent.wait(0.5)
        received = len(first)
        while data := flow.recv(1 << 20):
            received += len(data)
    assert first == b"0123456789abcdef"
    assert received == total


def test_a_reset_is_passed_on(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """A connection that an endpoint breaks off does not look complete."""

    def break_off(flow: socket.socket) -> None:
        flow.recv(1)
        flow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    port = free_port()
    served.want(frontend(port, endpoints(break_off).target))
    with socket.create_connection((HOME, port), 10) as flow:
        flow.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            flow.recv(100)


def test_a_dead_endpoint_costs_no_connection(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """One that refuses is passed over; where all do, the client is reset."""
    dead = Target(HOME, free_port())
    port = free_port()
    served.want(frontend(port, dead, endpoints(named(b"one")).target))
    assert {ask(port) for _ in range(4)} == {b"one"}
    served.want(frontend(port, dead))
    with pytest.raises(ConnectionResetError):
        ask(port)


def test_draining(endpoints: Callable[..., Endpoint]) -> None:
    """A connection to a removed endpoint goes on until its time is over, and for good when the endpoint returns."""
    served = Served(drain=100.0)
    try:
        one, two = endpoints(named(b"one")), endpoints(named(b"two"))
        port = free_port()
        served.want(frontend(port, one.target))
        flow = socket.create_connection((HOME, port), 10)
        flow.sendall(b"?")
        assert flow.recv(9) == b"one"
        served.want(frontend(port, two.target), now=1000.0)
        assert served.backend.draining == 1
        assert served.backend.tick(1050.0) == 1100.0
        served.want(frontend(port, one.target, two.target), now=1060.0)
        assert served.backend.draining == 0
        assert served.backend.tick(1200.0) is None
        served.want(now=2000.0)
        flow.sendall(b"?")
        assert flow.recv(9) == b"one"
        assert served.backend.tick(2100.0) is None
        with pytest.raises(ConnectionResetError):
            flow.recv(9)
        flow.close()
    finally:
        served.close()


def test_ending_lets_connections_end(endpoints: Callable[..., Endpoint]) -> None:
    """No new ones while the open ones have their grace; what is left then is reset."""
    served = Served()
    port = free_port()
    served.want(frontend(port, endpoints(named(b"one")).target))
    short, long = (socket.create_connection((HOME, port), 10) for _ in range(2))
    for flow in (short, long):
        flow.sendall(b"?")
        assert flow.recv(9) == b"one"
    ending = asyncio.run_coroutine_threadsafe(served.proxy.close(1.0), served.loop)
    wait_for(lambda: not _listens(port), what="the end of listening")
    short.sendall(b"?")
    assert short.recv(9) == b"one"
    short.close()
    ending.result(20)
    with pytest.raises(ConnectionResetError):
        long.recv(9)
    long.close()
    served.close()


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOME, port), 1).close()
    except OSError:
        return False
    return True


def test_limits(endpoints: Callable[..., Endpoint]) -> None:
    """Beyond the limit connections wait in the kernel, and are served when others end."""
    served = Served(room=4)
    try:
        port = free_port()
        served.want(frontend(port, endpoints(named(b"one")).target))
        first = [socket.create_connection((HOME, port), 10) for _ in range(2)]
        for flow in first:
            flow.sendall(b"?")
            assert flow.recv(9) == b"one"
        with socket.create_connection((HOME, port), 10) as third:
            third.sendall(b"?")
            third.settimeout(0.3)
            with pytest.raises(TimeoutError):
                third.recv(9)
            first.pop().close()
            third.settimeout(10)
            assert third.recv(9) == b"one"
        first.pop().close()
    finally:
        served.close()


def test_thousands_at_once(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """Two thousand open connections, each answered."""
    port, target = free_port(), free_port()

    async def run() -> int:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(9))
            await reader.read()
            writer.close()
            await writer.wait_closed()
            gone.append(writer)

        gone: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(answer, HOME, target, backlog=4096)
        flows = [await asyncio.open_connection(HOME, port) for _ in range(2000)]
        for index, (_, writer) in enumerate(flows):
            writer.write(str(index).encode())
        answers = [await reader.read(9) for reader, _ in flows]
        for _, writer in flows:
            writer.close()
            await writer.wait_closed()
        while len(gone) < len(flows):
            await asyncio.sleep(0.01)
        server.close()
        return sum(answer == str(index).encode() for index, answer in enumerate(answers))

    served.want(frontend(port, Target(HOME, target)))
    assert asyncio.run(run()) == 2000


def test_two_frontends_want_one_socket(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """The smaller address has it, whoever came first, and the other is told of; it follows when the first goes."""
    one, two = endpoints(named(b"one")), endpoints(named(b"two"))
    port = free_port()
    second = frontend(port, two.target, address="10.96.0.2", owner=PortKey(ServiceKey("b", "two"), "", "TCP"))
    served.want(second)
    assert ask(port) == b"two"
    served.want(second, frontend(port, one.target))
    assert ask(port) == b"one"
    (line,) = served.told
    assert "10.96.0.2 (b/two:-/TCP)" in line
    served.want(second)
    assert ask(port) == b"two"
    assert len(served.told) == 1


def test_the_wildcard_address_serves_all_under_their_own(endpoints: Callable[..., Endpoint]) -> None:
    """The address that the client called says whose the connection is, in TCP and in UDP."""
    served = Served(listen="0.0.0.0")
    try:
        one, two = endpoints(named(b"one")), endpoints(named(b"two"))
        port = free_port()
        with _answering(b"udp1") as left, _answering(b"udp2") as right:
            served.want(
                frontend(port, one.target, address="127.0.0.11"),
                frontend(port, two.target, address="127.0.0.12"),
                frontend(port, left, address="127.0.0.11", protocol="UDP"),
                frontend(port, right, address="127.0.0.12", protocol="UDP"),
            )
            assert [ask(port, f"127.0.0.1{number}") for number in (1, 2)] == [b"one", b"two"]
            for number in (1, 2):
                # A connected socket takes answers from the called address alone.
                assert _ask_udp(port, f"127.0.0.1{number}") == b"udp%d" % number
        assert served.told == []
    finally:
        served.close()


def test_a_socket_that_cannot_be_had(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """Fails what wants it, with a reason, and nothing else; and works when the port is free again."""
    one = endpoints(named(b"one"))
    taken, port = socket.create_server((HOME, 0)), free_port()
    number = taken.getsockname()[1]
    (failure,) = served.want(frontend(number, one.target), frontend(port, one.target))
    assert failure.errno == errno.EADDRINUSE
    assert str(number) in failure.text
    assert ask(port) == b"one"
    taken.close()
    assert served.want(frontend(number, one.target), frontend(port, one.target)) == []
    assert ask(number) == b"one"


def test_source_ranges_and_the_short_circuit(served: Served, endpoints: Callable[..., Endpoint]) -> None:
    """Who may not is reset, who is inside goes the inside way."""
    one, two = endpoints(named(b"one")), endpoints(named(b"two"))
    closed, short = free_port(), free_port()
    served.want(
        frontend(closed, one.target, kind=FrontendKind.LOAD_BALANCER, source_ranges=("192.0.2.0/24",)),
        frontend(short, one.target, kind=FrontendKind.NODE_PORT, inside=Route(Action.FORWARD, (two.target,))),
    )
    with pytest.raises(ConnectionResetError):
        ask(closed)
    assert ask(short) == b"two"


def test_a_connection_to_itself_ends(served: Served) -> None:
    """An endpoint that is the frontend again does not go round for ever."""
    port = free_port()
    served.want(frontend(port, Target(HOME, port)))
    with pytest.raises(ConnectionResetError):
        ask(port)
    wait_for(lambda: served.room.taken == 0, what="the end of the round")


def test_udp(served: Served) -> None:
    """A flow stays with its endpoint, moves when that goes or refuses, and is silent where it is dropped."""
    port = free_port()
    with _answering(b"one") as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
        flow.settimeout(10)
        flow.connect((HOME, port))
        served.want(frontend(port, one, protocol="UDP"))
        for _ in range(3):
            flow.send(b"?")
            assert flow.recv(9) == b"one"
        with _answering(b"two") as two:
            served.want(frontend(port, one, two, protocol="UDP"))
            flow.send(b"?")
            assert flow.recv(9) == b"one"
            served.want(frontend(port, two, protocol="UDP"))
            flow.send(b"?")
            assert flow.recv(9) == b"two"
        served.want(frontend(port, action=Action.DROP, protocol="UDP"))
        flow.send(b"?")
        flow.settimeout(0.2)
        with pytest.raises(TimeoutError):
            flow.recv(9)
        served.want(frontend(port, protocol="UDP"))
        flow.send(b"?")
        flow.settimeout(10)
        with pytest.raises(ConnectionRefusedError):
            flow.recv(9)


def test_udp_flows_are_forgotten_when_idle_or_too_many() -> None:
    """Silence ends a flow; where there is no room the longest silent one makes it."""
    served = Served(room=2, udp_idle=0.2)
    port = free_port()
    try:
        with _answering(b"one") as one:
            served.want(frontend(port, one, protocol="UDP"))
            assert [_ask_udp(port) for _ in range(5)] == [b"one"] * 5
            assert len(served.proxy.flows) <= 2
            wait_for(lambda: not served.proxy.flows, what="silence to end the flows")
            assert _ask_udp(port) == b"one"
    finally:
        served.close()


def test_without_a_loop_nothing_is_served() -> None:
    """A dry run reads nothing and writes nothing; an address family without an address is not usable."""
    backend = UserspaceBackend(4, [HOME])
    assert backend.dump(4) == {}
    assert backend.tick(0.0) is None
    ((key, value),) = backend.translate(frontend(80, Target(HOME, 1)), Place(4)).items()
    (failure,) = backend.apply((Operation(Verb.ADD, key, value),), 0.0)
    assert failure.errno == errno.ENOTSUP
    assert backend.probe().families == (4,)
    assert UserspaceBackend(6, [HOME]).probe().families == ()


@contextlib.contextmanager
def _answering(name: bytes) -> Iterator[Target]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOME, 0))
        server.settimeout(0.1)
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    server.sendto(name, server.recvfrom(100)[1])

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Target(HOME, server.getsockname()[1])
        finally:
            stop.set()
            thread.join()


def _ask_udp(port: int, host: str = HOME) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
        flow.settimeout(10)
        flow.connect((host, port))
        flow.send(b"?")
        return flow.recv(100)
