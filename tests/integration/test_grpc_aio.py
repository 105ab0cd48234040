"""The asyncio gRPC client against real grpcio servers; mirrors test_grpc_sync."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest

import meshlib.grpc.aio
from meshlib.errors import NoEndpoints
from tests.components.backends import Backends
from tests.components.process import free_port
from tests.integration.grpc_support import SERVICE, SS, SU, TARGET, US, UU, Shop, ending, shop


@pytest.fixture
def mesh() -> Iterator[Shop]:
    with shop() as made:
        yield made


Body = Callable[[Any], Awaitable[None]]


def use(mesh: Shop, body: Body, **options: Any) -> None:
    """Run ``body(channel)`` in a loop of its own, with a bound that only ends a broken test."""

    async def main() -> None:
        async with asyncio.timeout(60):
            async with mesh.aio_channel(**options) as channel:
                await body(channel)

    asyncio.run(main())


async def eventually(fact: Callable[[], Any]) -> None:
    """Wait until ``fact()`` holds."""
    async with asyncio.timeout(10):
        while not fact():
            await asyncio.sleep(0.005)


async def agen(*items: bytes) -> AsyncIterator[bytes]:
    for item in items:
        yield item


# -- balancing and the four arities ------------------------------------------------------------------------------


def test_calls_reach_every_endpoint(mesh: Shop, backends: Backends) -> None:
    """Unary calls spread evenly, and each is counted once."""
    servers = backends.grpc(3)
    mesh.serve(servers)

    async def body(channel: Any) -> None:
        call = channel.unary_unary(UU)
        for _ in range(60):
            await call(b"x")
        assert [server.requests for server in servers] == [20, 20, 20]
        await eventually(lambda: mesh.inflight == 0)

    use(mesh, body)


def test_concurrent_calls_are_counted_exactly(mesh: Shop, backends: Backends) -> None:
    """Two hundred calls at once, the first ones before anything is connected: none lost, none doubled."""
    servers = backends.grpc(3)
    mesh.serve(servers)

    async def body(channel: Any) -> None:
        call = channel.unary_unary(UU)
        assert len(await asyncio.gather(*(call(b"%d" % n) for n in range(200)))) == 200
        assert sum(server.requests for server in servers) == 200
        await eventually(lambda: mesh.inflight == 0)

    use(mesh, body)


@pytest.mark.parametrize("connected", [False, True])
def test_streams_of_every_kind(mesh: Shop, backends: Backends, connected: bool) -> None:
    """Streams by iterator and by read/write, on a fresh channel and on a connected one."""
    (server,) = backends.grpc(1)
    mesh.serve([server])
    name = server.name.encode()

    async def body(channel: Any) -> None:
        if connected:
            await channel.channel_ready()
        assert [m async for m in channel.unary_stream(US)(b"x")] == [name + b":x:%d" % i for i in range(5)]

    async def requests(channel: Any) -> None:
        if connected:
            await channel.channel_ready()
        assert await channel.stream_unary(SU)(agen(b"a", b"b")) == name + b":a,b"
        assert await channel.stream_unary(SU)([b"a", b"b"]) == name + b":a,b"
        assert [m async for m in channel.stream_stream(SS)(agen(b"a", b"b"))] == [name + b":a", name + b":b"]

    async def written(channel: Any) -> None:
        if connected:
            await channel.channel_ready()
        call = channel.stream_unary(SU)()
        await call.write(b"a")
        await call.write(b"b")
        await call.done_writing()
        assert await call == name + b":a,b"
        both = channel.stream_stream(SS)()
        await both.write(b"a")
        assert await both.read() == name + b":a"
        await both.write(b"b")
        assert await both.read() == name + b":b"
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF
        assert await both.code() is grpc.StatusCode.OK
        await eventually(lambda: mesh.inflight == 0)

    for part in (body, requests, written):
        use(mesh, part)


def test_metadata_and_call_details(mesh: Shop, backends: Backends) -> None:
    """Metadata both ways and the call's own methods, before and after the channel is connected."""
    (server,) = backends.grpc(1)
    mesh.serve([server])

    async def body(channel: Any) -> None:
        for _ in range(2):
            call = channel.unary_unary(UU)(
                b"x", metadata=(("k", "v"),), timeout=30, compression=grpc.Compression.Gzip
            )
            assert isinstance(call, grpc.aio.Call)
            assert 0 < call.time_remaining() <= 30
            await call
            headers = dict(list(await call.initial_metadata()))
            assert (headers["x-backend"], headers["x-got-k"]) == (server.name, "v")
            assert await call.code() is grpc.StatusCode.OK
            assert await call.details() == ""
            assert len(await call.trailing_metadata()) == 0
            assert call.done()
            assert not call.cancelled()

    use(mesh, body)


