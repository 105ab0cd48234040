"""Bodies end their lease once, however they end."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpcore
import pytest

from meshlib.clients.httpx.body import AsyncLeasedBody, LeasedBody, RequestBody, settle_abandoned
from meshlib.clients.httpx.faults import fault_of, is_blamed
from meshlib.runtime.lease import Lease
from tests.unit.clients_httpx.fakes import FakeHandle


class Inner:
    """A body of two parts that may fail after the first."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.closed = error, 0

    def __iter__(self) -> Iterator[bytes]:
        yield b"one"
        if self.error is not None:
            raise self.error
        yield b"two"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


class Engine:
    """What a body needs of its engine."""

    def __init__(self) -> None:
        self.unread: deque[Any] = deque()
        self.reclaimed: list[Any] = []

    def reclaim(self, body: Any) -> None:
        self.reclaimed.append(body)


def blames(error: BaseException) -> bool:
    return is_blamed(fault_of(error, httpcore))


def leased() -> tuple[FakeHandle, Lease]:
    handle = FakeHandle([("10.0.0.1", 80)])
    lease = handle.try_acquire()
    assert lease is not None
    return handle, lease


@pytest.mark.parametrize("how", ["exhausted", "closed", "both", "closed early"])
def test_lease_ends_once(how: str) -> None:
    """Exhaustion and close in any order: one end."""
    _, lease = leased()
    body = LeasedBody(Inner(), lease, blames, Engine())
    if how in ("exhausted", "both"):
        assert list(body) == [b"one", b"two"]
    elif how == "closed early":
        assert next(iter(body)) == b"one"
    if how != "exhausted":
        body.close()
        body.close()
    assert lease.subchannel.inflight == 0
    assert lease.subchannel.requests == 1
    assert lease.subchannel.failures == 0


@pytest.mark.parametrize(
    ("error", "failures"), [(httpcore.ReadError("cut"), 1), (ValueError("the reader's"), 0)]
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_body_that_breaks_is_blamed_on_whom_it_concerns(
    error: Exception, failures: int, asynchronous: bool
) -> None:
    """A connection that breaks in the middle is the endpoint's failure; others are not."""
    _, lease = leased()
    if asynchronous:

        async def read() -> None:
            async for _ in AsyncLeasedBody(Inner(error), lease, blames, Engine()):
                pass

        with pytest.raises(type(error)):
            asyncio.run(read())
    else:
        with pytest.raises(type(error)):
            list(LeasedBody(Inner(error), lease, blames, Engine()))
    assert lease.subchannel.inflight == 0
    assert lease.subchannel.failures == failures


def test_async_lease_ends_on_aclose() -> None:
    """The asyncio body, closed after its first part and again."""
    _, lease = leased()

    async def read() -> None:
        body = AsyncLeasedBody(Inner(), lease, blames, Engine())
        async for _ in body:
            break
        await body.aclose()
        await body.aclose()

    asyncio.run(read())
    assert (lease.subchannel.inflight, lease.subchannel.requests) == (0, 1)


@pytest.mark.parametrize("kind", [LeasedBody, AsyncLeasedBody])
def test_body_found_by_the_collector_is_settled_later(kind: Any) -> None:
    """The finalizer itself takes no lock: it may run inside the very section that the lock guards."""
    _, lease = leased()
    engine = Engine()
    inner = Inner()
    body = kind(inner, lease, blames, engine)
    subchannel = lease.subchannel
    with subchannel.lock:  # a finalizer that took it would hang here
        del body
        gc.collect()
    settle_abandoned()
    assert subchannel.inflight == 0
    assert list(engine.unread) == [inner]


def test_request_body_knows_that_it_started() -> None:
    """A body begins once; only a replayable one may begin again."""
    once = RequestBody([b"x"], replayable=False)
    assert once.can_begin
    assert list(once) == [b"x"]
    assert not once.can_begin
    again = RequestBody([b"x"], replayable=True)
    assert list(again) == list(again) == [b"x"]
    assert again.can_begin


def test_interrupted_close_is_reclaimed() -> None:
    """Cancelled while the body is being closed: the lease ends, and the engine is told to give the connection up."""
    _, lease = leased()
    engine = Engine()

    class Slow(Inner):
        async def aclose(self) -> None:
            await asyncio.sleep(3600)

    inner = Slow()

    async def close() -> None:
        task = asyncio.create_task(AsyncLeasedBody(inner, lease, blames, engine).aclose())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(close())
    assert engine.reclaimed == [inner]
    assert lease.subchannel.inflight == 0
