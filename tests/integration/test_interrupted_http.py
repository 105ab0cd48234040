"""Requests interrupted at every wait, on each wire: cancelled tasks, and Ctrl-C in blocking calls.

Afterwards nothing is in flight, no place in a pool is taken, every open connection is idle, and the next request
is served although the client may have one connection only.
"""

from __future__ import annotations

import _thread
import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx.body import settle_abandoned
from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from meshlib.observe import tally
from meshlib.pickers.subchannel import Subchannel
from tests.components.backends import Backends, HttpBackend
from tests.components.interrupt import Moment, each_block, each_wait, uninterrupted
from tests.components.process import free_port
from tests.unit.clients_httpx.fakes import FakeHandle

#: name: (wire, TLS, HTTP/2)
WIRES = {
    "fast": ("fast", False, False),
    "fast-tls": ("fast", True, False),
    "httpcore": ("httpcore", False, False),
    "httpcore-tls": ("httpcore", True, False),
    "h2": ("fast", True, True),
}
PARTS = [b"a" * 1000, b"b" * 40_000, b"c"]
LIMITS = httpx.Limits(max_connections=1)


def combinations(works: list[Any]) -> list[Any]:
    """Everything on plain connections; over TLS what differs there: connecting, streaming, waiting for each other."""
    return [
        pytest.param(name, work, id=f"{name}-{work.__name__}")
        for name, (_, tls, _) in WIRES.items()
        for work in (works[:3] if tls else works)
    ]


