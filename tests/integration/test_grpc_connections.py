"""Connections that servers end: what grpcio's round_robin makes of it, and we."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from tests.integration.grpc_support import US, UU, Shop, shop

ROUND_ROBIN = [("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1)]
#: Seconds of load: each connection lives a tenth of a second, so it ends a few dozen times.
LOAD = 1.0


@pytest.fixture
def mesh() -> Iterator[Shop]:
    with shop() as made:
        yield made


class Aging:
    """Servers that send GOAWAY to each connection after a tenth of a second, with time for the calls on it."""

    def __init__(self) -> None:
        self.peers: set[str] = set()
        self.addresses: list[str] = []

    def unary(self, request: bytes, context: Any) -> bytes:
        self.peers.add(context.peer())
        return request

    def stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        self.peers.add(context.peer())
        yield request
        yield request


@contextmanager
def aging(count: int = 3) -> Iterator[Aging]:
    made = Aging()
    handlers = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(made.unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(made.stream),
    }
    options = [("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 30_000)]
    servers = []
    for _ in range(count):
        server = grpc.server(ThreadPoolExecutor(4), options=options)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
        made.addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        servers.append(server)
    try:
        yield made
    finally:
        for server in servers:
            server.stop(None).wait(10)


def load(channel: Any) -> Counter[Any]:
    """What becomes of calls of three kinds, each in a thread of its own."""
    until = time.monotonic() + LOAD
    unary, stream = channel.unary_unary(UU), channel.unary_stream(US)

    def work(call: Any) -> Counter[Any]:
        seen: Counter[Any] = Counter()
        while time.monotonic() < until:
            try:
                call()
                seen["answered"] += 1
            except grpc.RpcError as error:
                seen[str(error.code()), error.details()] += 1
        return seen

    kinds = (
        lambda: unary(b"x", timeout=30),
        lambda: unary.future(b"x", timeout=30).result(),
        lambda: list(stream(b"x", timeout=30)),
    )
    with ThreadPoolExecutor(len(kinds)) as threads:
        return sum(threads.map(work, kinds), Counter())


async def aio_load(channel: Any) -> Counter[Any]:
    until = time.monotonic() + LOAD
    unary, stream = channel.unary_unary(UU), channel.unary_stream(US)
    seen: Counter[Any] = Counter()

    async def one() -> None:
        await unary(b"x", timeout=30)

    async def several() -> None:
        async for _ in stream(b"x", timeout=30):
            pass

    async def work(call: Any) -> None:
        while time.monotonic() < until:
            try:
                await call()
                seen["answered"] += 1
            except grpc.RpcError as error:
                seen[str(error.code()), error.details()] += 1

    await asyncio.gather(work(one), work(one), work(several))
    await channel.close()
    return seen


def test_connections_that_age_lose_no_call(mesh: Shop) -> None:
    """Under max_connection_age no call of any kind fails, as none does under round_robin; connections were renewed."""
    with aging() as servers:
        with grpc.insecure_channel("ipv4:" + ",".join(servers.addresses), options=ROUND_ROBIN) as bare:
            expected = load(bare)
        servers.peers.clear()
        mesh.serve(servers.addresses)
        seen = load(mesh.channel())
        assert len(servers.peers) > len(servers.addresses)
    assert set(seen) == set(expected) == {"answered"}
    assert mesh.inflight == 0


def test_connections_that_age_lose_no_asyncio_call(mesh: Shop) -> None:
    """The same on an event loop."""
    with aging() as servers:

        async def theirs() -> Counter[Any]:
            target = "ipv4:" + ",".join(servers.addresses)
            return await aio_load(grpc.aio.insecure_channel(target, options=ROUND_ROBIN))

        async def ours() -> Counter[Any]:
            return await aio_load(mesh.aio_channel())

        expected = asyncio.run(theirs())
        servers.peers.clear()
        mesh.serve(servers.addresses)
        seen = asyncio.run(ours())
        assert len(servers.peers) > len(servers.addresses)
    assert set(seen) == set(expected) == {"answered"}
    assert mesh.inflight == 0
