"""grpc.aio calls cancelled at every wait: no lease and no call of a transport is left, and the next call is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest

from tests.components.backends import Backends
from tests.components.interrupt import Moment, each_wait
from tests.components.process import free_port
from tests.integration.grpc_support import SS, SU, US, UU, Shop, shop


async def requests() -> AsyncIterator[bytes]:
    for request in (b"a", b"b", b"c"):
        await asyncio.sleep(0)
        yield request


async def unary(channel: Any) -> None:
    assert (await channel.unary_unary(UU)(b"x", timeout=10)).endswith(b":x")


async def responses(channel: Any) -> None:
    assert len([part async for part in channel.unary_stream(US)(b"x", timeout=10)]) == 5


async def abandoned(channel: Any) -> None:
    call = channel.unary_stream(US)(b"x", timeout=10)
    await call.read()
    call.cancel()


async def uploads(channel: Any) -> None:
    assert (await channel.stream_unary(SU)(requests(), timeout=10)).endswith(b":a,b,c")


async def both(channel: Any) -> None:
    assert len([part async for part in channel.stream_stream(SS)(requests(), timeout=10)]) == 3


async def by_hand(channel: Any) -> None:
    call = channel.stream_stream(SS)(timeout=10)
    for request in (b"a", b"b"):
        await call.write(request)
        await call.read()
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


def counted(channel: Any) -> int:
    """Calls that a transport of the running loop counts."""
    return sum(transport.calls for pool in channel._pools.values() for transport in pool.transports)


@pytest.mark.parametrize("moment", ["at once", "too late"])
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "moving on"])
@pytest.mark.parametrize("work", [unary, responses, abandoned, uploads, both, by_hand])
def test_cancelled_at_every_wait(
    backends: Backends,
    moment: Moment,
    connected: bool,
    work: Callable[[Any], Coroutine[Any, Any, None]],
) -> None:
    """On a connected endpoint, and on fresh channels that find one endpoint refusing first."""
    (server,) = backends.grpc(1)

    async def at_rest(mesh: Shop, channel: Any) -> bool:
        for _ in range(400):
            if (mesh.inflight, counted(channel)) == (0, 0):
                return True
            await asyncio.sleep(0.005)  # grpc's own thread tells the loop
        return False

    async def main(mesh: Shop) -> int:
        channels = [mesh.aio_channel()]
        await unary(channels[-1])
        for run in each_wait(lambda: work(channels[-1]), moment):
            if not connected:
                await channels.pop().close()
                channels.append(mesh.aio_channel())
            await run()
            assert await at_rest(mesh, channels[-1]), (run.nth, mesh.inflight, counted(channels[-1]))
            await unary(channels[-1])
        assert await at_rest(mesh, channels[-1])
        await channels[-1].close()
        return run.nth

    with shop() as mesh:
        mesh.serve([server] if connected else [f"127.0.0.1:{free_port('127.0.0.1')}", server])
        mesh.known()
        assert asyncio.run(main(mesh)) > 1
