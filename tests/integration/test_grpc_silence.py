"""Endpoints that answer no packets: a call leaves them while it still has time, and nobody waits for them again."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.components.backends import Backends
from tests.components.process import free_port
from tests.components.relay import relay
from tests.components.silent import silent_address
from tests.integration.grpc_support import SS, SU, TARGET, US, UU, Shop, eventually, shop

#: A quarter of it, what is left after a silent endpoint has had its half, is enough to connect on a busy machine.
DEADLINE = 4.0

SYNC: dict[str, Callable[[Any, Any], Any]] = {
    "unary": lambda c, t: c.unary_unary(UU)(b"x", timeout=t),
    "future": lambda c, t: c.unary_unary(UU).future(b"x", timeout=t).result(),
    "stream": lambda c, t: list(c.unary_stream(US)(b"x", timeout=t)),
    "requests": lambda c, t: c.stream_unary(SU)(iter([b"a", b"b"]), timeout=t),
    "chat": lambda c, t: list(c.stream_stream(SS)(iter([b"a", b"b"]), timeout=t)),
}


async def _await(call: Any) -> Any:
    return await call


async def _list(call: Any) -> Any:
    return [message async for message in call]


AIO: dict[str, Callable[[Any, Any], Any]] = {
    "unary": lambda c, t: _await(c.unary_unary(UU)(b"x", timeout=t)),
    "stream": lambda c, t: _list(c.unary_stream(US)(b"x", timeout=t)),
    "requests": lambda c, t: _await(c.stream_unary(SU)(iter([b"a", b"b"]), timeout=t)),
    "chat": lambda c, t: _list(c.stream_stream(SS)(iter([b"a", b"b"]), timeout=t)),
}


@pytest.fixture
def mesh() -> Iterator[Shop]:
    with shop() as made:
        yield made


@pytest.mark.parametrize("name", SYNC)
def test_a_call_leaves_a_silent_endpoint(mesh: Shop, backends: Backends, name: str) -> None:
    """Of every kind: answered within its deadline, by one endpoint, once."""
    (server,) = backends.grpc(1)
    with silent_address("127.0.0.2") as dark:
        mesh.serve([dark, server.address])
        mesh.known()
        channel = mesh.channel()
        for _ in range(2):  # one of them begins at the silent one
            assert SYNC[name](channel, DEADLINE)
        assert server.requests == 2
        assert [t.target for t in channel._pool.transports() if t.silent] == [f"ipv4:{dark}"]
        eventually(lambda: mesh.inflight == 0)


@pytest.mark.parametrize("name", AIO)
def test_an_asyncio_call_leaves_a_silent_endpoint(mesh: Shop, backends: Backends, name: str) -> None:
    """The same on an event loop."""
    (server,) = backends.grpc(1)

    async def calls() -> None:
        channel = mesh.aio_channel()
        for _ in range(2):
            assert await AIO[name](channel, DEADLINE)
        await channel.close()

    with silent_address("127.0.0.2") as dark:
        mesh.serve([dark, server.address])
        mesh.known()
        asyncio.run(calls())
    assert server.requests == 2
    assert mesh.inflight == 0


@pytest.mark.parametrize("name", ["unary", "future", "stream", "chat"])
def test_a_refused_call_does_not_wait_for_a_silent_endpoint(
    mesh: Shop, backends: Backends, name: str
) -> None:
    """Where a call goes after a refusal, too, has only a part of the time to connect."""
    (server,) = backends.grpc(1)
    with silent_address("127.0.0.4") as dark:
        refusing = f"127.0.0.3:{free_port('127.0.0.3')}"
        mesh.serve([server, refusing, dark])  # in the order of a rotation: after the refusal comes silence
        mesh.known()
        for _ in range(3):  # beginning at each
            assert SYNC[name](mesh.channel(), DEADLINE)
    eventually(lambda: mesh.inflight == 0)


RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "60s",
    "maxBackoff": "60s",
    "backoffMultiplier": 1,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


@pytest.mark.parametrize("config", [{"waitForReady": True}, {"retryPolicy": RETRY}], ids=["wait", "retry"])
def test_a_service_config_keeps_no_call_at_a_refusing_endpoint(
    mesh: Shop, backends: Backends, config: dict[str, Any]
) -> None:
    """Core would wait there, or try there again, although others can serve; under round_robin it does neither."""
    (server,) = backends.grpc(1)
    options = [("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], **config}]}))]

    async def calls() -> None:
        async with mesh.aio_channel(options=options) as channel:
            for name in [*AIO, *AIO]:
                assert await AIO[name](channel, 20)

    mesh.serve([f"127.0.0.200:{free_port('127.0.0.200')}", server.address])
    mesh.known()
    channel = mesh.channel(options=options)
    for name in [*SYNC, *SYNC]:
        assert SYNC[name](channel, 20)
    asyncio.run(calls())
    assert server.requests == 2 * (len(SYNC) + len(AIO))
    assert mesh.inflight == 0


def test_several_silent_endpoints(mesh: Shop, backends: Backends) -> None:
    """Each gets half of what is left, once: later calls do not wait for any of them."""
    (server,) = backends.grpc(1)
    with silent_address("127.0.0.2") as one, silent_address("127.0.0.3") as two:
        mesh.serve([one, two, server.address])
        mesh.known()
        call = mesh.channel().unary_unary(UU)
        assert call(b"x", timeout=DEADLINE)
        assert len([call(b"x", timeout=DEADLINE) for _ in range(60)]) == 60
        assert server.requests == 61


def told(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return type(error), error.code(), error.details()


@pytest.mark.parametrize("patient", [False, True], ids=["", "wait_for_ready"])
def test_nothing_but_silence_looks_as_under_round_robin(mesh: Shop, patient: bool) -> None:
    """With nowhere to go the deadline ends the call, in the words and with the type of grpcio's own channel."""
    with silent_address("127.0.0.2") as one, silent_address("127.0.0.3") as two:
        options = [("grpc.lb_policy_name", "round_robin")]
        with grpc.insecure_channel(f"ipv4:{one},{two}", options=options) as bare:
            expected = told(lambda: bare.unary_unary(UU)(b"x", timeout=0.3, wait_for_ready=patient))
        mesh.serve([one, two])
        mesh.known()
        call = mesh.channel().unary_unary(UU)
        assert told(lambda: call(b"x", timeout=0.3, wait_for_ready=patient)) == expected
    assert expected[1] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert mesh.inflight == 0


