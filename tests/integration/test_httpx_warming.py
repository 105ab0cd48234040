"""Connections opened ahead for endpoints that join, over the fast wire: sync and asyncio, HTTP and TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx import warming
from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from meshlib.clients.httpx.transport import MeshTransport
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.testing.manual import ManualResolver
from tests.components.backends import Backends, HttpBackend
from tests.components.process import free_port
from tests.unit.clients_httpx.fakes import FakeHandle


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delays are random below this, and nothing here depends on which."""
    monkeypatch.setattr(warming, "SPREAD", 0.02)


def places(servers: list[HttpBackend]) -> list[tuple[str, int]]:
    return [(server.host, server.port) for server in servers]


def eventually(fact: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


async def eventually_async(fact: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


def sync_client(handle: FakeHandle, **options: Any) -> httpx.Client:
    transport = httpx.HTTPTransport(**{"verify": False, **options})
    pool = MeshPool(transport._pool, load(), handle=handle, wire=options.pop("wire", "fast"))  # type: ignore[arg-type]
    transport._pool = pool  # type: ignore[assignment]
    return httpx.Client(transport=transport)


def aio_client(handle: FakeHandle, **options: Any) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(**{"verify": False, **options})
    pool = AsyncMeshPool(transport._pool, load(), handle=handle, wire="fast")  # type: ignore[arg-type]
    transport._pool = pool  # type: ignore[assignment]
    return httpx.AsyncClient(transport=transport)


def engine_of(client: Any) -> Any:
    pool = client._transport._pool
    return pool._engine if isinstance(pool, MeshPool) else next(iter(pool._engines.values()))


def hold(client: httpx.Client, url: str, requests: int) -> ExitStack:
    """Responses that are not read, each on a connection of its own."""
    held = ExitStack()
    for _ in range(requests):
        held.enter_context(client.stream("GET", url))
    return held


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_joiner_is_connected_as_its_peers_are(backends: Backends, tls: bool) -> None:
    """Two peers with three connections each in use: one that joins gets its share of two before any request, idle, and
    they serve requests; when it leaves they are closed."""
    *old, new = backends.http(3, tls="orders.shop.svc" if tls else None)
    url = f"http{'s' if tls else ''}://orders.shop.svc/stream/1/0"
    handle = FakeHandle(places(old))
    with sync_client(handle, verify=backends.client_context() if tls else False) as client:
        with hold(client, url, 6):
            handle.replace(places([*old, new]))
            eventually(lambda: new.accepted == 2)
            eventually(lambda: engine_of(client)._warmer._plan.planned == 0)
            assert engine_of(client).allowance.used == 8
        for _ in range(3):
            client.get(url)
        assert (new.requests, new.accepted) == (1, 2)
        handle.replace(places(old))
        eventually(lambda: new.connections == 0)

    async def main() -> None:
        handle = FakeHandle(places(old))
        verify = backends.client_context() if tls else False
        async with aio_client(handle, verify=verify) as client:
            replies = [await client.send(client.build_request("GET", url), stream=True) for _ in range(6)]
            before = new.accepted
            handle.replace(places([*old, new]))
            await eventually_async(lambda: new.accepted == before + 2)
            await eventually_async(lambda: engine_of(client)._warmer._plan.planned == 0)
            assert engine_of(client).allowance.used == 8
            for reply in replies:
                await reply.aclose()
            for _ in range(3):
                await client.get(url)
            assert new.accepted == before + 2
            handle.replace(places(old))
            await eventually_async(lambda: new.connections == 0)

    asyncio.run(main())


def test_a_client_that_is_hardly_used_opens_nothing(backends: Backends) -> None:
    """One connection to one of four: nothing is planned, nor for a client that was not used at all."""
    *old, new = backends.http(5)
    handle = FakeHandle(places(old))
    with sync_client(handle) as client, sync_client(handle) as unused:
        client.get("http://orders.shop.svc")
        handle.replace(places([*old, new]))
        assert engine_of(client)._warmer._plan.planned == 0
        assert engine_of(unused) is None
    assert new.accepted == 0


@pytest.mark.parametrize(
    "options",
    [
        {"limits": httpx.Limits(max_connections=1)},
        {"limits": httpx.Limits(max_keepalive_connections=0)},
    ],
    ids=["one connection", "nothing kept"],
)
def test_limits_come_first(backends: Backends, options: dict[str, Any]) -> None:
    """No place is taken that a request might want, and nothing is opened that the client would not keep."""
    old, new = backends.http(2)
    handle = FakeHandle(places([old]))
    with sync_client(handle, **options) as client, hold(client, "http://orders.shop.svc/stream/1/0", 1):
        handle.replace(places([old, new]))
        eventually(lambda: engine_of(client)._warmer._plan.planned == 0)
        assert engine_of(client).allowance.used == 1
    assert new.accepted == 0


def test_half_of_the_total_cap_stays_free(backends: Backends) -> None:
    """Near the cap, what is open ahead would only drive out what is used."""
    old, new = backends.http(2)
    handle = FakeHandle(places([old]))
    with sync_client(handle) as client:
        client.get("http://orders.shop.svc")
        engine_of(client).allowance.cap = 3
        handle.replace(places([old, new]))
        eventually(lambda: engine_of(client)._warmer._plan.planned == 0)
        assert engine_of(client).allowance.used == 1
    assert new.accepted == 0


def test_an_endpoint_that_cannot_be_reached_ahead_is_not_blamed(backends: Backends) -> None:
    """It joined before it listens: nothing is counted against it, and requests connect as ever."""
    (old,) = backends.http(1)
    handle = FakeHandle(places([old]))
    deaf = ("127.0.0.1", free_port("127.0.0.1"))
    with sync_client(handle) as client:
        client.get("http://orders.shop.svc")
        handle.replace([*places([old]), deaf])
        eventually(lambda: engine_of(client)._warmer._plan.planned == 0)
        assert engine_of(client).allowance.used == 1
        assert handle.subchannels[deaf].failures == handle.subchannels[deaf].requests == 0


def test_closing_ends_what_is_planned(backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays are no tasks that a loop would have to wait for, and a closed client opens nothing."""
    monkeypatch.setattr(warming, "SPREAD", 3600.0)
    old, new = backends.http(2)

    async def main() -> None:
        handle = FakeHandle(places([old]))
        async with aio_client(handle) as client:
            await client.get("http://orders.shop.svc")
            engine = engine_of(client)
            handle.replace(places([old, new]))
            await asyncio.sleep(0)
            assert engine._warmer._plan.planned == 1
            assert asyncio.all_tasks() == {asyncio.current_task()}
        assert engine._warmer._plan.planned == 0

    asyncio.run(main())
    assert new.accepted == 0


def test_a_rollout_through_a_real_mesh(backends: Backends) -> None:
    """Every pod is replaced at once: the new ones are connected although none of the old stays; a Service of many
    endpoints is not."""
    old, new = backends.http(2), backends.http(2)
    resolver = ManualResolver()
    config = load_config({"picker": "round_robin"}, environ={})
    with Mesh(resolvers={"k8s": resolver}, config=config) as mesh:
        resolver.endpoints("shop/orders", [server.address for server in old])
        with httpx.Client(transport=MeshTransport("k8s:///orders.shop:80", mesh=mesh)) as client:
            assert {client.get("http://orders.shop.svc").status_code for _ in range(4)} == {200}
            resolver.endpoints("shop/orders", [server.address for server in new])
            eventually(lambda: [server.accepted for server in new] == [1, 1])
            eventually(lambda: not any(server.connections for server in old))
            many = [f"127.1.{number // 256}.{number % 256}:9" for number in range(warming.MANY)]
            resolver.endpoints("shop/orders", [*(server.address for server in new), *many])
            eventually(lambda: len(mesh.handles[0].status()["endpoints"]) > warming.MANY)
            engine = engine_of(client)
            assert (engine.allowance.used, engine._warmer._plan.planned) == (2, 0)
