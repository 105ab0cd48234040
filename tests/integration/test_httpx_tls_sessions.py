"""What TLS costs: one context for all endpoints, one full handshake for each, renewed when the server has forgotten."""

from __future__ import annotations

import asyncio
import gc
import ssl
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from tests.components.backends import Backends
from tests.unit.clients_httpx.fakes import FakeHandle

NAME = "orders.shop.svc"
COLOURS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])


def resumed(
    backends: Backends, servers: list[Any], asynchronous: bool, between: dict[int, Any]
) -> list[bool]:
    """Whether each of seven connections resumed a session. ``between``: what to do before which one."""
    handle: Any = FakeHandle([(server.host, server.port) for server in servers])
    options: dict[str, Any] = {"verify": backends.client_context(), "trust_env": False}
    found: list[bool] = []
    url, close = f"https://{NAME}/", {"Connection": "close"}

    def note(reply: httpx.Response) -> None:
        tls = reply.extensions["network_stream"].get_extra_info("ssl_object")
        found.append(tls.session_reused)

    def sync() -> None:
        transport: Any = httpx.HTTPTransport(**options)
        transport._pool = MeshPool(transport._pool, load(), handle=handle, wire="fast")
        with httpx.Client(transport=transport) as client:
            for turn in range(7):
                between.get(turn, int)()
                client.get(url)  # the ticket comes with the first bytes of a reply
                with client.stream("GET", url, headers=close) as reply:
                    note(reply)

    async def later() -> None:
        transport: Any = httpx.AsyncHTTPTransport(**options)
        transport._pool = AsyncMeshPool(transport._pool, load(), handle=handle, wire="fast")
        async with httpx.AsyncClient(transport=transport) as client:
            for turn in range(7):
                await asyncio.to_thread(between.get(turn, int))
                await client.get(url)
                async with client.stream("GET", url, headers=close) as reply:
                    note(reply)

    if asynchronous:
        asyncio.run(later())
    else:
        sync()
    assert handle.inflight == 0
    return found


@COLOURS
def test_a_server_with_other_keys_gets_a_new_session(backends: Backends, asynchronous: bool) -> None:
    """Restarted at the same address, it cannot resume what it never knew: one full handshake, then resumed again."""
    (server,) = backends.http(1, tls=NAME)

    def restart() -> None:
        server.stop()
        server._tls = backends._server_context(NAME)
        server.start()

    found = resumed(backends, [server], asynchronous, {3: restart})
    assert found == [False, True, True, False, True, True, True]


@COLOURS
def test_one_context_for_all_endpoints(backends: Backends, asynchronous: bool) -> None:
    """No context is made for an endpoint, and no session of one is offered to another, which may be somebody else."""
    servers = backends.http(7, tls=NAME)
    made: list[int] = []

    def count() -> None:
        gc.collect()
        made.append(sum(isinstance(thing, ssl.SSLContext) for thing in gc.get_objects()))

    found = resumed(backends, servers, asynchronous, {1: count, 6: count})
    assert made[0] == made[1]
    assert sum(server.requests for server in servers) == 14
    assert found == [False] * 7  # each endpoint's first handshake, though all have the same keys