@pytest.mark.parametrize("name", SYNC)
def test_a_silent_endpoint_that_wakes_up_is_called_again(mesh: Shop, backends: Backends, name: str) -> None:
    """Core goes on connecting; when it succeeds, calls come, and nobody remembers the silence."""
    awake, sleeper = backends.grpc(2)
    sleeper.stop()
    with silent_address(sleeper.host) as dark:
        mesh.serve([awake.address, dark])
        mesh.known()
        channel = mesh.channel()
        for _ in range(3):
            assert SYNC[name](channel, DEADLINE)
        (transport,) = [t for t in channel._pool.transports() if t.silent]
    sleeper.port = int(dark.rpartition(":")[2])
    sleeper.start()

    def served() -> bool:
        return bool(SYNC[name](channel, DEADLINE)) and sleeper.requests > 0

    eventually(served, timeout=30)
    eventually(lambda: not transport.silent)


def test_an_asyncio_channel_forgets_the_silence(mesh: Shop, backends: Backends) -> None:
    """The same on an event loop: when the connection ends, one day, calls wait for the next one."""
    awake, sleeper = backends.grpc(2)
    sleeper.stop()

    async def calls() -> None:
        channel = mesh.aio_channel()
        with silent_address(sleeper.host) as dark:
            mesh.serve([awake.address, dark])
            await asyncio.to_thread(mesh.known)
            for _ in range(3):
                assert await AIO["unary"](channel, DEADLINE)
            (pool,) = channel._pools.values()
            (transport,) = [t for t in pool.transports if t.silent]
        sleeper.port = int(dark.rpartition(":")[2])
        sleeper.start()
        async with asyncio.timeout(30):
            while not sleeper.requests:
                assert await AIO["unary"](channel, DEADLINE)
                await asyncio.sleep(0.01)
        assert not transport.silent
        await channel.close()

    asyncio.run(calls())


def test_a_first_call_takes_no_endpoint_for_silent(mesh: Shop, backends: Backends) -> None:
    """Also with a grpcio that reads a connection's socket only while a thread waits inside core."""
    mesh.serve(backends.grpc(1))
    mesh.known()
    for name in SYNC:
        channel = mesh.channel()
        assert SYNC[name](channel, 8)
        assert grpc.channel_ready_future(mesh.channel()).result(4) is None
    (endpoint,) = mesh.mesh.target(TARGET).status()["endpoints"]
    assert endpoint["failures"] == 0


