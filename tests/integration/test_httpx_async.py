"""httpx.AsyncClient over the mesh against real servers: loops, cancellation, removal; every request is counted."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx import AsyncMeshTransport
from meshlib.clients.httpx.body import settle_abandoned
from meshlib.clients.httpx.pool import AsyncMeshPool
from meshlib.errors import NoEndpoints
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.components.backends import Backends, HttpBackend
from tests.unit.clients_httpx.fakes import FakeHandle, async_transport

URL = "http://orders.shop.svc"

pytestmark = pytest.mark.usefixtures("wire")


def handle_for(backends: list[HttpBackend]) -> FakeHandle:
    return FakeHandle([(backend.host, backend.port) for backend in backends])


async def eventually(check: Callable[[], bool], seconds: float = 5.0) -> bool:
    for _ in range(int(seconds / 0.01)):
        if check():
            return True
        await asyncio.sleep(0.01)
    return check()


def settled(handle: FakeHandle) -> bool:
    settle_abandoned()
    return handle.inflight == 0


def test_requests_are_spread_and_see_the_logical_name(backends: Backends) -> None:
    """Sixty at a time: equal shares, the logical Host, nothing in flight, all connections closed at the end."""
    servers = backends.http(3)
    handle = handle_for(servers)

    async def main() -> None:
        async with httpx.AsyncClient(transport=async_transport(handle)) as client:
            replies = await asyncio.gather(*(client.get(f"{URL}/a") for _ in range(60)))
            assert {reply.headers["x-host"] for reply in replies} == {"orders.shop.svc"}
        assert await eventually(lambda: not any(server.connections for server in servers))

    asyncio.run(main())
    assert [server.requests for server in servers] == [20, 20, 20]
    assert settled(handle)


def test_real_mesh_with_a_static_target(backends: Backends) -> None:
    """The transport, the runtime and a static target together, from a cold start."""
    servers = backends.http(2)
    target = "static:///" + ",".join(server.address for server in servers)

    async def main() -> None:
        async with Mesh() as mesh:
            transport = AsyncMeshTransport(target, mesh=mesh)
            async with httpx.AsyncClient(transport=transport) as client:
                replies = await asyncio.gather(*(client.get(URL) for _ in range(20)))
                assert {reply.status_code for reply in replies} == {200}
            (handle,) = mesh.handles
            assert sum(endpoint["inflight"] for endpoint in handle.status()["endpoints"]) == 0

    asyncio.run(main())
    assert sum(server.requests for server in servers) == 20


def test_streaming_bodies_both_ways(backends: Backends) -> None:
    """An async generator goes up once; a reply is in flight until it was read or closed."""
    servers = backends.http(2)
    handle = handle_for(servers)

    async def main() -> None:
        async def parts() -> Any:
            for part in (b"one ", b"two"):
                yield part

        async with httpx.AsyncClient(transport=async_transport(handle)) as client:
            assert (await client.post(f"{URL}/echo", content=parts())).content == b"one two"
            async with client.stream("GET", f"{URL}/stream/5/0.01") as reply:
                assert handle.inflight == 1
                assert len((await reply.aread()).splitlines()) == 5
                assert handle.inflight == 0
            async with client.stream("GET", f"{URL}/stream/100/0.01"):
                assert handle.inflight == 1
            assert handle.inflight == 0

    asyncio.run(main())


def test_refused_moves_on_and_post_is_sent_once(backends: Backends) -> None:
    """One of two refuses: every generator body arrives exactly once."""
    servers = backends.http(2)
    servers[0].stop()
    handle = handle_for(servers)

    async def main() -> None:
        async def body(number: int) -> Any:
            yield b"order "
            yield str(number).encode()

        async with httpx.AsyncClient(transport=async_transport(handle)) as client:
            for number in range(6):
                reply = await client.post(f"{URL}/echo", content=body(number))
                assert reply.content == f"order {number}".encode()

    asyncio.run(main())
    assert [server.requests for server in servers] == [0, 6]
    assert settled(handle)


def test_errors_are_httpx_types(backends: Backends) -> None:
    """Known to be empty: ConnectError at once with the reason; all refused: ConnectError."""
    (server,) = backends.http(1)
    server.stop()

    async def call(handle: FakeHandle) -> httpx.ConnectError:
        async with httpx.AsyncClient(transport=async_transport(handle)) as client:
            with pytest.raises(httpx.ConnectError) as caught:
                await client.get(URL)
            return caught.value

    assert isinstance(asyncio.run(call(FakeHandle([]))).__cause__, NoEndpoints)
    handle = handle_for([server])
    asyncio.run(call(handle))
    assert settled(handle)


def test_cancellation_at_every_step_leaves_nothing(backends: Backends) -> None:
    """Cancelled after 0, 1, 2, ... turns of the loop: no count, no pool slot and no connection is left behind."""
    (server,) = backends.http(1)
    handle = handle_for([server])

    transport = async_transport(handle)

    def engine() -> Any:
        pool: Any = transport._pool
        return pool._engines[asyncio.get_running_loop()]

    async def main() -> int:
        async with httpx.AsyncClient(transport=transport) as client:
            for turns in range(2000):
                if turns % 3 == 0:  # a new connection as well as a reused one
                    handle.replace([])
                    handle.replace([(server.host, server.port)])
                subchannels = list(handle.subchannels.values())
                task = asyncio.create_task(client.get(f"{URL}/stream/2/0"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                survived = task.done()
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    assert not survived
                assert sum(subchannel.inflight for subchannel in subchannels) == 0, turns
                assert sum(subchannel.failures for subchannel in subchannels) == 0, turns
                if survived and turns > 30:
                    assert engine().in_use() == 0
                    assert await eventually(lambda: server.connections <= 1)
                    return turns
        raise AssertionError("no request ever ended")

    assert asyncio.run(main()) > 30


def test_removed_endpoint_finishes_what_it_has(backends: Backends) -> None:
    """Told from another thread: idle connections close on their own loop, a stream in flight is read to its end."""
    servers = backends.http(2)
    handle = handle_for(servers)

    async def main() -> None:
        async with httpx.AsyncClient(transport=async_transport(handle)) as client:
            for _ in range(2):
                await client.get(URL)
            async with client.stream("GET", f"{URL}/stream/20/0.01") as reply:
                await asyncio.to_thread(handle.replace, [(servers[1].host, servers[1].port)])
                assert {(await client.get(URL)).text for _ in range(5)} == {servers[1].name}
                assert len((await reply.aread()).splitlines()) == 20
            assert await eventually(lambda: servers[0].connections == 0)
            await asyncio.to_thread(handle.replace, [])
            assert await eventually(lambda: servers[1].connections == 0)

    asyncio.run(main())


def test_three_loops_and_more_use_one_client(backends: Backends) -> None:
    """Three loops in three threads at a time, three rounds of loops: each has its own connections, no error."""
    servers = backends.http(2)
    handle = handle_for(servers)
    transport = async_transport(handle)
    client = httpx.AsyncClient(transport=transport)
    pool: Any = transport._pool
    together = threading.Barrier(3)

    async def work() -> int:
        together.wait(10)
        replies = await asyncio.gather(*(client.get(URL) for _ in range(20)))
        for engine in [pool._engines[asyncio.get_running_loop()]]:
            await engine.close()
        return sum(reply.status_code == 200 for reply in replies)

    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            results = [threads.submit(asyncio.run, work()) for _ in range(3)]
            assert [result.result(30) for result in results] == [20, 20, 20]
    assert sum(server.requests for server in servers) == 180
    asyncio.run(client.aclose())
    assert pool._engines == {}
    assert settled(handle)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_loop_closed_without_aclose(backends: Backends) -> None:
    """The next loop works, removals in between do not disturb it, and engines of dead loops are dropped."""
    servers = backends.http(2)
    handle = handle_for(servers)
    transport = async_transport(handle)
    client = httpx.AsyncClient(transport=transport)

    async def call() -> int:
        return (await client.get(URL)).status_code

    assert asyncio.run(call()) == 200
    handle.replace([(servers[1].host, servers[1].port)])
    assert asyncio.run(call()) == 200
    pool = transport._pool
    assert isinstance(pool, AsyncMeshPool)
    assert len(pool._engines) == 1
    asyncio.run(client.aclose())
    gc.collect()


def test_inherited_connections_are_left_alone(backends: Backends) -> None:
    """After a fork: new connections, and the inherited ones are neither used nor closed."""
    (server,) = backends.http(1)
    handle = handle_for([server])
    transport = async_transport(handle)

    async def main() -> None:
        async with httpx.AsyncClient(transport=transport) as client:
            await client.get(URL)
            (inherited,) = transport._pool._engines.values()  # type: ignore[attr-defined]
            transport._pool.after_fork()  # type: ignore[attr-defined]
            await client.get(URL)
            assert (server.accepted, server.connections) == (2, 2)
            handle.replace([])
            assert await eventually(lambda: server.connections == 1)
        assert inherited.pool_count() == 1
        assert server.connections == 1
        await inherited.close()

    asyncio.run(main())


def test_dropped_response_is_settled(backends: Backends) -> None:
    """A stream that nobody closes: the next request ends its lease and closes its half-read connection."""
    (server,) = backends.http(1)
    handle = handle_for([server])

    async def main() -> None:
        async with httpx.AsyncClient(transport=async_transport(handle)) as client:
            request = client.build_request("GET", f"{URL}/stream/1000/0.01")
            reply: Any = await client.send(request, stream=True)
            assert handle.inflight == 1
            del reply
            gc.collect()
            await client.get(URL)
            assert handle.inflight == 0
            assert await eventually(lambda: server.connections == 1)

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_client_dropped_without_close(backends: Backends) -> None:
    """Its loop goes on: its connections close, the idle one and that of a reply which nobody read."""
    (server,) = backends.http(1)
    handle = handle_for([server])

    async def main() -> None:
        client: Any = httpx.AsyncClient(transport=async_transport(handle))
        reply: Any = await client.send(client.build_request("GET", f"{URL}/stream/1000/0.01"), stream=True)
        await client.get(URL)
        assert server.connections == 2
        del client, reply
        gc.collect()
        gc.collect()  # what a finalizer of the first time brought back
        assert await eventually(lambda: server.connections == 0)

    asyncio.run(main())
    handle.replace([])


def test_unwrapped_client_drains(backends: Backends) -> None:
    """After unwrap a stream in flight is read to its end and its connection closes; new requests go elsewhere."""
    from meshlib.clients.httpx import unwrap, wrap

    (server,) = backends.http(1)
    handle = handle_for([server])

    class OneHost:
        config = load_config()

        def for_url(self, scheme: str, host: str, port: int | None) -> Any:
            return handle if host == "orders.shop.svc" else None

    async def main() -> None:
        async with wrap(httpx.AsyncClient(), OneHost()) as client:  # type: ignore[arg-type]
            async with client.stream("GET", f"{URL}/stream/10/0.01") as reply:
                unwrap(client)
                assert len((await reply.aread()).splitlines()) == 10
            assert await eventually(lambda: server.connections == 0)
            assert (await client.get(server.url)).headers["x-host"] == server.address

    asyncio.run(main())
    assert settled(handle)
