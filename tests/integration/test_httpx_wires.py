"""Bare httpx and both wires against the same bytes: what the application sees must be equal.

Nothing here says what the right outcome is, except where the wires are meant to differ: bare httpx says it.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Sequence
from typing import Any

import h11
import httpx
import pytest

from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from tests.components.scripted import CLOSE, RESET, ScriptedServer
from tests.unit.clients_httpx.fakes import FakeHandle

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BIG = bytes(range(256)) * 4096
Request = dict[str, Any]
GET: Request = {"method": "GET"}


def body_of(*parts: bytes) -> Callable[[bool], Any]:
    """A body that can be sent once, for either colour."""

    def make(asynchronous: bool) -> Any:
        async def later() -> Any:
            for part in parts:
                yield part

        return later() if asynchronous else iter(parts)

    return make


#: name: (script of each connection, requests one after the other)
REPLIES: dict[str, tuple[Sequence[Sequence[bytes | str]], Sequence[Request]]] = {
    "plain": ([[OK]], [GET, GET, GET]),
    "no reason": ([[b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"]], [GET]),
    "odd reason": ([[b"HTTP/1.1 299 \xe9t\xe9 ok\r\nContent-Length: 0\r\n\r\n"]], [GET]),
    "header case, order, duplicates": (
        [
            [
                b"HTTP/1.1 200 OK\r\nX-b: 1\r\nx-A: 2\r\nX-B:   3  \r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
                b"EMPTY:\r\nContent-LENGTH: 0\r\n\r\n"
            ]
        ],
        [GET],
    ),
    "obs-text in a value": ([[b"HTTP/1.1 200 OK\r\nX: caf\xe9\r\nContent-Length: 0\r\n\r\n"]], [GET]),
    "control character in a value": (
        [[b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 2\r\n\r\nok"]],
        [GET, GET],
    ),
    "NUL in a value": ([[b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok"]], [GET]),
    "folded header": ([[b"HTTP/1.1 200 OK\r\nX: a\r\n  b\r\nContent-Length: 2\r\n\r\nok"]], [GET, GET]),
    "bare line feeds": ([[b"HTTP/1.1 200 OK\nX: a\nContent-Length: 2\n\nok"]], [GET, GET]),
    "the same length twice": (
        [[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"]],
        [GET],
    ),
    "length as a list": ([[b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok"]], [GET]),
    "two lengths": ([[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"]], [GET]),
    "length and chunks": (
        [[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]],
        [GET],
    ),
    "unknown transfer coding": (
        [[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"]],
        [GET],
    ),
    "bad length": ([[b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok"]], [GET]),
    "negative length": ([[b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok"]], [GET]),
    "chunked": (
        [
            [
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
                b"5;x=y\r\nhel",
                b"lo\r\n1 \r\n!\r\n",
                b"0\r\nTrailer: t\r\n\r\n",
            ]
        ],
        [GET, GET],
    ),
    "bad chunk": ([[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n"]], [GET]),
    "chunk longer than said": (
        [[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n"]],
        [GET],
    ),
    "byte by byte": ([[OK[i : i + 1] for i in range(len(OK))]], [GET, GET]),
    "until the end": ([[b"HTTP/1.1 200 OK\r\n\r\nall ", b"of it", CLOSE]], [GET, GET]),
    "until the end, HTTP/1.0": ([[b"HTTP/1.0 200 OK\r\n\r\nall of it", CLOSE]], [GET, GET]),
    "HTTP/1.0 with a length": ([[b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", CLOSE]], [GET, GET]),
    "HTTP/1.0 keep-alive": (
        [[b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"]],
        [GET, GET],
    ),
    "connection: close": (
        [[b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok", CLOSE]],
        [GET, GET],
    ),
    "connection: close, not closed": (
        [[b"HTTP/1.1 200 OK\r\nConnection: x, close\r\nContent-Length: 2\r\n\r\nok"]],
        [GET, GET],
    ),
    "the request says close": ([[OK]], [{"method": "GET", "headers": {"Connection": "close"}}, GET]),
    "HEAD": ([[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"]], [{"method": "HEAD"}] * 3),
    "HEAD without length": ([[b"HTTP/1.1 200 OK\r\n\r\n"]], [{"method": "HEAD"}] * 2),
    "HEAD, chunked": ([[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]], [{"method": "HEAD"}] * 2),
    "HEAD and then GET": (
        [[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"], [OK]],
        [{"method": "HEAD"}, GET],
    ),
    "204": ([[b"HTTP/1.1 204 No Content\r\n\r\n"]], [GET, {"method": "DELETE"}]),
    "204 with a length": ([[b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"]], [GET, GET]),
    "304 with a length": (
        [[b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n"]],
        [GET, GET],
    ),
    "informational replies": (
        [[b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", OK]],
        [GET, GET],
    ),
    "expect: 100-continue": (
        [[b"HTTP/1.1 100 Continue\r\n\r\n" + OK]],
        [{"method": "POST", "headers": {"Expect": "100-continue"}, "content": b"body"}] * 2,
    ),
    "101 that nobody asked for": (
        [[b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"]],
        [GET],
    ),
    "gzip": (
        [
            [
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
                % (len(gzip.compress(BIG, mtime=0)), gzip.compress(BIG, mtime=0))
            ]
        ],
        [GET, GET],
    ),
    "large body": ([[b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG), BIG]], [GET, GET]),
    "large head": (
        [
            [
                b"HTTP/1.1 200 OK\r\n"
                + b"".join(b"X-%d: %b\r\n" % (i, b"v" * 1000) for i in range(60))
                + b"Content-Length: 2\r\n\r\nok"
            ]
        ],
        [GET, GET],
    ),
    "endless head": (
        [[b"HTTP/1.1 200 OK\r\n", b"".join(b"X-%d: %b\r\n" % (i, b"v" * 1000) for i in range(400))]],
        [GET],
    ),
    "no reply": ([[CLOSE]], [GET]),
    "reset": ([[RESET]], [{"method": "POST"}]),
    "half a head": ([[b"HTTP/1.1 200 OK\r\nContent-", CLOSE]], [GET]),
    "half a body": ([[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", CLOSE]], [GET]),
    "half a chunk": ([[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", CLOSE]], [GET]),
    "chunks without end": (
        [[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", CLOSE]],
        [GET],
    ),
    "not HTTP": ([[b"SSH-2.0-OpenSSH_9\r\n\r\n"]], [GET]),
    "no colon": ([[b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"]], [GET]),
    "blank before the colon": ([[b"HTTP/1.1 200 OK\r\nX : 1\r\nContent-Length: 0\r\n\r\n"]], [GET]),
    "blank in a name": ([[b"HTTP/1.1 200 OK\r\nX y: 1\r\nContent-Length: 0\r\n\r\n"]], [GET]),
    "status of two digits": ([[b"HTTP/1.1 99 Odd\r\nContent-Length: 0\r\n\r\n"]], [GET]),
    "status 999": ([[b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"]], [GET, GET]),
    "apache's offer of h2": (
        [[b"HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok"]],
        [GET, GET],
    ),
    "an empty line first": ([[b"\r\n" + OK]], [GET]),
    "an empty line after an informational reply": ([[b"HTTP/1.1 100 Continue\r\n\r\n\r\n" + OK]], [GET]),
    "informational and then the end": ([[b"HTTP/1.1 103 Early Hints\r\n\r\n", CLOSE]], [{"method": "POST"}]),
    "informational with a length": (
        [[b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n", OK]],
        [GET, GET],
    ),
    "another protocol": ([[b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"]], [GET]),
    "TLS alert": ([[b"\x15\x03\x01\x00\x02\x02\x46", CLOSE]], [GET]),
    "a chunk that ends in a line feed": (
        [[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n", CLOSE]],
        [GET],
    ),
    "two transfer codings": (
        [[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]],
        [GET],
    ),
    "a length of many digits": (
        [[b"HTTP/1.1 200 OK\r\nContent-Length: 000000000000000000002\r\n\r\nok"]],
        [GET],
    ),
    "204, chunked": (
        [[b"HTTP/1.1 204 None\r\nTransfer-Encoding: chunked\r\n\r\n"]],
        [GET, GET],
    ),
}

#: name: requests, which a server answers with OK; what arrived is compared.
REQUESTS: dict[str, Request] = {
    "get": {"method": "GET", "url": "/a/b%20c?x=1&y=%C3%A9"},
    "header order and case": {
        "method": "GET",
        "headers": [("X-b", "1"), ("x-A", "2"), ("X-B", "3"), ("Empty", "")],
    },
    "own host": {"method": "GET", "headers": {"host": "else.where:81"}},
    "two hosts": {"method": "GET", "headers": [("Host", "one"), ("Host", "two")]},
    "latin-1 value": {"method": "GET", "headers": {"X": "caf\xe9".encode("latin-1")}},
    "injected header": {"method": "GET", "headers": {"X": "a\r\nY: b"}},
    "line feed in a value": {"method": "GET", "headers": {"X": "a\nb"}},
    "NUL in a value": {"method": "GET", "headers": {"X": "a\0b"}},
    "blank around a value": {"method": "GET", "headers": {"X": " a "}},
    "injected name": {"method": "GET", "headers": {"X: a\r\nY": "b"}},
    "empty name": {"method": "GET", "headers": {"": "b"}},
    "bad method": {"method": "GE T"},
    "own method": {"method": "BREW"},
    "post": {"method": "POST", "content": b"body"},
    "empty post": {"method": "POST"},
    "json": {"method": "PUT", "json": {"a": 1}},
    "form": {"method": "POST", "data": {"a": "1"}},
    "files": {
        "method": "POST",
        "files": {"f": b"content"},
        "headers": {"Content-Type": "multipart/form-data; boundary=x"},
    },
    "large body": {"method": "POST", "content": BIG},
    "generator": {"method": "POST", "content": body_of(b"one", b"", b"two" * 10000)},
    "empty generator": {"method": "POST", "content": body_of()},
    "generator with a length": {
        "method": "POST",
        "content": body_of(b"one"),
        "headers": {"Content-Length": "3"},
    },
    "too short for its length": {
        "method": "POST",
        "content": body_of(b"one"),
        "headers": {"Content-Length": "5"},
    },
    "too long for its length": {
        "method": "POST",
        "content": body_of(b"one"),
        "headers": {"Content-Length": "2"},
    },
    "bad length": {"method": "POST", "content": b"x", "headers": {"Content-Length": "x"}},
    "unknown transfer coding": {"method": "POST", "content": b"x", "headers": {"Transfer-Encoding": "gzip"}},
    "close": {"method": "GET", "headers": {"Connection": "close"}},
}

#: Where the fast wire differs from bare httpx: httpcore lets h11's exception through for these two; here it is httpx's.
FAST_MAPS = {"too short for its length", "too long for its length"}


def wired(kind: str, port: int, asynchronous: bool, **options: Any) -> Any:
    """A client that reaches the server on ``port`` under the name of a Service."""
    handle: Any = FakeHandle([("127.0.0.1", port)])
    options["verify"] = False  # no certificates to load
    transport: Any = httpx.AsyncHTTPTransport(**options) if asynchronous else httpx.HTTPTransport(**options)
    if kind != "bare":
        pool = AsyncMeshPool if asynchronous else MeshPool
        transport._pool = pool(transport._pool, load(), handle=handle, wire=kind)
    return (httpx.AsyncClient if asynchronous else httpx.Client)(
        transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=httpx.Timeout(5)
    )


def outcome(reply: httpx.Response) -> tuple[Any, ...]:
    return (
        reply.status_code,
        reply.http_version,
        reply.extensions["reason_phrase"],
        reply.headers.raw,
        reply.content,
    )


def arguments(request: Request, asynchronous: bool) -> dict[str, Any]:
    made = {"url": "/", **request}
    if callable(content := made.get("content")):
        made["content"] = content(asynchronous)
    return made


def sync_outcomes(kind: str, port: int, requests: Sequence[Request]) -> list[Any]:
    found: list[Any] = []
    with wired(kind, port, False) as client:
        for request in requests:
            try:
                found.append(outcome(client.request(**arguments(request, False))))
            except Exception as error:
                found.append(type(error))
    return found


def aio_outcomes(kind: str, port: int, requests: Sequence[Request]) -> list[Any]:
    async def main() -> list[Any]:
        found: list[Any] = []
        async with wired(kind, port, True) as client:
            for request in requests:
                try:
                    found.append(outcome(await client.request(**arguments(request, True))))
                except Exception as error:
                    found.append(type(error))
        return found

    return asyncio.run(main())


COLOURS = pytest.mark.parametrize("outcomes", [sync_outcomes, aio_outcomes], ids=["sync", "asyncio"])


@COLOURS
@pytest.mark.parametrize("kind", ["httpcore", "fast"])
@pytest.mark.parametrize("name", REPLIES)
def test_replies_are_read_alike(name: str, kind: str, outcomes: Callable[..., list[Any]]) -> None:
    """The same bytes from the server: equal status, reason, headers, body, or the same exception; the same reuse."""
    script, requests = REPLIES[name]
    seen = []
    for each in ("bare", kind):
        with ScriptedServer(script) as server:
            seen.append((outcomes(each, server.port, requests), server.connections))
    (bare, bare_connections), (ours, our_connections) = seen
    assert ours == bare
    # bare httpx does not repeat a GET whose connection broke, so failures may differ in how often they connect
    if not any(isinstance(each, type) for each in bare) and name not in FEWER_REUSED:
        assert our_connections == bare_connections


#: Replies that only the second reader takes: right, but their connection is not used again.
FEWER_REUSED = {
    "control character in a value",
    "folded header",
    "the same length twice",
    "length as a list",
    "length and chunks",
}


@COLOURS
@pytest.mark.parametrize("kind", ["httpcore", "fast"])
@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_sent_alike(name: str, kind: str, outcomes: Callable[..., list[Any]]) -> None:
    """What arrives is equal byte for byte, the port in Host aside; what is refused raises the same exception."""
    seen = []
    for each in ("bare", kind):
        with ScriptedServer([[OK]]) as server:
            found = outcomes(each, server.port, [REQUESTS[name]])
            heads = [head.replace(b":%d" % server.port, b"") for head in server.heads]
            if isinstance(
                found[0], type
            ):  # how much of a bad request went out before it was noticed is of no use
                assert issubclass(found[0], (httpx.LocalProtocolError, h11.LocalProtocolError))
                heads = []
                if name in FAST_MAPS:
                    found = [httpx.LocalProtocolError]
            seen.append((found, heads, server.bodies if heads else []))
    assert seen[1] == seen[0]