#: Longer than any patience of a call, shorter than core's own limit for one attempt to connect.
SLOW = 1.7


@pytest.mark.parametrize("name", ["unary", "future"])
def test_endpoints_that_are_slow_to_connect(mesh: Shop, backends: Backends, name: str) -> None:
    """All of them, as across an ocean: the first call waits for a connection, and none gives an endpoint up."""
    servers = backends.grpc(2)
    with relay(servers[0].address, SLOW) as one, relay(servers[1].address, SLOW) as two:
        mesh.serve([one.address, two.address])
        mesh.known()
        channel = mesh.channel()
        assert SYNC[name](channel, None)
        eventually(lambda: SYNC[name](channel, None) and all(server.requests for server in servers))
        assert (one.connections, two.connections) == (1, 1)
        assert not any(transport.silent for transport in channel._pool.transports())


def test_endpoints_that_are_slow_to_connect_asyncio(mesh: Shop, backends: Backends) -> None:
    """The same on an event loop."""
    servers = backends.grpc(2)

    async def calls() -> None:
        channel = mesh.aio_channel()
        call = channel.unary_unary(UU)
        assert await call(b"x")
        async with asyncio.timeout(30):
            while not all(server.requests for server in servers):
                assert await call(b"x")
        assert not any(t.silent for pool in channel._pools.values() for t in pool.transports)
        await channel.close()

    with relay(servers[0].address, SLOW) as one, relay(servers[1].address, SLOW) as two:
        mesh.serve([one.address, two.address])
        mesh.known()
        asyncio.run(calls())
        assert (one.connections, two.connections) == (1, 1)


def test_the_first_of_the_slow_ones_takes_the_call(mesh: Shop, backends: Backends) -> None:
    """A call that has moved on returns to an endpoint that connects after all, before its deadline."""
    (server,) = backends.grpc(1)
    with relay(server.address, SLOW) as slow, silent_address("127.0.0.2") as one:
        for addresses in ([slow.address, one], [one, slow.address]):
            mesh.serve(addresses)
            mesh.known()
            assert mesh.channel().unary_unary(UU)(b"x", timeout=8)


def test_ready_without_waiting_for_the_silent(mesh: Shop, backends: Backends) -> None:
    """channel_ready_future and channel_ready ask one endpoint after another, as a call does."""
    (server,) = backends.grpc(1)

    async def ready() -> None:
        async with mesh.aio_channel() as channel:
            await asyncio.wait_for(channel.channel_ready(), 10)

    with silent_address("127.0.0.2") as one, silent_address("127.0.0.3") as two:
        mesh.serve([one, two, server.address])
        mesh.known()
        for _ in range(3):  # one of them begins at each
            grpc.channel_ready_future(mesh.channel()).result(10)
            asyncio.run(ready())


@pytest.mark.parametrize("how", ["cancel", "drop", "close"])
def test_ending_a_call_that_waits_for_a_connection(mesh: Shop, how: str) -> None:
    """Cancelling, dropping, or closing the channel while connecting: over at once, nothing stays counted."""
    with silent_address() as dark:
        mesh.serve([dark])
        mesh.known()
        channel = mesh.channel()
        blocked: list[Any] = []

        def block() -> None:
            try:
                channel.unary_unary(UU)(b"x", timeout=60)
            except (grpc.RpcError, ValueError) as error:
                blocked.append(error)

        thread = threading.Thread(target=block, daemon=True)
        call = channel.unary_unary(UU).future(b"x", timeout=60)
        assert not call.done()
        if how == "cancel":
            assert call.cancel()
            assert call.code() is grpc.StatusCode.CANCELLED
        elif how == "drop":
            del call
        else:
            thread.start()
            eventually(lambda: mesh.inflight == 2)
            channel.close()
            assert call.code() is grpc.StatusCode.CANCELLED
            thread.join(10)
            assert blocked
        eventually(lambda: mesh.inflight == 0)


def test_cancelling_a_task_that_waits_for_a_connection(mesh: Shop) -> None:
    """asyncio: at every step of the wait, nothing stays counted, and the loop reports nothing."""
    reported: list[Any] = []

    async def calls() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        channel = mesh.aio_channel()
        for steps in range(12):
            task = asyncio.ensure_future(_await(channel.unary_unary(UU)(b"x", timeout=60)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await channel.close()

    with silent_address() as dark:
        mesh.serve([dark])
        mesh.known()
        asyncio.run(calls())
    assert mesh.inflight == 0
    assert reported == []