def test_tls_verifies_the_logical_name(mesh: Shop, backends: Backends) -> None:
    """TLS checks NAME.NS.svc, not the address."""
    mesh.serve(backends.grpc(2, tls="echo.shop.svc"))

    async def main() -> None:
        credentials = grpc.ssl_channel_credentials(backends.ca_pem)
        async with meshlib.grpc.aio.secure_channel(TARGET, credentials, mesh=mesh.mesh) as channel:
            token = grpc.access_token_call_credentials("secret")
            for _ in range(4):
                call = channel.unary_unary(UU)(b"x", credentials=token, timeout=10)
                await call
                assert dict(list(await call.initial_metadata()))["x-got-authorization"] == "Bearer secret"

    asyncio.run(main())


# -- refused connections ---------------------------------------------------------------------------------------------


def test_refused_connections_move_on(mesh: Shop, backends: Backends) -> None:
    """With two of three endpoints refusing, no call of any kind fails, and the server sees each exactly once."""
    (server,) = backends.grpc(1)
    mesh.serve([server, f"127.0.0.200:{free_port('127.0.0.200')}", f"127.0.0.201:{free_port('127.0.0.201')}"])

    async def body(channel: Any) -> None:
        for index in range(10):
            await channel.unary_unary(UU)(b"x", timeout=10)
            assert len([m async for m in channel.unary_stream(US)(b"x", timeout=10)]) == 5
            assert (await channel.stream_unary(SU)(agen(b"a", b"b"), timeout=10)).endswith(b":a,b")
            assert len([m async for m in channel.stream_stream(SS)(agen(b"a", b"b"), timeout=10)]) == 2
            written = channel.stream_stream(SS)(timeout=10)
            await written.write(b"a")
            assert (await written.read()).endswith(b":a")
            await written.done_writing()
            assert await written.read() is grpc.aio.EOF
            assert server.requests == 5 * (index + 1)
        await eventually(lambda: mesh.inflight == 0)

    use(mesh, body)


