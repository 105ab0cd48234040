"""AioAttempts: drives one asyncio call until an attempt has a connection, or there is nothing left to try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc

from meshlib.clients.grpc.aio_pool import LoopPool, at_once
from meshlib.clients.grpc.attempts import Attempts
from meshlib.clients.grpc.callbacks import run_callbacks
from meshlib.clients.grpc.pool import Bound
from meshlib.clients.grpc.reach import connected_now, reach_async, undecided
from meshlib.clients.grpc.status import (
    CANCEL_DETAILS,
    DEADLINE_DETAILS,
    MeshRpcError,
    aio_error,
    is_local,
    is_refusal,
)
from meshlib.clients.grpc.transport import Completion, Transport
from meshlib.errors import MeshError
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease, ServiceLease

#: Starts the call: (bound method, request or gated requests, seconds left) -> grpc.aio's call.
Start = Callable[[Bound, Any, "float | None"], Any]


class Gate:
    """Lets a request iterator through once its attempt is connected, so that a refused attempt consumes nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._open: asyncio.Future[bool] = loop.create_future()

    def settle(self, connected: bool) -> None:
        if not self._open.done():
            self._open.set_result(connected)

    async def through(self, requests: Any) -> AsyncIterator[Any]:
        if not await asyncio.shield(self._open):
            return
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                yield request
        else:
            for request in requests:
                yield request