@pytest.fixture(autouse=True)
def _counting_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics count up at every connection and failure, not now and then: that takes a lock, and may be interrupted."""
    monkeypatch.setattr(tally, "MOST_NEWS", 0)


@pytest.fixture
def scene(request: pytest.FixtureRequest, backends: Backends) -> Scene:
    wire, tls, http2 = WIRES[request.param]
    (server,) = backends.http(1, tls="orders.shop.svc" if tls else None)
    verify = backends.client_context() if tls else False
    return Scene(
        wire, server, f"http{'s' if tls else ''}://orders.shop.svc", {"verify": verify, "http2": http2}
    )


@dataclass
class Scene:
    """A server, and the endpoints that a client is told."""

    wire: str
    server: HttpBackend
    url: str
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.handle = FakeHandle()
        self.seen: set[Subchannel] = set()
        self.refusing = ("127.0.0.1", free_port("127.0.0.1"))
        self.joins()

    def joins(self, *more: tuple[str, int]) -> None:
        """The endpoint leaves and another takes its place: what was connected is closed."""
        self.tell([])
        self.tell([*more, (self.server.host, self.server.port)])

    def tell(self, endpoints: list[tuple[str, int]]) -> None:
        with uninterrupted():  # the control thread's work
            self.handle.replace(endpoints)
            self.seen.update(self.handle.subchannels.values())

    def aio_client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(limits=LIMITS, **self.options, **options)
        pool = AsyncMeshPool(transport._pool, load(), handle=self.handle, wire=self.wire)  # type: ignore[arg-type]
        transport._pool = pool  # type: ignore[assignment]
        return httpx.AsyncClient(transport=transport)

    def client(self, **options: Any) -> httpx.Client:
        transport = httpx.HTTPTransport(limits=LIMITS, **self.options, **options)
        pool = MeshPool(transport._pool, load(), handle=self.handle, wire=self.wire)  # type: ignore[arg-type]
        transport._pool = pool  # type: ignore[assignment]
        return httpx.Client(transport=transport)

    @property
    def inflight(self) -> int:
        return sum(subchannel.inflight for subchannel in self.seen)


def engine_of(client: Any) -> Any:
    pool = client._transport._pool
    return pool._engine if isinstance(pool, MeshPool) else pool._engines[asyncio.get_running_loop()]


def idle_connections(engine: Any) -> int:
    """Connections that are idle, over both wires."""
    core = getattr(engine, "_other", engine)
    found = sum(connection.is_idle() for pool in core._all() for connection in pool._connections)
    if core is not engine:
        lists = engine._slots._lists.values()
        found += sum(len(slot.idle) for by_name in lists for slot in by_name.values())
    return found


def is_at_rest(engine: Any, scene: Scene) -> bool:
    return (scene.inflight, engine.in_use(), engine.allowance.used) == (0, 0, idle_connections(engine))


def settle(engine: Any) -> None:
    """What the next request does first. httpx drops a response that is interrupted between its transport and its
    caller, for example while it takes the cookies; the garbage collector finds such a one."""
    gc.collect()
    settle_abandoned()
    engine.tidy()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def turns_until(fact: Callable[[], bool]) -> bool:
    """What the loop still has to do is closing connections: a few turns, whatever the machine does."""
    for _ in range(200):
        if fact():
            return True
        await asyncio.sleep(0)
    return fact()


def eventually(fact: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not fact() and time.monotonic() < end:
        time.sleep(0.005)
    return fact()


async def parts() -> AsyncIterator[bytes]:
    for part in PARTS:
        await asyncio.sleep(0)
        yield part


# what is interrupted, asyncio


async def get_fresh(scene: Scene, client: httpx.AsyncClient) -> None:
    scene.joins()
    assert (await client.get(scene.url)).status_code == 200


async def get_again(scene: Scene, client: httpx.AsyncClient) -> None:
    assert (await client.get(scene.url)).status_code == 200


async def stream_both_ways(scene: Scene, client: httpx.AsyncClient) -> None:
    async with client.stream("POST", f"{scene.url}/echo", content=parts()) as reply:
        got = b""
        async for part in reply.aiter_raw():
            got += part
    assert got == b"".join(PARTS)


async def leave_half_way(scene: Scene, client: httpx.AsyncClient) -> None:
    async with client.stream("GET", f"{scene.url}/stream/50/0") as reply:
        async for _ in reply.aiter_raw():
            break


async def wait_in_the_queue(scene: Scene, client: httpx.AsyncClient) -> None:
    async def other() -> None:
        async with client.stream("GET", f"{scene.url}/stream/3/0") as reply:
            await reply.aread()

    first = asyncio.ensure_future(other())
    try:
        await client.get(scene.url)
    finally:
        await first


async def move_on(scene: Scene, client: httpx.AsyncClient) -> None:
    scene.joins(scene.refusing)
    assert (await client.get(scene.url)).status_code == 200


async def give_up(scene: Scene, client: httpx.AsyncClient) -> None:
    scene.tell([scene.refusing])
    try:
        with pytest.raises(httpx.ConnectError):
            await client.get(scene.url)
    finally:
        scene.joins()


AIO = [get_fresh, stream_both_ways, wait_in_the_queue, get_again, leave_half_way, move_on, give_up]


@pytest.mark.parametrize("moment", ["at once", "too late"])
@pytest.mark.parametrize(("scene", "work"), combinations(AIO), indirect=["scene"])
def test_cancelled_at_every_wait(
    scene: Scene, moment: Moment, work: Callable[[Scene, httpx.AsyncClient], Coroutine[Any, Any, None]]
) -> None:
    """Nothing is left in flight, taken or open but idle; the next request is served; at the end all is closed."""

    async def main() -> int:
        async with scene.aio_client(retries=1 if work is give_up else 0) as client:
            await client.get(scene.url)
            for run in each_wait(lambda: work(scene, client), moment):
                await run()
                engine = engine_of(client)
                assert await turns_until(partial(is_at_rest, engine, scene)), (
                    run.nth,
                    scene.inflight,
                    engine.in_use(),
                    engine.allowance.used,
                    idle_connections(engine),
                )
                again = await client.get(scene.url, timeout=5)
                assert (again.status_code, again.text) == (200, scene.server.name), run.nth
        assert engine.allowance.used == 0
        return run.nth

    before = descriptors()
    assert asyncio.run(main()) > 1
    gc.collect()
    assert eventually(lambda: scene.server.connections == 0)
    assert eventually(lambda: descriptors() <= before)


# what is interrupted, in threads


def sync_parts() -> Iterator[bytes]:
    yield from PARTS


def sync_get_fresh(scene: Scene, client: httpx.Client) -> None:
    scene.joins()
    assert client.get(scene.url).status_code == 200


def sync_get_again(scene: Scene, client: httpx.Client) -> None:
    assert client.get(scene.url).status_code == 200


def sync_stream_both_ways(scene: Scene, client: httpx.Client) -> None:
    with client.stream("POST", f"{scene.url}/echo", content=sync_parts()) as reply:
        assert b"".join(reply.iter_raw()) == b"".join(PARTS)


def sync_leave_half_way(scene: Scene, client: httpx.Client) -> None:
    with client.stream("GET", f"{scene.url}/stream/50/0") as reply:
        next(reply.iter_raw())


def sync_wait_in_the_queue(scene: Scene, client: httpx.Client) -> None:
    """Interrupted while another thread has the connection. Nothing here but the request can be interrupted."""
    other = Other(scene, client)
    while not other.entered:
        os.sched_yield()
    try:
        client.get(scene.url)
    finally:
        while not other.left:
            os.sched_yield()


class Other:
    """Streams in a thread of its own."""

    def __init__(self, scene: Scene, client: httpx.Client) -> None:
        self.entered = self.left = False
        self._scene, self._client = scene, client
        _thread.start_new_thread(self._stream, ())  # threading's own waits for the thread to begin

    def _stream(self) -> None:
        try:
            with self._client.stream("GET", f"{self._scene.url}/stream/3/0.002") as reply:
                self.entered = True
                reply.read()
        finally:
            self.entered = self.left = True


def sync_move_on(scene: Scene, client: httpx.Client) -> None:
    scene.joins(scene.refusing)
    assert client.get(scene.url).status_code == 200


def sync_give_up(scene: Scene, client: httpx.Client) -> None:
    scene.tell([scene.refusing])
    try:
        with pytest.raises(httpx.ConnectError):
            client.get(scene.url)
    finally:
        scene.joins()


SYNC = [
    sync_get_fresh,
    sync_stream_both_ways,
    sync_wait_in_the_queue,
    sync_get_again,
    sync_leave_half_way,
    sync_move_on,
    sync_give_up,
]


@pytest.mark.parametrize("after", [False, True], ids=["instead", "after"])
@pytest.mark.parametrize(("scene", "work"), combinations(SYNC), indirect=["scene"])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # a socket that was just made, its result lost
def test_interrupted_in_every_blocking_call(
    scene: Scene, after: bool, work: Callable[[Scene, httpx.Client], None]
) -> None:
    """The same for KeyboardInterrupt, in the stead of a blocking call or when its result was about to come."""
    before = descriptors()
    with scene.client(retries=1 if work is sync_give_up else 0) as client:
        client.get(scene.url)
        for run in each_block(lambda: work(scene, client), after=after):
            run()
            engine = engine_of(client)
            if not is_at_rest(engine, scene):
                settle(engine)
            assert is_at_rest(engine, scene), (
                run.where,
                scene.inflight,
                engine.in_use(),
                engine.allowance.used,
                idle_connections(engine),
            )
            again = client.get(scene.url, timeout=5)
            assert (again.status_code, again.text) == (200, scene.server.name), run.where
    assert run.nth > 1
    assert engine.allowance.used == 0
    gc.collect()
    assert eventually(lambda: scene.server.connections == 0)
    assert eventually(lambda: descriptors() <= before)