def test_a_server_that_answers_unavailable_is_not_asked_twice(mesh: Shop, backends: Backends) -> None:
    """UNAVAILABLE said by a server is the caller's: grpc's own error, one request in all."""
    servers = backends.grpc(3)
    for server in servers:
        server.status = grpc.StatusCode.UNAVAILABLE
    mesh.serve(servers)

    async def body(channel: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(UU)(b"x")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert sum(server.requests for server in servers) == 1

    use(mesh, body)


def test_all_refused_shows_grpcs_own_error(mesh: Shop) -> None:
    """When every endpoint refuses and there is no Service address, the last connection's own error is raised."""
    mesh.serve([f"127.0.0.20{n}:{free_port(f'127.0.0.20{n}')}" for n in range(3)])

    async def body(channel: Any) -> None:
        call = channel.unary_unary(UU)(b"x", timeout=10)
        with pytest.raises(grpc.aio.AioRpcError, match="failed to connect"):
            await call
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        stream = channel.unary_stream(US)(b"x", timeout=10)
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stream:
                pass
        await eventually(lambda: mesh.inflight == 0)

    use(mesh, body)


def test_all_pods_refused_goes_to_the_service_address(mesh: Shop, backends: Backends) -> None:
    """Decision D3: pods that refuse (mTLS-only) are left for the Service address."""
    (server,) = backends.grpc(1)
    dead = free_port("127.0.0.210")
    mesh.resolver.endpoints(SERVICE, [f"127.0.0.210:{dead}"], cluster_ips=(server.host,), port=server.port)

    async def main() -> None:
        target = f"k8s:///echo.shop:{server.port}"
        async with meshlib.grpc.aio.insecure_channel(target, mesh=mesh.mesh) as channel:
            for _ in range(5):
                await channel.unary_unary(UU)(b"x", timeout=10)
        assert server.requests == 5

    asyncio.run(main())


# -- waiting for endpoints ------------------------------------------------------------------------------------------


def test_wait_for_ready_waits_for_endpoints(mesh: Shop, backends: Backends) -> None:
    """wait_for_ready calls of every kind made while the set is empty succeed when an endpoint appears."""
    mesh.serve([])

    async def body(channel: Any) -> None:
        unary = channel.unary_unary(UU)(b"x", timeout=30, wait_for_ready=True)
        stream = channel.unary_stream(US)(b"x", timeout=30, wait_for_ready=True)
        both = channel.stream_stream(SS)(agen(b"a"), timeout=30, wait_for_ready=True)
        ended: list[Any] = []
        unary.add_done_callback(ended.append)
        await asyncio.sleep(0.05)
        assert not unary.done()
        mesh.serve(backends.grpc(1))
        assert await unary
        assert len([m async for m in stream]) == 5
        assert len([m async for m in both]) == 1
        await eventually(lambda: ended)
        assert ended == [unary]

    use(mesh, body)


def test_deadline_while_waiting(mesh: Shop) -> None:
    """With nothing to pick the deadline ends the call with DEADLINE_EXCEEDED and the reason as cause."""
    mesh.serve([])

    async def body(channel: Any) -> None:
        call = channel.unary_unary(UU)(b"x", timeout=0.2, wait_for_ready=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert isinstance(caught.value.__cause__, NoEndpoints)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    use(mesh, body)


def test_known_empty_is_unavailable(mesh: Shop) -> None:
    """No endpoints: an AioRpcError UNAVAILABLE that carries the meshlib error, for unary calls and streams."""
    mesh.serve([])

    async def body(channel: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="NoEndpoints") as caught:
            await channel.unary_unary(UU)(b"x")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert isinstance(caught.value.__cause__, NoEndpoints)
        stream = channel.unary_stream(US)(b"x")
        with pytest.raises(grpc.aio.AioRpcError, match="NoEndpoints"):
            await stream.read()
        with pytest.raises(grpc.aio.AioRpcError, match="NoEndpoints"):
            await channel.stream_stream(SS)().write(b"x")

    use(mesh, body)


# -- leaving, cancelling, closing ------------------------------------------------------------------------------------


def test_removed_endpoint_finishes_its_stream_and_gets_nothing_new(mesh: Shop, backends: Backends) -> None:
    """A stream on an endpoint that leaves runs to its end, then its channel is closed; new calls go elsewhere."""
    old, new = backends.grpc(2)
    old.delay = 0.05
    mesh.serve([old])

    async def body(channel: Any) -> None:
        stream = channel.unary_stream(US)(b"x", timeout=30)
        assert (await stream.read()).startswith(old.name.encode())
        pool = channel._pool()
        (transport,) = pool.transports
        mesh.serve([new])
        await eventually(lambda: not pool.transports)
        assert transport.calls == 1
        for _ in range(5):
            assert (await channel.unary_unary(UU)(b"x", timeout=10)).startswith(new.name.encode())
        for _ in range(4):
            assert await stream.read()
        assert await stream.read() is grpc.aio.EOF
        await eventually(lambda: transport.calls == 0)
        assert old.requests == 1

    use(mesh, body)


def test_endpoint_killed_mid_stream(mesh: Shop, backends: Backends) -> None:
    """A server that dies in the middle of a stream ends it with grpc's own error, and it is not started again."""
    (server,) = backends.grpc(1)
    server.delay = 0.2
    mesh.serve([server])

    async def body(channel: Any) -> None:
        stream = channel.unary_stream(US)(b"x", timeout=30)
        await stream.read()
        await asyncio.to_thread(server.stop)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [await stream.read() for _ in range(5)]
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert server.requests == 1
        await eventually(lambda: mesh.inflight == 0)

    use(mesh, body)


def test_cancellation_leaves_no_count(mesh: Shop, backends: Backends) -> None:
    """Calls cancelled at once, later, by their waiter or by a timeout give every count back."""
    (server,) = backends.grpc(1)
    server.delay = 0.1
    mesh.serve([server])

    async def body(channel: Any) -> None:
        for connected in (False, True):
            if connected:
                await channel.channel_ready()
            at_once = channel.unary_unary(UU)(b"x")
            assert at_once.cancel()
            with pytest.raises(asyncio.CancelledError):
                await at_once
            assert at_once.cancelled()
            later = channel.unary_unary(UU)(b"x")
            await asyncio.sleep(0.02)
            assert later.cancel()
            with pytest.raises(asyncio.CancelledError):
                await later

            async def waits() -> Any:
                return await channel.unary_unary(UU)(b"x")

            for kind in (waits, lambda: channel.unary_stream(US)(b"x").read()):
                task = asyncio.ensure_future(kind())
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            # half of a deadline may be spent on the first knowledge, and then it is UNAVAILABLE
            await asyncio.to_thread(mesh.known)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(UU)(b"x", timeout=0.02)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: mesh.inflight == 0)
        await eventually(lambda: server.in_flight == 0)

    use(mesh, body)


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 5, 8, 13])
def test_cancellation_at_any_step_leaves_no_count(mesh: Shop, backends: Backends, delay: int) -> None:
    """Cancelled after so many turns of the loop, on a fresh channel with a refusing endpoint: nothing stays counted."""
    mesh.serve([*backends.grpc(1), f"127.0.0.200:{free_port('127.0.0.200')}"])

    async def body(channel: Any) -> None:
        calls = [
            channel.unary_unary(UU)(b"x"),
            channel.unary_stream(US)(b"x"),
            channel.stream_unary(SU)(agen(b"a")),
        ]
        for _ in range(delay):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await eventually(lambda: mesh.inflight == 0)
        assert all(call.done() for call in calls)

    use(mesh, body)