class AioAttempts:
    """The progress of one call. Lives on one loop; knows nothing of the object that the user holds.

    ``call``: grpc.aio's call that decides, set once ``settled`` is; ``error`` if none ever had a connection.
    """

    def __init__(
        self,
        handle: TargetHandle,
        pool: LoopPool,
        attempts: Attempts,
        bind: Callable[[Lease], Bound],
        start: Start,
        request: Any,
        streaming: bool,
    ) -> None:
        self._handle = handle
        self._pool = pool
        self.attempts = attempts
        self._bind = bind
        self._start = start
        self._request = request
        self._gated = streaming and request is not None
        #: A call adopted on a connected endpoint may still find the connection gone; of a request stream nobody knows
        #: then what was taken from it.
        self._revocable = not streaming
        self.call: Any = None
        self.completion: Completion | None = None
        self.error: MeshRpcError | None = None
        self.settled: asyncio.Future[None] = pool.loop.create_future()
        self._finished = False
        self._callbacks: list[Callable[[], None]] = []
        self._current: Any = None
        self._trying: Completion | None = None
        self._task: asyncio.Task[None] | None = None

    def adopt(self, bound: Bound, completion: Completion, timeout: float | None) -> None:
        """Start on a connected endpoint: no driving needed; the attempt decides, unless its connection just went."""
        self.call = self._start(bound, self._request, timeout)
        self.completion = completion
        self.settled.set_result(None)
        self._pool.running.add(completion)
        self.call.add_done_callback(partial(self._adopted_ended, completion))

    def _adopted_ended(self, completion: Completion, call: Any) -> None:
        self._pool.running.discard(completion)
        code = at_once(call.code())
        if code is grpc.StatusCode.UNAVAILABLE and self._revocable and not call.cancelled():
            details = at_once(call.details())
            if is_refusal(code, details, completion.transport.target) and not is_local(details):
                completion.responded(True)
                completion.done(True)
                following = self.attempts.after_refusal(completion.lease.subchannel)
                if following is not None or self.attempts.wait_for_ready:
                    self.call = None
                    self.settled = self._pool.loop.create_future()
                    self.drive(following)
                    return
        completion.ended(code)
        self._finish()

    def decides(self, call: Any) -> bool:
        """Whether what ``call`` said stands; from here on it does."""
        if self.call is not call:
            return False
        if call.done():
            self._revocable = False
        return True

    def drive(self, lease: Lease | None) -> None:
        """Start on ``lease``, or wait for one, in a task."""
        self._pool.waiting.add(self)
        self._task = self._pool.loop.create_task(self._run(lease))
        self._task.add_done_callback(partial(_unclaimed, lease))

    async def _run(self, lease: Lease | None) -> None:
        try:
            while True:
                lease = lease or await self._wait()
                lease = await self._attempt(lease)
                if self.settled.done():
                    return
        except asyncio.CancelledError:
            self._fail(MeshRpcError(grpc.StatusCode.CANCELLED, CANCEL_DETAILS))
            raise
        except MeshRpcError as error:
            self._fail(error)
        except grpc.aio.UsageError as error:
            self._fail(MeshRpcError(grpc.StatusCode.CANCELLED, str(error), error))
        except Exception as error:
            # A request that cannot be serialised, an address that cannot be dialled: the caller gets it from the call.
            self._fail(MeshRpcError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}", error))

    async def _wait(self, pause: float = 0.0) -> Lease:
        while True:
            try:
                if pause:
                    await self._handle.wait_for_change_async(pause)
                return await self._handle.acquire_async(self.attempts.remaining(), self.attempts.hash_key)
            except MeshError as error:
                verdict = self.attempts.verdict(error)
                if verdict is not None:
                    raise verdict from error
            pause = self.attempts.next_round()

    async def _attempt(self, lease: Lease) -> Lease | None:
        """One try; settles the call, or returns the next lease (None: wait for one, everything was refused)."""
        remaining = self.attempts.remaining()
        if remaining is not None and remaining <= 0:
            lease.done()
            raise MeshRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, DEADLINE_DETAILS)
        try:
            bound = self._bind(lease)
        except BaseException:
            lease.done()
            raise
        completion = self._trying = Completion(lease, bound.transport)
        try:
            connected = isinstance(lease, ServiceLease) or await self._connected(bound.transport)
        except BaseException:
            completion.done()
            raise
        if not connected:
            completion.responded(True)
            completion.done(True)
            return self.attempts.after_silence(lease.subchannel)
        remaining = self.attempts.remaining()
        gate = Gate(self._pool.loop) if self._gated else None
        request = gate.through(self._request) if gate is not None else self._request
        try:
            call = self._current = self._start(bound, request, remaining)
        except BaseException:
            completion.done()
            raise
        try:
            await call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            refused = is_refusal(error.code(), error.details(), bound.transport.target)
            if refused and not is_local(error.details()):
                if gate is not None:
                    gate.settle(False)
                completion.responded(True)
                completion.done(True)
                following = self.attempts.after_refusal(lease.subchannel)
                if following is not None:
                    return following
                if self.attempts.wait_for_ready:
                    await self._handle.wait_for_change_async(self.attempts.next_round())
                    return None
        except asyncio.CancelledError:
            if not call.done():  # we were cancelled, not the call
                call.cancel()
                completion.done()
                raise
        if gate is not None:
            gate.settle(True)
        self._decide(call, completion)
        return None

    async def _connected(self, transport: Transport) -> bool:
        """Whether a call goes out at once, or fails at once; False: the endpoint did not connect in its time."""
        attempts = self.attempts
        if transport.draining or attempts.last_chance or not undecided(transport.look(True)):
            return True
        others = any(connected_now(other) for other in self._pool.transports)
        if await reach_async(transport, 0.0 if transport.silent else attempts.patience(others)):
            transport.silent = False
            return True
        transport.silent = True
        return attempts.expired()  # then core says so, in its own words

    def _decide(self, call: Any, completion: Completion) -> None:
        self.call = call
        self.completion = completion
        self._pool.account_at_end(call, completion)
        if not self.settled.done():
            self.settled.set_result(None)
        call.add_done_callback(lambda _: self._finish())

    def _fail(self, error: MeshRpcError) -> None:
        if self.settled.done():
            return
        self.error = error
        self.settled.set_result(None)
        self._finish()

    def _finish(self) -> None:
        self._finished = True
        callbacks, self._callbacks = self._callbacks, []
        run_callbacks(callbacks)

    # -- for the object that the user holds ----------------------------------------------------------------------

    async def deciding(self) -> Any:
        """grpc.aio's call that decides; raises the error of a call that never had one."""
        if not self.settled.done():
            await asyncio.shield(self.settled)
        if self.error is not None:
            if self.error.code() is grpc.StatusCode.CANCELLED:
                raise asyncio.CancelledError
            raise aio_error(self.error)
        return self.call

    async def ended(self) -> None:
        """Wait for the end, whatever it is."""
        over = asyncio.Event()
        self.on_end(over.set)
        await over.wait()

    def on_end(self, callback: Callable[[], Any]) -> None:
        if self._finished:
            callback()
        else:
            self._callbacks.append(callback)

    def cancel(self) -> bool:
        if self.call is not None:
            return bool(self.call.cancel())
        if self.settled.done():
            return False
        if self._task is not None:
            self._task.cancel()
        if self._current is not None:
            self._current.cancel()
        self._fail(MeshRpcError(grpc.StatusCode.CANCELLED, CANCEL_DETAILS))
        return True

    def cancelled(self) -> bool:
        if self.call is not None:
            return bool(self.call.cancelled())
        return self.error is not None and self.error.code() is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._finished or (self.call is not None and bool(self.call.done()))

    def abandon(self) -> None:
        """The user dropped the call: end it, from whichever thread the last reference went."""
        if self.done():
            return
        loop = self._pool.loop
        try:
            loop.call_soon_threadsafe(self.cancel)
        except RuntimeError:
            self.release()  # that loop is closed: grpc cancels its calls itself, only our counts are left

    def release(self) -> None:
        """Give the count back of a call whose loop is gone."""
        completion = self.completion or self._trying
        if completion is not None:
            completion.lease.done()


def _unclaimed(lease: Lease | None, task: asyncio.Task[None]) -> None:
    """A task cancelled before its first step has not taken over its lease."""
    if lease is not None and task.cancelled():
        lease.done()
