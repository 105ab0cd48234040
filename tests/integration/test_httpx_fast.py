"""The fast wire's own duties: flow control, limits, stale and idle connections, TLS sessions, upgrades, timeouts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx.fast.aio_wire import READ_HIGH, AioConnection
from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from meshlib.runtime.lease import Lease
from tests.components.backends import Backends
from tests.components.scripted import CLOSE, ScriptedServer
from tests.unit.clients_httpx.fakes import FakeHandle

URL = "http://orders.shop.svc"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#: More than the socket buffers of both sides hold: Linux lets them grow to 6 MiB each.
HUGE = 32 * 1024 * 1024


def sync_client(ports: list[tuple[str, int]], cap: int | None = None, **options: Any) -> httpx.Client:
    transport = httpx.HTTPTransport(**{"verify": False, **options})
    pool: Any = MeshPool(transport._pool, load(), handle=FakeHandle(ports), wire="fast")  # type: ignore[arg-type]
    transport._pool = pool
    if cap is not None:
        pool._new_engine().allowance.cap = cap
    return httpx.Client(transport=transport)


def aio_client(ports: list[tuple[str, int]], cap: int | None = None, **options: Any) -> httpx.AsyncClient:
    """To be made on its loop."""
    transport = httpx.AsyncHTTPTransport(**{"verify": False, **options})
    pool: Any = AsyncMeshPool(transport._pool, load(), handle=FakeHandle(ports), wire="fast")  # type: ignore[arg-type]
    transport._pool = pool
    if cap is not None:
        pool._new_engine(asyncio.get_running_loop()).allowance.cap = cap
    return httpx.AsyncClient(transport=transport)


def engine_of(client: Any) -> Any:
    pool = client._transport._pool
    return pool._engine if isinstance(pool, MeshPool) else next(iter(pool._engines.values()))


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Accepts connections (in its backlog) and reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def address(listener: socket.socket) -> list[tuple[str, int]]:
    name = listener.getsockname()
    return [(name[0], name[1])]


# flow control


def test_a_reply_that_nobody_reads_stops_the_transport() -> None:
    """A huge reply and a reader that waits: what is kept in memory stays bounded, and every byte arrives."""
    with ScriptedServer([[b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % HUGE, b"x" * HUGE]]) as server:

        async def main() -> None:
            async with aio_client([("127.0.0.1", server.port)]) as client:
                async with client.stream("GET", URL) as reply:
                    stream = reply.extensions["network_stream"]
                    connection = stream._connection
                    while not connection._paused_reading:
                        await asyncio.sleep(0.001)
                    for _ in range(50):  # turns in which more could come
                        await asyncio.sleep(0)
                    assert READ_HIGH < connection.reply.size <= 3 * READ_HIGH
                    got = 0
                    async for part in reply.aiter_raw():
                        got += len(part)
                        assert connection.reply.size <= 3 * READ_HIGH
                    assert got == HUGE
                assert (await client.get(URL)).num_bytes_downloaded == HUGE
                assert server.connections == 1  # it was kept, and reads again

        asyncio.run(main())


def test_an_upload_waits_for_the_server(silent: socket.socket) -> None:
    """A generator is asked for no more than the buffers hold while the server does not read; then WriteTimeout."""
    asked = 0

    async def main() -> None:
        async def body() -> Any:
            nonlocal asked
            while True:
                asked += 1
                yield b"x" * 65536

        async with aio_client(address(silent)) as client:
            with pytest.raises(httpx.WriteTimeout):
                await client.post(URL, content=body(), timeout=httpx.Timeout(5, write=0.2))
            assert engine_of(client).in_use() == 0

    asyncio.run(main())
    assert asked < 20 * 1024 * 1024 // 65536


# timeouts of each kind


@pytest.mark.parametrize("kind", ["read", "write", "pool"])
def test_timeouts_are_httpx_own(silent: socket.socket, kind: str) -> None:
    """Sync and asyncio: the exception of the timeout that ran out; no place and no connection is left behind."""
    timeout = httpx.Timeout(5, **{kind: 0.05})
    expected = {"read": httpx.ReadTimeout, "write": httpx.WriteTimeout, "pool": httpx.PoolTimeout}[kind]
    options = {"limits": httpx.Limits(max_connections=1)}
    content = b"x" * HUGE if kind == "write" else b""
    done = threading.Event()

    def occupy(client: httpx.Client) -> None:
        with pytest.raises(httpx.ReadTimeout):
            client.get(URL, timeout=httpx.Timeout(5, read=0.5))
        done.set()

    with sync_client(address(silent), **options) as client:
        if kind == "pool":
            other = threading.Thread(target=occupy, args=(client,))
            other.start()
            while engine_of(client) is None or not engine_of(client).in_use():
                done.wait(0.001)
        with pytest.raises(expected):
            client.post(URL, content=content, timeout=timeout)
        if kind == "pool":
            other.join()
        assert engine_of(client).in_use() == 0

    async def main() -> None:
        async with aio_client(address(silent), **options) as client:
            first = None
            if kind == "pool":
                first = asyncio.create_task(client.get(URL, timeout=httpx.Timeout(5, read=0.5)))
                await asyncio.sleep(0.01)
            with pytest.raises(expected):
                await client.post(URL, content=content, timeout=timeout)
            if first is not None:
                with pytest.raises(httpx.ReadTimeout):
                    await first
            assert engine_of(client).in_use() == 0

    asyncio.run(main())


@pytest.fixture
def deaf() -> Iterator[list[tuple[str, int]]]:
    """An address that takes no more connections: its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        held = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            held.append(sock)
        yield address(listener)
        for sock in held:
            sock.close()