def test_abandoned_streams_leave_no_count(mesh: Shop, backends: Backends) -> None:
    """A stream left half-way, by break or by dropping it, is cancelled without waiting for the garbage collector."""
    (server,) = backends.grpc(1)
    server.delay = 0.1
    mesh.serve([server])

    async def body(channel: Any) -> None:
        gc.disable()
        try:
            async for _ in channel.unary_stream(US)(b"x"):
                break
            dropped = channel.unary_stream(US)(b"x")
            await dropped.read()
            del dropped
            await eventually(lambda: mesh.inflight == 0)
            await eventually(lambda: server.in_flight == 0)
        finally:
            gc.enable()

    use(mesh, body)


@pytest.mark.parametrize("connected", [False, True])
def test_a_dropped_call_with_one_response_goes_on(mesh: Shop, backends: Backends, connected: bool) -> None:
    """Fire and forget: what is dropped at once, on a fresh channel too, is served as on a bare one, and counted out."""
    (server,) = backends.grpc(1)
    mesh.serve([server])
    mesh.known()

    async def drop(channel: Any) -> None:
        if connected:
            await channel.channel_ready()
        served = server.requests
        channel.unary_unary(UU)(b"x")
        channel.stream_unary(SU)(agen(b"a", b"b"))
        gc.collect()
        await eventually(lambda: server.requests == served + 2)

    async def bare() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            await drop(channel)

    async def ours(channel: Any) -> None:
        await drop(channel)
        await eventually(lambda: mesh.inflight == 0)

    asyncio.run(bare())
    use(mesh, ours)


def test_an_answered_call_is_no_work_for_the_garbage_collector(mesh: Shop, backends: Backends) -> None:
    """With its answer taken it is gone, also with a grpcio whose calls keep their callbacks for good."""
    mesh.serve(backends.grpc(1))

    async def body(channel: Any) -> None:
        await channel.unary_unary(UU)(
            b"x"
        )  # the next ones find a connection, and an endpoint known by its answers
        gc.disable()
        try:
            for _ in range(3):
                call = channel.unary_unary(UU)(b"x")
                gone = weakref.ref(call)
                await call
                del call
                await eventually(lambda: gone() is None)  # noqa: B023
        finally:
            gc.enable()

    use(mesh, body)


