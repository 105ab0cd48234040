"""What looks idle or expired and is not: over httpcore's pools.

An endpoint leaves between the moment in which a request is given an idle connection and the one in which it begins;
no request fails for it, a POST neither.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from tests.components.backends import Backends
from tests.unit.clients_httpx.fakes import FakeHandle

URL = "https://orders.shop.svc/echo"
HTTP2 = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


@HTTP2
def test_in_asyncio(backends: Backends, http2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection closes when its request has ended."""
    (server,) = backends.http(1, tls="orders.shop.svc")
    handle: Any = FakeHandle([(server.host, server.port)])
    transport: Any = httpx.AsyncHTTPTransport(verify=backends.client_context(), http2=http2)
    transport._pool = AsyncMeshPool(transport._pool, load(), handle=handle, wire="httpcore")
    kind: Any = load().core.AsyncHTTPConnection
    usual = kind.handle_async_request

    async def main() -> int:
        async with httpx.AsyncClient(transport=transport, timeout=60) as client:
            await client.post(URL, content=b"first")
            engine = transport._pool._engines[asyncio.get_running_loop()]

            async def leaves_first(connection: Any, request: Any) -> Any:
                engine._retire(next(iter(handle.subchannels.values())))
                return await usual(connection, request)

            monkeypatch.setattr(kind, "handle_async_request", leaves_first)
            status = (await client.post(URL, content=b"second")).status_code
            while engine.allowance.used:
                await asyncio.sleep(0)
            return status

    assert asyncio.run(main()) == 200
    assert server.accepted == 1


@HTTP2
def test_in_threads(backends: Backends, http2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same; another thread takes what is idle before the request begins and closes it after."""
    (server,) = backends.http(1, tls="orders.shop.svc")
    handle: Any = FakeHandle([(server.host, server.port)])
    transport: Any = httpx.HTTPTransport(verify=backends.client_context(), http2=http2)
    transport._pool = pool = MeshPool(transport._pool, load(), handle=handle, wire="httpcore")
    core = load().core
    kind: Any = core.HTTPConnection
    usual, close = kind.handle_request, kind.close
    begun, closed = threading.Event(), threading.Event()

    with httpx.Client(transport=transport, timeout=60) as client:
        client.post(URL, content=b"first")
        engine: Any = pool._engine

        def retire() -> None:
            engine.retire(next(iter(handle.subchannels.values())))
            closed.set()

        def close_later(connection: Any) -> None:
            taken.set()
            begun.wait(10)
            close(connection)

        taken = threading.Event()
        other = threading.Thread(target=retire)

        def leaves_first(connection: Any, request: Any) -> Any:
            other.start()
            while not taken.is_set() and not closed.wait(0.001):
                pass
            trace = request.extensions.get("trace")
            assert trace is None

            def begin(name: str, info: Any) -> None:
                if name.endswith("send_request_body.complete"):
                    begun.set()
                    closed.wait(10)

            request.extensions["trace"] = begin
            return usual(connection, request)

        monkeypatch.setattr(kind, "handle_request", leaves_first)
        monkeypatch.setattr(kind, "close", close_later)
        assert client.post(URL, content=b"second").status_code == 200
        begun.set()
        other.join(10)
        assert engine.allowance.used == 0
    assert server.accepted == 1


def test_a_connection_in_use_that_looks_expired_takes_no_second_place(backends: Backends) -> None:
    """httpcore asks whether it is idle, then whether it is readable; a request may begin and be answered meanwhile."""
    (server,) = backends.http(1)
    handle: Any = FakeHandle([(server.host, server.port)])
    transport: Any = httpx.HTTPTransport(limits=httpx.Limits(max_connections=1))
    pool: Any = MeshPool(transport._pool, load(), handle=handle, wire="httpcore")
    transport._pool = pool
    url = "http://orders.shop.svc"
    with httpx.Client(transport=transport, timeout=60) as client:
        client.get(url)
        (inner,) = pool._engine._all()
        (connection,) = inner._connections
        with client.stream("GET", url) as reply:
            connection.inner.has_expired = lambda: True
            with pytest.raises(httpx.PoolTimeout):
                client.get(url, timeout=httpx.Timeout(60, pool=0.01))
            del connection.inner.has_expired
            reply.read()
        client.get(url)
    assert server.accepted == 1