def test_connect_timeout(deaf: list[tuple[str, int]]) -> None:
    with sync_client(deaf) as client, pytest.raises(httpx.ConnectTimeout):
        client.get(URL, timeout=httpx.Timeout(5, connect=0.1))

    async def main() -> None:
        async with aio_client(deaf) as client:
            with pytest.raises(httpx.ConnectTimeout):
                await client.get(URL, timeout=httpx.Timeout(5, connect=0.1))
            assert engine_of(client).allowance.used == 0

    asyncio.run(main())


def test_tls_handshake_timeout(silent: socket.socket, backends: Backends) -> None:
    """A server that never answers the handshake: ConnectTimeout, as with httpcore."""
    options = {"verify": backends.client_context()}
    timeout = httpx.Timeout(5, connect=0.3)
    with sync_client(address(silent), **options) as client, pytest.raises(httpx.ConnectTimeout):
        client.get("https://orders.shop.svc", timeout=timeout)

    async def main() -> None:
        async with aio_client(address(silent), **options) as client:
            with pytest.raises(httpx.ConnectTimeout):
                await client.get("https://orders.shop.svc", timeout=timeout)
            assert engine_of(client).allowance.used == 0

    asyncio.run(main())


# connections


def test_the_queue_is_first_come_first_served(backends: Backends) -> None:
    """One connection, many tasks: all are served over it, in the order in which they came."""
    (server,) = backends.http(1)

    async def main() -> None:
        async with aio_client([(server.host, server.port)], limits=httpx.Limits(max_connections=1)) as client:
            await asyncio.gather(*(client.get(f"{URL}/{number}") for number in range(40)))
            assert engine_of(client).in_use() == 0

    asyncio.run(main())
    assert server.accepted == 1
    assert [got.path for got in server.received] == [f"/{number}" for number in range(40)]


def test_threads_wait_for_their_turn(backends: Backends) -> None:
    """Eight threads, two endpoints with one connection each: nobody is forgotten in the queue, nothing is mixed up."""
    servers = backends.http(2)

    def work(client: httpx.Client, thread: int) -> None:
        for number in range(40):
            content = f"{thread}/{number}".encode()
            assert client.post(f"{URL}/echo", content=content).content == content

    limits = httpx.Limits(max_connections=1)
    with sync_client([(server.host, server.port) for server in servers], limits=limits) as client:
        with ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(work, client, thread) for thread in range(8)]:
                done.result(60)
        assert engine_of(client).in_use() == 0
    assert [server.accepted for server in servers] == [1, 1]
    assert sum(server.requests for server in servers) == 320


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_endpoints() -> None:
    try:
        server = ScriptedServer([[OK]], host="::1")
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with server:
        with sync_client([("::1", server.port)]) as client:
            assert client.get(URL).text == "ok"

        async def main() -> None:
            async with aio_client([("::1", server.port)]) as client:
                assert (await client.get(URL)).text == "ok"

        asyncio.run(main())