def test_close_ends_everything(mesh: Shop, backends: Backends) -> None:
    """close() cancels what is in flight and what waits; later calls raise UsageError, the state is SHUTDOWN."""
    (server,) = backends.grpc(1)
    server.delay = 5

    async def body(channel: Any) -> None:
        mesh.serve([])
        waiting = channel.unary_unary(UU)(b"x", wait_for_ready=True)
        await asyncio.sleep(0.02)
        mesh.serve([server])
        await eventually(lambda: mesh.mesh.target(TARGET).status()["endpoints"])
        running = channel.unary_unary(UU)(b"x")
        await eventually(lambda: server.in_flight == 2)
        await channel.close()
        for call in (waiting, running):
            with pytest.raises(asyncio.CancelledError):
                await call
        with pytest.raises(grpc.aio.UsageError):
            channel.unary_unary(UU)(b"x")
        assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        assert mesh.inflight == 0

    use(mesh, body)


def test_close_ends_calls_on_endpoints_that_left(mesh: Shop, backends: Backends) -> None:
    """A call that may finish although its endpoint is gone does not outlive its channel."""
    old, new = backends.grpc(2)
    old.delay = 60

    async def calls() -> None:
        mesh.serve([old])
        channel = mesh.aio_channel()
        call = channel.unary_unary(UU)(b"x", timeout=60)
        await eventually(lambda: old.in_flight == 1)
        (pool,) = channel._pools.values()
        mesh.serve([new])
        await eventually(lambda: not pool.transports)
        await channel.close()
        assert await call.code() is grpc.StatusCode.CANCELLED

    asyncio.run(calls())
    assert mesh.inflight == 0


def test_calls_after_close_say_so_whatever_the_set_is(mesh: Shop) -> None:
    """No endpoint known, or known that there is none: a closed channel is still what the caller hears of."""

    async def body(channel: Any) -> None:
        method = channel.unary_unary(UU)
        with pytest.raises(grpc.aio.AioRpcError):  # so that this loop has what it needs for calls
            await method(b"x", timeout=0.1)
        await channel.close()
        with pytest.raises(grpc.aio.UsageError):
            method(b"x", wait_for_ready=True)

    use(mesh, body)
    mesh.serve([])
    mesh.known()
    use(mesh, body)


def test_close_with_grace_lets_calls_finish(mesh: Shop, backends: Backends) -> None:
    """close(grace) waits for calls in flight."""
    (server,) = backends.grpc(1)
    server.delay = 0.2
    mesh.serve([server])

    async def body(channel: Any) -> None:
        await channel.channel_ready()
        call = channel.unary_unary(UU)(b"x")
        await eventually(lambda: server.in_flight == 1)
        with pytest.raises(ValueError, match="-1"):
            await channel.close(-1)
        await channel.close(30)
        assert await call

    use(mesh, body)


# -- state and loops -------------------------------------------------------------------------------------------------


def test_state_follows_the_endpoints(mesh: Shop, backends: Backends) -> None:
    """IDLE, READY after channel_ready, and wait_for_state_change returns when the server goes away."""
    (server,) = backends.grpc(1)
    mesh.serve([server])

    async def body(channel: Any) -> None:
        assert channel.get_state() is grpc.ChannelConnectivity.IDLE
        await channel.channel_ready()
        ready = channel.get_state()
        assert ready is grpc.ChannelConnectivity.READY
        await asyncio.to_thread(server.stop)
        await channel.wait_for_state_change(ready)
        assert channel.get_state() is not grpc.ChannelConnectivity.READY
        assert mesh.inflight == 0

    use(mesh, body)


