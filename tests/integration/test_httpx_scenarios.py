"""The same scenario on a bare client and through the mesh, over each wire: what the application sees must be equal.

A scenario is written once, as a coroutine over a client that answers to both colours; it returns what it saw. Nothing
here says what the right outcome is: the bare library does.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpcore
import httpcore2
import httpx
import httpx2
import pytest

from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.components.backends import Backends, HttpBackend
from tests.unit.clients_httpx.fakes import FakeHandle

NAME = "orders.shop.svc"
CORES = {"httpx": httpcore, "httpx2": httpcore2}


class Client:
    """A sync or asyncio client, awaited either way."""

    def __init__(self, real: Any, asynchronous: bool, library: Any, scheme: str, other: str) -> None:
        self.real, self.asynchronous, self.library = real, asynchronous, library
        self.url, self.other = f"{scheme}://{NAME}", other

    async def request(self, method: str, path: str = "/", **options: Any) -> Any:
        url = path if "://" in path else self.url + path
        return await now(self.real.request(method, url, **options))

    async def get(self, path: str = "/", **options: Any) -> Any:
        return await self.request("GET", path, **options)

    async def post(self, path: str = "/", **options: Any) -> Any:
        return await self.request("POST", path, **options)

    @asynccontextmanager
    async def stream(self, method: str, path: str = "/", **options: Any) -> AsyncIterator[Any]:
        context = self.real.stream(method, self.url + path, **options)
        if self.asynchronous:
            async with context as reply:
                yield reply
        else:
            with context as reply:
                yield reply

    async def close(self) -> None:
        await now(self.real.aclose() if self.asynchronous else self.real.close())

    def parts(self, reply: Any) -> AsyncIterator[bytes]:
        return reply.aiter_raw() if self.asynchronous else over(reply.iter_raw())

    async def read(self, reply: Any) -> bytes:
        found: bytes = await now(reply.aread() if self.asynchronous else reply.read())
        return found

    def body(self, *parts: bytes | Exception) -> Any:
        """That can be sent once."""

        def each() -> Iterator[bytes]:
            for part in parts:
                if isinstance(part, Exception):
                    raise part
                yield part

        return over(each()) if self.asynchronous else each()


async def now(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def over(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def kind(thing: Awaitable[Any]) -> Any:
    """The name of the exception, or what came."""
    try:
        found = await thing
    except Exception as error:
        return type(error).__name__, hasattr(error, "_request")
    return found.status_code if hasattr(found, "status_code") else found


# The scenarios. `server` is the one behind NAME.


async def read_timeout(client: Client, server: HttpBackend) -> Any:
    server.delay = float("inf")
    found = await kind(client.get(timeout=client.library.Timeout(10, read=0.05)))
    server.delay = 0
    return found, await kind(client.get())


async def read_timeout_in_the_body(client: Client, server: HttpBackend) -> Any:
    return await kind(client.get("/stream/2/5", timeout=client.library.Timeout(10, read=0.05))), await kind(
        client.get()
    )


async def hang_up_in_the_body(client: Client, server: HttpBackend) -> Any:
    server.fault = "truncate"
    found = await kind(client.get("/stream/5/0"))
    server.fault = ""
    return found, await kind(client.get())


async def a_stream_left_half_way(client: Client, server: HttpBackend) -> Any:
    seen = []
    async with client.stream("GET", "/stream/50/0.01") as reply:
        async for part in client.parts(reply):
            seen.append(part)
            break
    return seen, reply.is_closed, reply.is_stream_consumed, await kind(client.get())


async def two_streams_at_a_time(client: Client, server: HttpBackend) -> Any:
    async with client.stream("GET", "/stream/3/0") as one, client.stream("GET", "/stream/4/0") as two:
        return len(await client.read(two)), len(await client.read(one))


async def closed_in_the_middle(client: Client, server: HttpBackend) -> Any:
    async def rest(reply: Any) -> bytes:
        return b"".join([part async for part in client.parts(reply)])

    async with client.stream("GET", "/stream/500/0.01") as reply:
        await client.close()
        found = await kind(rest(reply))
    # over HTTP/2 it depends on who notices first, without us, too
    if reply.http_version == "HTTP/2":  # it depends on who notices first, without us, too
        found = isinstance(found, tuple)
    return found, await kind(client.get())


async def what_a_reply_says(client: Client, server: HttpBackend) -> Any:
    reply = await client.post("/echo", content=b"x" * 1000)
    async with client.stream("GET", "/stream/3/0") as streamed:
        before = streamed.num_bytes_downloaded
        with pytest.raises(client.library.ResponseNotRead):
            _ = streamed.content
        parts = [part async for part in client.parts(streamed)]
    with pytest.raises(client.library.StreamConsumed):
        await client.read(streamed)
    return (
        (reply.status_code, reply.reason_phrase, reply.http_version, reply.encoding, reply.url.host),
        (reply.num_bytes_downloaded, before, streamed.num_bytes_downloaded == sum(map(len, parts))),
        (reply.is_closed, reply.is_stream_consumed, timedelta() < reply.elapsed < timedelta(minutes=1)),
        sorted(reply.extensions),
        str(reply.request.url),
    )


async def extensions(client: Client, server: HttpBackend) -> Any:
    reply = await client.get(extensions={"sni_hostname": NAME})
    stream = reply.extensions["network_stream"]
    tls = stream.get_extra_info("ssl_object")
    return (
        stream.get_extra_info("server_addr") == (server.host, server.port),
        len(stream.get_extra_info("client_addr")),
        stream.get_extra_info("socket") is not None,
        stream.get_extra_info("is_readable"),
        stream.get_extra_info("nonsense"),
        tls is not None and (tls.version(), tls.selected_alpn_protocol(), tls.server_side),
    )


async def traced(client: Client, server: HttpBackend) -> Any:
    events: list[str] = []

    def note(name: str, info: Any) -> None:
        events.append(name)

    async def note_later(name: str, info: Any) -> None:
        events.append(name)

    for _ in range(2):
        await client.post(
            "/echo",
            content=b"x",
            extensions={"trace": note_later if client.asynchronous else note, "timeout": {"read": 5}},
        )
    return events


async def redirects(client: Client, server: HttpBackend) -> Any:
    client.real.max_redirects = 4  # two of these lead in a circle
    server.status = 302
    found: list[Any] = []
    for location in ("/loop", client.other, "//" + NAME + "/x", "ftp://x/", "http://%zz/"):
        server.headers = {"location": location}
        reply = await kind(
            client.get(follow_redirects=True, headers={"Authorization": "secret"}, auth=("a", "b"))
        )
        found.append(reply)
    server.status = 307
    server.headers = {"location": "/again"}
    found.append(await kind(client.post(content=client.body(b"once"), follow_redirects=True)))
    found.append(await kind(client.post(content=b"twice", follow_redirects=True)))
    return found


async def digest(client: Client, server: HttpBackend) -> Any:
    server.status = 401
    server.headers = {"www-authenticate": 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'}
    auth = client.library.DigestAuth("user", "secret")
    found = [
        await kind(client.get(auth=auth)),
        await kind(client.post("/echo", content=b"again", auth=auth)),
        await kind(client.post("/echo", content=client.body(b"once"), auth=auth)),
    ]
    return found, [dict(got.headers).get("authorization", "")[:22] for got in server.received]


async def cookies(client: Client, server: HttpBackend) -> Any:
    server.headers = {"set-cookie": f"a=1; Domain={NAME}; Path=/"}
    await client.get()
    await client.get("/deeper")
    return [dict(got.headers).get("cookie") for got in server.received], client.real.cookies.get("a", NAME)


async def a_body_that_raises(client: Client, server: HttpBackend) -> Any:
    return [await kind(client.post(content=client.body(b"one", KeyError("mine")))), await kind(client.get())]


async def a_body_of_pieces(client: Client, server: HttpBackend) -> Any:
    reply = await client.post("/echo", content=client.body(b"one", b"", b"two" * 50_000))
    return reply.status_code, len(reply.content)


async def hooks(client: Client, server: HttpBackend) -> Any:
    seen: list[Any] = []

    def note(what: Any) -> Any:
        seen.append((type(what).__name__, getattr(what, "is_closed", None), what.headers.get("x-host")))

    async def later(what: Any) -> None:
        note(what)

    async def fails(what: Any) -> None:
        raise KeyError("mine")

    def fails_now(what: Any) -> None:
        raise KeyError("mine")

    hook = later if client.asynchronous else note
    client.real.event_hooks = {"request": [hook], "response": [hook]}
    await client.get()
    client.real.event_hooks = {"response": [fails if client.asynchronous else fails_now]}
    found = await kind(client.get())
    client.real.event_hooks = {}
    return seen, found, await kind(client.get())


async def odd_urls(client: Client, server: HttpBackend) -> Any:
    found = []
    for url in ("ftp://orders.shop.svc/", "/no-host", "http://", f"{client.url}:0/"):
        try:
            found.append((await now(client.real.get(url))).status_code)
        except Exception as error:
            found.append(type(error).__name__)
    return found[:3]


async def bad_gzip(client: Client, server: HttpBackend) -> Any:
    server.headers = {"content-encoding": "gzip"}
    return await kind(client.get()), await kind(client.get())


async def bodiless(client: Client, server: HttpBackend) -> Any:
    found = []
    for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304), ("DELETE", 404), ("OPTIONS", 200)):
        server.status = status
        reply = await client.request(method, "/stream/0/0" if status in (204, 304) else "/")
        found.append((reply.status_code, reply.content, reply.headers.get("x-method")))
    return found


async def after_close(client: Client, server: HttpBackend) -> Any:
    await client.get()
    await client.close()
    return await kind(client.get()), client.real.is_closed


async def pool_timeout(client: Client, server: HttpBackend) -> Any:
    """Run with one connection at a time, and HTTP/1.1: a stream holds it."""
    async with client.stream("GET", "/stream/3/0"):
        found = await kind(client.get(timeout=client.library.Timeout(10, pool=0.05)))
    return found, await kind(client.get())


async def arrived(server: HttpBackend, count: int) -> None:
    """What a request comes to before it arrives depends on how busy the machine is."""
    async with asyncio.timeout(30):
        while len(server.received) < count:
            await asyncio.sleep(0.005)


async def cancelled(client: Client, server: HttpBackend) -> Any:
    if not client.asynchronous:
        return None
    server.delay = float("inf")
    waiting = asyncio.create_task(client.get())
    await arrived(server, 1)
    found = await kind(asyncio.wait_for(waiting, 0.05))
    server.delay = 0
    task = asyncio.create_task(client.get("/stream/500/0.01"))
    await arrived(server, 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return found, await kind(client.get())


SCENARIOS: list[Callable[[Client, HttpBackend], Awaitable[Any]]] = [
    read_timeout,
    read_timeout_in_the_body,
    hang_up_in_the_body,
    a_stream_left_half_way,
    two_streams_at_a_time,
    closed_in_the_middle,
    what_a_reply_says,
    extensions,
    traced,
    redirects,
    digest,
    cookies,
    a_body_that_raises,
    a_body_of_pieces,
    hooks,
    odd_urls,
    bad_gzip,
    bodiless,
    after_close,
    pool_timeout,
    cancelled,
]


@dataclass(frozen=True)
class Way:
    wire: str
    tls: bool = False
    http2: bool = False

    def __str__(self) -> str:
        return f"{self.wire}-{'h2' if self.http2 else 'https' if self.tls else 'http'}"


# httpx2 has the same inside: one way for each kind of connection is enough there
WAYS = [
    (httpx, Way("fast")),
    (httpx, Way("httpcore")),
    (httpx, Way("fast", tls=True)),
    (httpx, Way("fast", tls=True, http2=True)),
    (httpx2, Way("fast")),
    (httpx2, Way("httpcore", tls=True, http2=True)),
]


class Detour:
    """Dials the server, whatever the name: what a bare client would get from DNS."""

    def __init__(self, real: Any, server: HttpBackend) -> None:
        self.real, self.server = real, server

    def connect_tcp(self, host: str, port: int, *arguments: Any, **options: Any) -> Any:
        if host == NAME:
            host, port = self.server.host, self.server.port
        return self.real.connect_tcp(host, port, *arguments, **options)


class OneHost:
    """A mesh that knows NAME."""

    config = load_config()

    def __init__(self, handle: FakeHandle) -> None:
        self.handle = handle

    def for_url(self, scheme: str, host: str, port: int | None) -> Any:
        return self.handle if host == NAME else None


def run(
    scenario: Any,
    library: Any,
    asynchronous: bool,
    way: Way,
    wire: str,
    backends: Backends,
    mesh: Mesh | None = None,
) -> tuple[Any, list[Any], int]:
    """What the scenario saw, what the server got, and over how many connections. ``mesh``: one that lets all requests
    go the bare way, instead of one that knows the server."""
    (server,) = backends.http(1, tls=NAME if way.tls else None)
    (other,) = backends.http(1)
    server.name = other.name = "server"
    limits = library.Limits(max_connections=1) if scenario is pool_timeout else library.Limits()
    options: dict[str, Any] = {"http2": way.http2, "limits": limits, "trust_env": False, "verify": False}
    if way.tls:
        options["verify"] = backends.client_context()
    transport = (library.AsyncHTTPTransport if asynchronous else library.HTTPTransport)(**options)
    core = CORES[library.__name__]
    handle: Any = FakeHandle([(server.host, server.port)])
    if wire == "bare" or mesh is not None:
        real = core.AnyIOBackend() if asynchronous else core.SyncBackend()
        transport._pool._network_backend = Detour(real, server)
    if wire != "bare":
        pool = AsyncMeshPool if asynchronous else MeshPool
        knows: Any = mesh or OneHost(handle)
        transport._pool = pool(transport._pool, load(library.__name__), mesh=knows, wire=wire)
    kind_of_client = library.AsyncClient if asynchronous else library.Client

    async def main() -> Any:
        real = kind_of_client(transport=transport, timeout=10)
        client = Client(real, asynchronous, library, "https" if way.tls else "http", f"{other.url}/elsewhere")
        try:
            return await scenario(client, server)
        finally:
            await client.close()

    seen = asyncio.run(main())
    assert handle.inflight == 0
    got = [
        (each.method, each.path, each.host, each.body, [name for name, _ in each.headers])
        for each in server.received
    ] + [
        (each.method, each.path, "", each.body, [name for name, _ in each.headers]) for each in other.received
    ]
    return seen, got, server.accepted


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])
@pytest.mark.parametrize(
    "library, way", [pytest.param(*each, id=f"{each[0].__name__}-{each[1]}") for each in WAYS]
)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(backends: Backends, scenario: Any, way: Way, asynchronous: bool, library: Any) -> None:
    """Equal: what was seen and what arrived; and over no more connections."""
    if scenario is pool_timeout and way.http2:  # the connection is shared there
        way = Way(way.wire, way.tls)
    bare = run(scenario, library, asynchronous, way, "bare", backends)
    ours = run(scenario, library, asynchronous, way, way.wire, backends)
    assert ours[:2] == bare[:2]
    serial = way.http2 and not asynchronous and scenario is two_streams_at_a_time  # see docs/clients-httpx.md
    assert ours[2] <= bare[2] + serial
