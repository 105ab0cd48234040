"""What TLS costs: one context for all endpoints, one full handshake for each, renewed when the server has forgotten and
before what it proved is too old."""

from __future__ import annotations

import asyncio
import gc
import ssl
from functools import partial
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx.fast.sessions import SESSION_AGE
from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from tests.components.backends import Backends
from tests.unit.clients_httpx.fakes import FakeHandle

NAME = "orders.shop.svc"
COLOURS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def resumed(
    backends: Backends,
    servers: list[Any],
    asynchronous: bool,
    between: dict[int, Any],
    context: ssl.SSLContext | None = None,
    clock: Clock | None = None,
) -> list[bool]:
    """Whether each of seven connections resumed a session. ``between``: what to do before which one."""
    handle: Any = FakeHandle([(server.host, server.port) for server in servers])
    options: dict[str, Any] = {"verify": context or backends.client_context(), "trust_env": False}
    inside: Any = {"handle": handle, "wire": "fast", "now": clock or Clock()}
    found: list[bool] = []
    url, close = f"https://{NAME}/", {"Connection": "close"}

    def note(reply: httpx.Response) -> None:
        tls = reply.extensions["network_stream"].get_extra_info("ssl_object")
        found.append(tls.session_reused)

    def sync() -> None:
        transport: Any = httpx.HTTPTransport(**options)
        transport._pool = MeshPool(transport._pool, load(), **inside)
        with httpx.Client(transport=transport) as client:
            for turn in range(7):
                between.get(turn, int)()
                client.get(url)  # the ticket comes with the first bytes of a reply
                with client.stream("GET", url, headers=close) as reply:
                    note(reply)

    async def later() -> None:
        transport: Any = httpx.AsyncHTTPTransport(**options)
        transport._pool = AsyncMeshPool(transport._pool, load(), **inside)
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


@COLOURS
def test_a_session_ends_some_time_after_the_peer_was_verified(backends: Backends, asynchronous: bool) -> None:
    """However often it was resumed since: the third and the fourth connection do not make it any younger."""
    (server,) = backends.http(1, tls=NAME)
    clock = Clock()
    half = partial(clock.passes, SESSION_AGE / 2)
    found = resumed(backends, [server], asynchronous, {2: half, 4: half}, clock=clock)
    assert found == [False, True, True, True, False, True, True]


@COLOURS
def test_a_context_that_asks_for_more_resumes_nothing(backends: Backends, asynchronous: bool) -> None:
    """What was not looked at then is looked at now."""
    (server,) = backends.http(1, tls="somebody.else")
    context = backends.client_context()
    context.check_hostname = False

    def ask() -> None:
        context.check_hostname = True

    with pytest.raises(httpx.ConnectError, match=r"not valid for 'orders\.shop\.svc'"):
        resumed(backends, [server], asynchronous, {3: ask}, context)
    assert server.accepted == 3


def presenting(backends: Backends, name: str, context: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """A client's context with a certificate of that name."""
    context = context or backends.client_context()
    backends.authority.issue_cert(name).configure_cert(context)
    return context


@COLOURS
def test_a_clients_certificate_is_its_own(backends: Backends, asynchronous: bool) -> None:
    """Clients of one process with one certificate each do not use each other's sessions; a certificate that is
    replaced in the context is shown when the session ends."""
    tls = backends._server_context(NAME)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(cadata=backends.ca_pem.decode())
    (server,) = backends.http(1, tls=NAME)
    server.stop()
    server._tls = tls
    server.start()
    clock = Clock()
    context = presenting(backends, "first.test")

    def replace() -> None:
        presenting(backends, "third.test", context)
        clock.passes(SESSION_AGE)

    assert resumed(backends, [server], asynchronous, {4: replace}, context, clock)[:5] == [
        *(False, True, True, True),
        False,
    ]
    assert server.peers == ["first.test"] * 4 + ["third.test"] * 3
    resumed(backends, [server], asynchronous, {}, presenting(backends, "second.test"), clock)
    assert server.peers[7:] == ["second.test"] * 7
