"""A client at rest: what expires, and what was thrown away, is closed without another request.

Over each wire and protocol; with a keepalive_expiry of a blink, and sweeps as often.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx import sweeping
from tests.components.backends import Backends, HttpBackend
from tests.unit.clients_httpx.fakes import FakeHandle, async_transport, sync_transport

pytestmark = pytest.mark.usefixtures("wire")

LIMITS = httpx.Limits(keepalive_expiry=0.02)
KINDS = pytest.mark.parametrize("kind", ["http", "https", "h2"])


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "PAUSE", 0.01)


def one(backends: Backends, kind: str) -> tuple[HttpBackend, str, dict[str, Any]]:
    """A server, its URL and a transport's options."""
    if kind == "http":
        (server,) = backends.http(1)
        return server, "http://orders.shop.svc", {"limits": LIMITS}
    (server,) = backends.http(1, tls="orders.shop.svc")
    options = {"limits": LIMITS, "verify": backends.client_context(), "http2": kind == "h2"}
    return server, "https://orders.shop.svc", options


def soon(fact: Any) -> bool:
    end = time.monotonic() + 60
    while not fact() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(fact())


async def soon_async(fact: Any) -> bool:
    end = time.monotonic() + 60
    while not fact() and time.monotonic() < end:
        await asyncio.sleep(0.005)
    return bool(fact())


@KINDS
def test_of_threads(backends: Backends, kind: str) -> None:
    """In the process's background thread; the next request opens a connection, which closes again."""
    server, url, options = one(backends, kind)
    transport = sync_transport(FakeHandle([(server.host, server.port)]), **options)
    pool: Any = transport._pool
    with httpx.Client(transport=transport, timeout=60) as client:
        for number in (1, 2):
            client.get(url)
            assert soon(lambda: not server.connections)
            assert (server.accepted, pool._engine.allowance.used) == (number, 0)


@KINDS
def test_of_a_loop(backends: Backends, kind: str) -> None:
    """By the loop itself."""
    server, url, options = one(backends, kind)

    async def main() -> None:
        transport = async_transport(FakeHandle([(server.host, server.port)]), **options)
        pool: Any = transport._pool
        async with httpx.AsyncClient(transport=transport, timeout=60) as client:
            for number in (1, 2):
                await client.get(url)
                assert await soon_async(lambda: not server.connections)
                (engine,) = pool._engines.values()
                assert (server.accepted, engine.allowance.used) == (number, 0)

    asyncio.run(main())


def test_a_reply_that_was_thrown_away(backends: Backends) -> None:
    """Its connection closes and its request is over, also when no other request comes."""
    server, url, options = one(backends, "http")
    handle = FakeHandle([(server.host, server.port)])
    with httpx.Client(transport=sync_transport(handle, **options), timeout=60) as client:
        reply = client.send(client.build_request("GET", f"{url}/stream/100000/0.01"), stream=True)
        assert handle.inflight == 1
        del reply
        gc.collect()
        assert soon(lambda: not handle.inflight and not server.connections)


def test_a_stream_that_is_read_is_no_rest(backends: Backends) -> None:
    """A connection in use is not idle, however long its reply takes."""
    server, url, options = one(backends, "http")
    handle = FakeHandle([(server.host, server.port)])
    with (
        httpx.Client(transport=sync_transport(handle, **options), timeout=60) as client,
        client.stream("GET", f"{url}/stream/30/0.01") as reply,
    ):
        assert len(list(reply.iter_lines())) == 30
    assert server.accepted == 1