def test_a_task_that_leaves_the_queue_takes_nothing_along(backends: Backends) -> None:
    """Cancelled while waiting, before and after it was granted the connection: the others are all served."""
    (server,) = backends.http(1)

    async def main() -> None:
        async with aio_client([(server.host, server.port)], limits=httpx.Limits(max_connections=1)) as client:
            for turns in range(0, 60, 3):
                tasks = [asyncio.create_task(client.get(URL)) for _ in range(4)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                tasks[1].cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert [getattr(one, "status_code", 0) for one in (results[0], *results[2:])] == [200] * 3
                assert engine_of(client).in_use() == 0

    asyncio.run(main())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_connection_closed_while_idle_is_not_used(method: str) -> None:
    """The server hangs up after each reply without saying so: noticed before the next request, which is sent once."""
    with ScriptedServer([[OK, CLOSE]]) as server:
        pause = threading.Event()
        with sync_client([("127.0.0.1", server.port)]) as client:
            for _ in range(5):
                assert client.request(method, URL).text == "ok"
                pause.wait(0.02)

        async def main() -> None:
            async with aio_client([("127.0.0.1", server.port)]) as client:
                for _ in range(5):
                    assert (await client.request(method, URL)).text == "ok"
                    pause.wait(0.02)  # the loop does not run, so only a look at the socket can tell
                for _ in range(5):
                    assert (await client.request(method, URL)).text == "ok"
                    await asyncio.sleep(0.02)
                    assert engine_of(client).allowance.used == 0  # the loop was told, nobody had to ask

        asyncio.run(main())
        assert len(server.heads) == 15


def test_an_unread_body_is_never_part_of_the_next() -> None:
    """A reply that came whole and was closed unread: its connection serves the next request, its body does not."""
    replies = [[b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body] for body in (b"one", b"two")]
    with ScriptedServer(replies) as server, sync_client([("127.0.0.1", server.port)]) as client:
        with client.stream("GET", URL):
            pass
        assert (client.get(URL).content, server.connections) == (b"two", 1)

    async def main(port: int) -> bytes:
        async with aio_client([("127.0.0.1", port)]) as client:
            async with client.stream("GET", URL):
                pass
            return (await client.get(URL)).content

    with ScriptedServer(replies) as server:
        assert asyncio.run(main(server.port)) == b"two"
        assert server.connections == 1


def test_what_comes_after_a_reply_is_never_a_reply() -> None:
    """A server that answers twice: the second answer is thrown away with its connection (response splitting)."""
    other = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    with ScriptedServer([[OK + other]]) as server:
        with sync_client([("127.0.0.1", server.port)]) as client:
            assert [client.get(URL).text for _ in range(3)] == ["ok"] * 3

        async def main() -> None:
            async with aio_client([("127.0.0.1", server.port)]) as client:
                assert [(await client.get(URL)).text for _ in range(3)] == ["ok"] * 3

        asyncio.run(main())
        assert server.connections == 6


def test_an_answer_before_the_end_of_the_upload_is_heard() -> None:
    """413 and hang up while the body is still on its way: the reply, not a WriteError (RFC 9112 9.5)."""
    reply = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"

    async def main(port: int) -> None:
        async with aio_client([("127.0.0.1", port)]) as client:
            answer = await client.post(URL, content=b"x" * 200_000)
            assert (answer.status_code, answer.text) == (413, "big")
            assert engine_of(client).allowance.used == 0

    with ScriptedServer([[reply]], early=True) as server:
        asyncio.run(main(server.port))
        with sync_client([("127.0.0.1", server.port)]) as client:
            assert client.post(URL, content=b"x" * 200_000).status_code == 413


# TLS


def test_tls_sessions_are_resumed(backends: Backends) -> None:
    """The second connection to an endpoint skips the full handshake; another name of it does not share the session."""
    (server,) = backends.http(1, tls="orders.shop.svc")
    ports, context = [(server.host, server.port)], backends.client_context()
    close = {"Connection": "close"}

    with sync_client(ports, verify=context) as client:
        reused = []
        for _ in range(3):
            client.get("https://orders.shop.svc/")
            with client.stream("GET", "https://orders.shop.svc/", headers=close) as reply:
                stream = reply.extensions["network_stream"]
                reused.append(stream.get_extra_info("socket").session_reused)
        assert reused == [False, True, True]
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get("https://payments.shop.svc/")

    async def main() -> None:
        async with aio_client(ports, verify=context) as client:
            reused = []
            for _ in range(3):
                await client.get("https://orders.shop.svc/")
                async with client.stream("GET", "https://orders.shop.svc/", headers=close) as reply:
                    stream = reply.extensions["network_stream"]
                    reused.append(stream.get_extra_info("ssl_object").session_reused)
            assert reused == [False, True, True]
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get("https://payments.shop.svc/")

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_latency_sample_leaves_out_connection_setup(
    backends: Backends, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """The sample begins anew once per new connection, when TLS is done, and not for a reused one."""
    begun: list[Lease] = []
    (server,) = backends.http(1, tls="orders.shop.svc" if scheme == "https" else None)
    monkeypatch.setattr(Lease, "connected", lambda lease: begun.append(lease))
    ports, url = [(server.host, server.port)], f"{scheme}://orders.shop.svc/"
    with sync_client(ports, verify=backends.client_context()) as client:
        for _ in range(3):
            client.get(url)

    async def main() -> None:
        async with aio_client(ports, verify=backends.client_context()) as client:
            for _ in range(3):
                await client.get(url)

    asyncio.run(main())
    assert len(begun) == 2
    if scheme == "https":  # a handshake that fails is no connection
        with (
            sync_client(ports, verify=backends.client_context()) as client,
            pytest.raises(httpx.ConnectError),
        ):
            client.get("https://payments.shop.svc/")
        assert len(begun) == 2


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_cancelled_while_connecting_leaves_nothing(backends: Backends, tls: bool) -> None:
    """Cancelled after 0, 1, 2, ... turns of dialling, handshake included: no place, no count, no connection is left."""
    (server,) = backends.http(1, tls="orders.shop.svc" if tls else None)
    url = "https://orders.shop.svc/" if tls else URL

    async def main() -> None:
        ports, context = [(server.host, server.port)], backends.client_context()
        async with aio_client(ports, cap=10, verify=context) as client:
            survived = 0
            for turns in range(500):
                task = asyncio.create_task(client.get(url, headers={"Connection": "close"}))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    survived += (await task).status_code == 200
                engine = engine_of(client)
                assert (engine.in_use(), engine.allowance.used) == (0, 0), turns
                if survived > 3:
                    break
            assert survived
            for _ in range(1000):
                if not server.connections:
                    break
                await asyncio.sleep(0.005)
            assert server.connections == 0

    asyncio.run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_cancelled_as_the_connection_is_made(
    backends: Backends, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    """The moment in which the loop has the connection and the caller not yet: TLS would say goodbye for long, on a
    descriptor that the next connection gets."""
    (server,) = backends.http(1, tls="orders.shop.svc" if tls else None)
    url = "https://orders.shop.svc/" if tls else URL
    made = AioConnection.connection_made
    cancelled = []

    def cancel(connection: AioConnection, transport: Any) -> None:
        made(connection, transport)
        if len(cancelled) < 5:
            cancelled.append(current.cancel())

    monkeypatch.setattr(AioConnection, "connection_made", cancel)

    async def main() -> None:
        nonlocal current
        async with aio_client([(server.host, server.port)], verify=backends.client_context()) as client:
            for _ in range(5):
                current = asyncio.create_task(client.get(url))
                with pytest.raises(asyncio.CancelledError):
                    await current
            for _ in range(3):
                assert (await client.get(url)).status_code == 200

    current: asyncio.Task[Any]
    asyncio.run(main())
    assert cancelled == [True] * 5


# upgrades

UPGRADE = {"Connection": "upgrade", "Upgrade": "echo"}
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"


@pytest.mark.parametrize("switch", [SWITCH, b"HTTP/1.1 101 Switching\r\n\r\n"], ids=["headers", "bare"])
def test_upgrade_hands_over_the_stream(switch: bytes) -> None:
    """101: what came with it is read first, then the stream goes both ways; at the end the connection closes."""
    with ScriptedServer([[switch + b"hello"], [b"and more"], [CLOSE]]) as server:
        request = b"PING\r\n\r\n"  # what the scripted server takes for another head
        with sync_client([("127.0.0.1", server.port)]) as client:
            with client.stream("GET", URL, headers=UPGRADE) as reply:
                assert reply.status_code == 101
                stream = reply.extensions["network_stream"]
                assert stream.read(2, 5) + stream.read(100, 5) == b"hello"
                stream.write(request, 5)
                assert stream.read(100, 5) == b"and more"
                stream.write(request, 5)
                assert stream.read(100, 5) == b""
            assert engine_of(client).allowance.used == 0

        async def main() -> None:
            async with aio_client([("127.0.0.1", server.port)]) as client:
                async with client.stream("GET", URL, headers=UPGRADE) as reply:
                    assert reply.status_code == 101
                    stream = reply.extensions["network_stream"]
                    assert await stream.read(2, 5) + await stream.read(100, 5) == b"hello"
                    await stream.write(request, 5)
                    assert await stream.read(100, 5) == b"and more"
                    await stream.write(request, 5)
                    assert await stream.read(100, 5) == b""
                assert engine_of(client).allowance.used == 0

        asyncio.run(main())