def test_channel_ready_passes_over_dead_endpoints(mesh: Shop, backends: Backends) -> None:
    """channel_ready finds the one endpoint of three that accepts connections."""
    dead = [f"127.0.0.20{n}:{free_port(f'127.0.0.20{n}')}" for n in range(2)]
    mesh.serve([*dead, *backends.grpc(1)])

    async def body(channel: Any) -> None:
        await channel.channel_ready()
        assert channel.get_state() is grpc.ChannelConnectivity.READY

    use(mesh, body)


def test_three_loops_in_three_threads_share_a_channel(mesh: Shop, backends: Backends) -> None:
    """One channel object serves three event loops and plain counts stay exact."""
    servers = backends.grpc(2)
    mesh.serve(servers)
    channel = mesh.aio_channel()
    failures: list[BaseException] = []

    def work() -> None:
        async def main() -> None:
            call = channel.unary_unary(UU)
            await asyncio.gather(*(call(b"x", timeout=30) for _ in range(100)))
            await channel._pool().close(None)

        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert sum(server.requests for server in servers) == 300
    assert mesh.inflight == 0


def test_a_loop_closed_without_close_does_not_disturb_the_next(mesh: Shop, backends: Backends) -> None:
    """A channel left open in a finished loop works again in the next one."""
    mesh.serve(backends.grpc(2))
    channel = mesh.aio_channel()

    async def once() -> bytes:
        left = channel.unary_stream(US)(b"x", timeout=10)
        await left.read()
        channel.unary_unary(UU)(b"x", timeout=10)
        return await channel.unary_unary(UU)(b"x", timeout=10)

    for _ in range(3):
        assert asyncio.run(once()).endswith(b":x")
        assert len(channel._pools) == 1
    use(mesh, lambda _: once())
    assert len(channel._pools) == 1
    assert mesh.inflight == 0


def test_rolling_restart_loses_no_call(mesh: Shop, backends: Backends) -> None:
    """Servers stop gracefully and start again, one by one, under calls: nobody sees a lost connection.

    A server that goes away may itself answer CANCELLED to a call that reaches it at that moment, as to a bare channel.
    """
    servers = backends.grpc(3)
    mesh.serve(servers)
    mesh.known()

    async def body(channel: Any) -> None:
        stop = False
        seen: Counter[grpc.StatusCode] = Counter()

        async def stream() -> None:
            async for _ in channel.unary_stream(US)(b"x", timeout=30):
                pass

        async def unary() -> None:
            await channel.unary_unary(UU)(b"x", timeout=30)

        async def work(call: Callable[[], Awaitable[None]]) -> None:
            while not stop:
                try:
                    await call()
                    seen[grpc.StatusCode.OK] += 1
                except grpc.aio.AioRpcError as error:
                    seen[ending(error)] += 1

        workers = [asyncio.create_task(work(call)) for call in (unary, unary, stream)]
        for server in (*servers, *servers):
            await asyncio.to_thread(server.stop, 5)
            await asyncio.sleep(0.05)
            await asyncio.to_thread(server.start)
            served = server.requests
            await eventually(lambda: server.requests > served)  # noqa: B023
        stop = True
        await asyncio.gather(*workers)
        assert set(seen) <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
        assert seen[grpc.StatusCode.OK] <= sum(server.requests for server in servers) <= seen.total()
        await eventually(lambda: mesh.inflight == 0)

    use(mesh, body)


def test_churn_under_load_loses_nothing(mesh: Shop, backends: Backends) -> None:
    """Endpoints leave and return while calls run: none fails, each is served once."""
    servers = backends.grpc(3)
    mesh.serve(servers)

    async def body(channel: Any) -> None:
        call = channel.unary_unary(UU)
        stop = False

        async def work() -> int:
            done = 0
            while not stop:
                await call(b"x", timeout=30)
                done += 1
            return done

        workers = [asyncio.create_task(work()) for _ in range(8)]
        for turn in range(30):
            mesh.serve([servers[turn % 3], servers[(turn + 1) % 3]])
            await asyncio.sleep(0.02)
        stop = True
        total = sum(await asyncio.gather(*workers))
        assert sum(server.requests for server in servers) == total
        await eventually(lambda: mesh.inflight == 0)

    use(mesh, body)
