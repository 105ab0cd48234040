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

from tests.components.backends import Backends
from tests.components.relay import relay
from tests.integration.grpc_support import US, UU, Shop, eventually, shop

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


#: The last one since grpcio's core has a time limit for all pings, a minute unless told otherwise.
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 200),
    ("grpc.keepalive_timeout_ms", 200),
    ("grpc.http2.ping_timeout_ms", 200),
]


def told(error: Any) -> tuple[Any, ...]:
    # Core wraps the reason in these words when the stream was already being torn down: chance, not behaviour.
    return type(error), error.code(), error.details().replace("Stream removed (", "").rstrip(")")


def lost(channel: Any, dark: Any, timeout: float) -> tuple[Any, ...]:
    """What becomes of a call on a connection on which nothing passes any more."""
    call = channel.unary_unary(UU)
    assert call(b"x", timeout=30)
    dark.go_dark()
    with pytest.raises(grpc.RpcError) as caught:
        call(b"x", timeout=timeout)
    return told(caught.value)


async def aio_lost(channel: Any, dark: Any, timeout: float) -> tuple[Any, ...]:
    async with channel:
        call = channel.unary_unary(UU)
        assert await call(b"x", timeout=30)
        dark.go_dark()
        with pytest.raises(grpc.RpcError) as caught:
            await call(b"x", timeout=timeout)
        return told(caught.value)


@pytest.mark.parametrize(("options", "timeout"), [(KEEPALIVE, 30.0), ([], 0.3)], ids=["keepalive", "none"])
def test_a_connection_on_which_nothing_passes(
    mesh: Shop, backends: Backends, options: list[Any], timeout: float
) -> None:
    """With grpc's keepalive options the call ends by them, without with its deadline, both as on a bare channel."""
    (server,) = backends.grpc(1)
    with relay(server.address) as dark, grpc.insecure_channel(dark.address, options=options) as bare:
        expected = lost(bare, dark, timeout)
    with relay(server.address) as dark:
        mesh.serve([dark.address])
        assert lost(mesh.channel(options=options), dark, timeout) == expected
    assert expected[1] is (grpc.StatusCode.UNAVAILABLE if options else grpc.StatusCode.DEADLINE_EXCEEDED)

    async def theirs(address: str, dark: Any) -> Any:
        return await aio_lost(grpc.aio.insecure_channel(address, options=options), dark, timeout)

    async def ours(dark: Any) -> Any:
        return await aio_lost(mesh.aio_channel(options=options), dark, timeout)

    with relay(server.address) as dark:
        expected = asyncio.run(theirs(dark.address, dark))
    with relay(server.address) as dark:
        mesh.serve([dark.address])
        eventually(lambda: mesh.addresses == [dark.address])
        assert asyncio.run(ours(dark)) == expected
    eventually(lambda: mesh.inflight == 0)


def test_a_lost_call_is_not_sent_again_and_the_next_goes_elsewhere(mesh: Shop, backends: Backends) -> None:
    """Nobody knows what the lost one did; its connection ends by keepalive, and a new one is not waited for."""
    left, other = backends.grpc(2)
    with relay(left.address) as dark:
        mesh.serve([dark.address, other])
        mesh.known()
        call = mesh.channel(options=KEEPALIVE).unary_unary(UU)
        while not (left.requests and other.requests):
            call(b"x", timeout=30)
        before = other.requests
        dark.go_dark()
        ends = []
        for _ in range(20):
            try:
                call(b"x", timeout=30)
                ends.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                ends.append(error.code())
    assert Counter(ends) == {grpc.StatusCode.UNAVAILABLE: 1, grpc.StatusCode.OK: 19}
    assert other.requests == before + 19


def test_without_keepalive_load_aware_policies_leave_it(backends: Backends) -> None:
    """The deadlines that pass there count against the endpoint."""
    left, other = backends.grpc(2)
    with shop(picker="peak_ewma") as mesh, relay(left.address) as dark:
        mesh.serve([dark.address, other])
        mesh.known()
        call = mesh.channel().unary_unary(UU)
        while not (left.requests and other.requests):
            call(b"x", timeout=30)
        dark.go_dark()
        ends = [call.future(b"x", timeout=1).code() for _ in range(60)]
        late = ends.count(grpc.StatusCode.DEADLINE_EXCEEDED)
        assert ends.count(grpc.StatusCode.OK) + late == len(ends)
        assert late <= len(ends) // 4  # round_robin: half of them
