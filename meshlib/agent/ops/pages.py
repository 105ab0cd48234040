"""A small HTTP server for probes and scrapes: one GET per connection, bounded in size and time.

Parsing is httptools' (llhttp); there is no more to it because its clients are kubelets, load balancers and Prometheus.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httptools

#: Bytes of a request: a probe has a few hundred.
MAX_REQUEST = 8192
#: Seconds from connecting to the last byte of the answer: what probes allow themselves at most, by default 1 to 10.
MAX_SECONDS = 10.0
#: Connections at once on one port. Beyond, the oldest habit of a full server: refuse by closing.
MAX_CONNECTIONS = 128


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = field(default=())


def json_page(status: int, value: Any, headers: tuple[tuple[str, str], ...] = ()) -> Page:
    """A page of JSON."""
    body = json.dumps(value, indent=2, sort_keys=True, default=str).encode() + b"\n"
    return Page(status, body, "application/json", headers)


#: From the path (without query) to the page; None: there is no such page.
Site = Callable[[str], Page | None]


class PageServer:
    """On one asyncio loop. ``start`` raises OSError when the address cannot be had."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen. Returns the address and the port, which the kernel chose for port 0."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST)
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    async def close(self) -> None:
        """Stop listening; connections that are open end."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            async with asyncio.timeout(MAX_SECONDS):
                request = await _read(reader)
                writer.write(_answer(request, self._site))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()  # the client went away, or took too long, or we stop
        finally:
            self._connections.discard(task)


@dataclass(slots=True)
class _Request:
    """What httptools' parser tells."""

    url: bytes = b""
    method: str = ""
    done: bool = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_headers_complete(self) -> None:
        self.done = True


async def _read(reader: asyncio.StreamReader) -> _Request:
    request = _Request()
    parser = httptools.HttpRequestParser(request)
    size = 0
    while True:
        data = await reader.read(MAX_REQUEST)
        size += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            break
        if request.done:
            request.method = parser.get_method().decode("ascii")
            break
        if not data or size > MAX_REQUEST:
            break
    return request


def _answer(request: _Request, site: Site) -> bytes:
    page: Page | None
    if not request.method:
        page = Page(HTTPStatus.BAD_REQUEST, b"not an HTTP request\n")
    elif request.method not in ("GET", "HEAD"):
        page = Page(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET\n", headers=(("Allow", "GET, HEAD"),))
    else:
        path = request.url.split(b"?", 1)[0].decode("ascii", "replace")
        page = site(path) or Page(HTTPStatus.NOT_FOUND, b"no such page\n")
    lines = [
        f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(page.body)}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *(f"{name}: {value}" for name, value in page.headers),
    ]
    head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    return head if request.method == "HEAD" else head + page.body
