"""HTTP/2 over the mesh: servers that leave, refuse and limit streams. No request fails or is served twice for it."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h2.errors
import httpx
import httpx2
import pytest

from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from tests.components.backends import Backends
from tests.components.http2_server import Http2Server, Stream
from tests.integration.grpc_support import eventually
from tests.unit.clients_httpx.fakes import FakeHandle

NAME = "orders.shop.svc"
COLOURS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])
FLAVOURS = pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda library: library.__name__)


def client_of(
    library: Any, servers: list[Http2Server], asynchronous: bool, tls: Any = None, limits: Any = None
) -> Any:
    """A client whose only way is HTTP/2: prior knowledge, or with ``tls`` what ALPN says."""
    handle: Any = FakeHandle([(server.host, server.port) for server in servers])
    options: dict[str, Any] = {"http2": True, "http1": tls is not None, "trust_env": False}
    if tls is not None:
        options["verify"] = tls
    transport = (library.AsyncHTTPTransport if asynchronous else library.HTTPTransport)(**options)
    pool: Any = AsyncMeshPool if asynchronous else MeshPool
    transport._pool = pool(transport._pool, load(library.__name__), handle=handle)
    scheme = "http" if tls is None else "https"
    return (library.AsyncClient if asynchronous else library.Client)(
        transport=transport, base_url=f"{scheme}://{NAME}", timeout=10
    )


def outcome(reply: Any) -> tuple[str, int, bytes]:
    return reply.http_version, reply.status_code, reply.content


OK = ("HTTP/2", 200, b"ok")


def ask(
    client: Any,
    asynchronous: bool,
    count: int,
    at_once: bool = False,
    pause: Callable[[], None] | None = None,
) -> list[Any]:
    """POSTs to /0, /1, ...; what came of each, exceptions included. ``pause``: between one and the next."""
    paths = [f"/{number}" for number in range(count)]

    def one(path: str) -> Any:
        try:
            return outcome(client.post(path, content=path.encode()))
        except Exception as error:
            return error

    async def other(path: str) -> Any:
        try:
            return outcome(await client.post(path, content=path.encode()))
        except Exception as error:
            return error

    async def main() -> list[Any]:
        async with client:
            if at_once:
                return list(await asyncio.gather(*map(other, paths)))
            found = []
            for path in paths:
                found.append(await other(path))
                if pause is not None:
                    await asyncio.to_thread(pause)
            return found

    if asynchronous:
        return asyncio.run(main())
    with client:
        if at_once:
            with ThreadPoolExecutor(count) as threads:
                return list(threads.map(one, paths))
        found = []
        for path in paths:
            found.append(one(path))
            if pause is not None:
                pause()
        return found


def leaves(stream: Stream) -> None:
    """Replies, and then says that this was the last."""
    stream.reply()
    stream.connection.goaway(stream.id)
    stream.connection.told.set()


def leaves_and_closes(stream: Stream) -> None:
    leaves(stream)
    stream.connection.close()


def closes(stream: Stream) -> None:
    """Without a word."""
    stream.reply()
    stream.connection.close()
    stream.connection.told.set()


def pings(stream: Stream) -> None:
    """Something to read on an idle connection need not be its end."""
    stream.reply()
    stream.connection.ping()
    stream.connection.told.set()


@FLAVOURS
@COLOURS
@pytest.mark.parametrize("answer", [leaves, leaves_and_closes, closes, pings], ids=lambda way: way.__name__)
def test_a_connection_given_up_while_idle(library: Any, asynchronous: bool, answer: Any) -> None:
    """Whatever the server says or does after a reply, the next POST is served, and once."""
    with Http2Server(answer) as server:

        def said() -> None:
            server.connections[-1].told.wait(10)
            eventually(lambda: not server.connections[-1].closing or server.connections[-1].over.is_set())

        found = ask(client_of(library, [server], asynchronous), asynchronous, 4, pause=said)
    assert found == [OK] * 4
    stays = answer is pings
    assert [(number, path) for number, _, path, _ in server.requests] == [
        (0 if stays else number, f"/{number}") for number in range(4)
    ]


@COLOURS
def test_the_same_over_tls(backends: Backends, asynchronous: bool) -> None:
    """ALPN chooses HTTP/2; the departure is inside the encryption."""
    tls = backends._server_context(NAME)
    tls.set_alpn_protocols(["h2"])
    with Http2Server(leaves, tls=tls) as server:
        client = client_of(httpx, [server], asynchronous, backends.client_context())
        found = ask(client, asynchronous, 3, pause=lambda: server.connections[-1].told.wait(10) and None)
    assert found == [OK] * 3
    assert Counter(path for _, _, path, _ in server.requests) == {"/0": 1, "/1": 1, "/2": 1}


class Gathering:
    """Takes ``count`` requests on one connection before anything is said; then ``decide`` gets all of them."""

    def __init__(self, count: int, decide: Callable[[list[Stream]], None]) -> None:
        self.count, self.decide = count, decide
        self.served: Counter[str] = Counter()

    def __call__(self, stream: Stream) -> None:
        if stream.connection.number:
            self.serve(stream)
        elif len(stream.connection.streams) == self.count:
            self.decide(stream.connection.streams)

    def serve(self, stream: Stream) -> None:
        self.served[stream.path] += 1
        stream.reply()


@FLAVOURS
@pytest.mark.parametrize("phases", [1, 2])
def test_a_departure_lets_streams_finish(library: Any, phases: int) -> None:
    """GOAWAY in the middle of six requests: the server finishes three of them afterwards, the others go elsewhere."""

    def decide(streams: list[Stream]) -> None:
        connection = streams[0].connection
        streams[0].begin()
        if phases == 2:
            connection.goaway(2**31 - 1)  # "I will leave soon", RFC 9113 6.8
        connection.goaway(streams[2].id)
        for stream in streams[:3]:
            gathering.served[stream.path] += 1
            if stream is not streams[0]:
                stream.begin()
            stream.send(b"o")
        for stream in streams[:3]:
            stream.send(b"k", end=True)
        connection.close()

    gathering = Gathering(6, decide)
    with Http2Server(gathering) as server:
        assert ask(client_of(library, [server], True), True, 6, at_once=True) == [OK] * 6
    assert gathering.served == {f"/{number}": 1 for number in range(6)}


def test_a_departure_with_an_error() -> None:
    """What the server took fails, as nobody knows what became of it; what it did not take is served elsewhere, once."""

    def decide(streams: list[Stream]) -> None:
        gathering.served[streams[0].path] += 1
        streams[0].connection.goaway(streams[0].id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        streams[0].connection.close()

    gathering = Gathering(4, decide)
    with Http2Server(gathering) as server:
        found = ask(client_of(httpx, [server], True), True, 4, at_once=True)
    assert Counter(map(type, found)) == {httpx.RemoteProtocolError: 1, tuple: 3}
    assert gathering.served == {f"/{number}": 1 for number in range(4)}


@FLAVOURS
@COLOURS
def test_refused_streams_are_sent_again(library: Any, asynchronous: bool) -> None:
    """REFUSED_STREAM says that nothing was done: a POST is sent again, to the same endpoint, in the end to another."""
    refusals = iter([True, True, True, False, True, True, True, True])

    def refuses(stream: Stream) -> None:
        if next(refusals):
            stream.reset()
        else:
            stream.reply()

    with Http2Server(refuses) as one, Http2Server(lambda stream: stream.reply()) as two:
        alone = client_of(library, [one], asynchronous)
        assert ask(alone, asynchronous, 1) == [OK]
        handle: Any = alone._transport._pool._handle
        assert [each.failures for each in handle.subchannels.values()] == [0]
        assert ask(client_of(library, [one, two], asynchronous), asynchronous, 1) == [OK]
    assert [len(one.requests), len(two.requests)] == [8, 1]


def test_a_body_that_cannot_begin_again_is_not_sent_again() -> None:
    """A generator was asked for already: the refusal is raised."""
    with Http2Server(lambda stream: stream.reset()) as server:
        with client_of(httpx, [server], False) as client, pytest.raises(httpx.RemoteProtocolError):
            client.post("/", content=iter([b"one", b"two"]))
    assert len(server.requests) == 1


@COLOURS
def test_other_resets_are_errors(asynchronous: bool) -> None:
    """Any other code says nothing about what was done: raised as the bare library does, the connection serves on."""

    def answer(stream: Stream) -> None:
        if stream.path == "/1":
            stream.reset(h2.errors.ErrorCodes.INTERNAL_ERROR)
        else:
            stream.reply()

    with Http2Server(answer) as server:
        found = ask(client_of(httpx, [server], asynchronous), asynchronous, 3)
    assert [found[0], type(found[1]), found[2]] == [OK, httpx.RemoteProtocolError, OK]
    assert [(number, path) for number, _, path, _ in server.requests] == [(0, "/0"), (0, "/1"), (0, "/2")]


@FLAVOURS
def test_the_servers_limit_of_streams(library: Any) -> None:
    """Thirty requests at a time and a server that takes three: one connection, never more than three streams."""
    waiting: list[Stream] = []

    def answer(stream: Stream) -> None:
        waiting.append(stream)
        if len(waiting) == 3 or len(server.requests) in (1, 30):
            while waiting:
                waiting.pop().reply()

    with Http2Server(answer, max_streams=3) as server:
        assert ask(client_of(library, [server], True), True, 30, at_once=True) == [OK] * 30
    assert (len(server.connections), server.most_streams) == (1, 3)
    assert len({path for _, _, path, _ in server.requests}) == 30


@FLAVOURS
@pytest.mark.parametrize("leaving", [True, False], ids=["leaves", "stays"])
def test_threads_share_a_client(library: Any, leaving: bool) -> None:
    """Eight threads, switched as often as can be, 30 requests each: every one served once, over as many connections
    as there are threads at most at a time. (A bare client breaks most of them.)"""

    def way(stream: Stream) -> None:
        if leaving and len(stream.connection.streams) == 10:
            leaves(stream)
        else:
            stream.reply()

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with Http2Server(way) as server, client_of(library, [server], False) as client:

            def thread(number: int) -> list[Any]:
                paths = [f"/{number}/{turn}" for turn in range(30)]
                return [outcome(client.post(path, content=path.encode())) for path in paths]

            with ThreadPoolExecutor(8) as threads:
                for found in threads.map(thread, range(8)):
                    assert found == [OK] * 30
    finally:
        sys.setswitchinterval(usual)
    assert len({path for _, _, path, _ in server.requests}) == len(server.requests) == 240
    assert all(path.encode() == body for _, _, path, body in server.requests)
    if not leaving:
        assert len(server.connections) <= 8


def test_streams_within_a_stream() -> None:
    """One thread that reads two replies at a time: over two connections."""
    with Http2Server(lambda stream: stream.reply()) as server, client_of(httpx, [server], False) as client:
        with client.stream("GET", "/one") as one, client.stream("GET", "/two") as two:
            assert (two.read(), one.read()) == (b"ok", b"ok")
        assert client.get("/three").content == b"ok"
    assert len(server.connections) == 2


@COLOURS
def test_a_departure_in_the_middle_of_a_reply(asynchronous: bool) -> None:
    """A reply that is being read is read to its end; the request after it goes over another connection."""

    def answer(stream: Stream) -> None:
        if stream.path != "/0":
            stream.reply()
            return
        stream.begin()
        stream.send(b"o")
        stream.connection.goaway(stream.id)
        stream.send(b"k", end=True)

    with Http2Server(answer) as server:
        assert ask(client_of(httpx, [server], asynchronous), asynchronous, 2) == [OK] * 2
    assert [number for number, *_ in server.requests] == [0, 1]
