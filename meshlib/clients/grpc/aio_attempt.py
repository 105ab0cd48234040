"""AioAttempts: drives one asyncio call until an attempt has a connection, or there is nothing left to try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.clients.grpc.aio_pool import LoopPool, at_once
from meshlib.clients.grpc.attempts import Attempts
from meshlib.clients.grpc.callbacks import run_callbacks
from meshlib.clients.grpc.pool import Bound
from meshlib.clients.grpc.reach import connected_now, holds_calls, reach_async, undecided
from meshlib.clients.grpc.status import (
    CANCEL_DETAILS,
    DEADLINE_DETAILS,
    MeshRpcError,
    aio_error,
    is_local,
    is_refusal,
)
from meshlib.clients.grpc.transport import Completion, Transport
from meshlib.clients.grpc.waiting import next_after
from meshlib.errors import MeshError
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease, ServiceLease
from meshlib.runtime.process import Generation

if TYPE_CHECKING:
    from meshlib.clients.grpc.aio_multicallables import AioMultiCallable


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

    Settled once ``call``, grpc.aio's call that decides, is set, or ``error`` if none ever had a connection.
    """

    # Most calls find their endpoint connected and change none of these.
    call: Any = None
    completion: Completion | None = None
    error: MeshRpcError | None = None
    _attempts: Attempts | None = None
    _callbacks: list[Callable[[], None]] | None = None
    _current: Any = None
    finished = False
    #: The transport of a call whose answer comes as a whole, on an endpoint that was called before: its end is
    #: accounted for at once, by nobody else. None: ``completion`` does it.
    _quick: Transport | None = None
    _settled: asyncio.Future[None] | None = None  #: made for those who wait for it
    _task: asyncio.Task[None] | None = None
    _rivals: list[Transport] | None = None  #: were left as silent, and may connect yet
    _trying: Completion | None = None

    def __init__(
        self,
        method: AioMultiCallable,
        pool: LoopPool,
        request: Any,
        began: float,
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
        credentials: Any,
        compression: Any,
    ) -> None:
        self._method = method
        self._pool = pool
        self._request = request
        self._began = began
        self._timeout = timeout
        self._metadata = metadata
        self._wait_for_ready = wait_for_ready
        self._credentials = credentials
        self._compression = compression
        #: A call adopted on a connected endpoint may still find the connection gone; of a request stream nobody knows
        #: then what was taken from it.
        self._revocable = not method.streams_requests

    @property
    def attempts(self) -> Attempts:
        attempts = self._attempts
        if attempts is None:
            method, timeout = self._method, self._timeout
            attempts = self._attempts = Attempts(
                method.handle,
                method.clock,
                deadline=None if timeout is None else self._began + timeout,
                wait_for_ready=bool(self._wait_for_ready),
                hash_key=method.key(self._metadata),
            )
        return attempts

    @property
    def settled(self) -> bool:
        return self.call is not None or self.error is not None

    async def until_settled(self) -> None:
        """Wait for ``settled``; cancelling who waits leaves the call alone."""
        while not self.settled:
            if self._settled is None or self._settled.done():
                self._settled = self._pool.loop.create_future()
            await asyncio.shield(self._settled)

    def _settle(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def adopt(self, bound: Bound, subchannel: Subchannel) -> None:
        """Start on a connected endpoint: no driving needed; the attempt decides, unless its connection just went."""
        transport = bound.transport
        if transport.warm and not self._method.streams_responses:
            self._quick = transport
        else:
            self.completion = self._counted(transport, subchannel)
        try:
            self.call = call = self._start(bound, self._request, self._timeout)
        except BaseException:
            (self.completion or self._counted(transport, subchannel)).done()
            raise
        self._pool.running.add(self)
        core = getattr(call, "_cython_call", None) if self._quick is not None else None
        if core is None:  # or made by interceptors of the user's, or by a grpcio that we do not know
            call.add_done_callback(self._adopted_ended)
        else:
            core.add_done_callback(self._quick_ended)

    def _start(self, bound: Bound, request: Any, left: float | None) -> Any:
        """grpc.aio's call on one endpoint."""
        return bound.callable(
            request,
            timeout=left,
            metadata=self._metadata,
            credentials=self._credentials,
            compression=self._compression,
        )

    def _counted(self, transport: Transport, subchannel: Subchannel) -> Completion:
        return Completion(Lease(subchannel, self._method.clock, self._began), transport)

    def _quick_ended(self) -> None:
        """``_adopted_ended`` for what most calls are: asks core for no more than whether it was answered."""
        transport, pool, call = self._quick, self._pool, self.call
        if transport is None:
            return  # released meanwhile, with its loop
        if not call._cython_call.is_ok() or pool.generation != Generation.current:
            self._adopted_ended(call)
            return
        self._quick = None
        pool.running.discard(self)
        transport.open.pop()
        if transport.draining:
            transport.settle()
        now = self._method.clock()
        transport.subchannel.finish(now, now - self._began)
        self._finish()

    def _adopted_ended(self, call: Any) -> None:
        self._pool.running.discard(self)
        code = at_once(call.code())
        transport = self._quick
        if transport is not None:
            self._quick = None
            self.completion = self._counted(transport, transport.subchannel)
        completion = self.completion
        if completion is None:
            return  # released meanwhile, with its loop
        if code is grpc.StatusCode.UNAVAILABLE and self._revocable and not call.cancelled():
            details = at_once(call.details())
            refused = is_refusal(code, details, completion.transport.target)
            if refused and is_local(details):
                completion.done()
            elif refused:
                completion.responded(True)
                completion.done(True)
                following = self.attempts.after_refusal(completion.lease.subchannel)
                if following is not None or self.attempts.wait_for_ready:
                    self.call = None
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
                if self.settled:
                    return
        except asyncio.CancelledError:
            self._fail(MeshRpcError(grpc.StatusCode.CANCELLED, CANCEL_DETAILS))
            raise
        except MeshRpcError as error:
            self._otherwise(error)
        except grpc.aio.UsageError as error:
            self._fail(MeshRpcError(grpc.StatusCode.CANCELLED, str(error), error))
        except Exception as error:
            # A request that cannot be serialised, an address that cannot be dialled: the caller gets it from the call.
            self._fail(MeshRpcError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}", error))

    async def _wait(self, pause: float = 0.0) -> Lease:
        while True:
            try:
                if pause:
                    await self._method.handle.wait_for_change_async(pause)
                return await self._method.handle.acquire_async(
                    self.attempts.remaining(), self.attempts.hash_key
                )
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
            bound = self._method.bind(lease)
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
            if self._rivals is None:
                self._rivals = []
            return next_after(bound.transport, self.attempts, self._rivals)
        remaining = self.attempts.remaining()
        gated = self._method.streams_requests and self._request is not None
        gate = Gate(self._pool.loop) if gated else None
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
            if refused and is_local(error.details()):
                completion.done()
            elif refused:
                if gate is not None:
                    gate.settle(False)
                completion.responded(True)
                completion.done(True)
                following = self.attempts.after_refusal(lease.subchannel)
                if following is not None:
                    return following
                if self.attempts.wait_for_ready:
                    await self._method.handle.wait_for_change_async(self.attempts.next_round())
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
        if transport.draining or attempts.last_chance:
            return True
        if not undecided(transport.look(True)):
            return not holds_calls(transport)
        others = any(connected_now(other) for other in self._pool.transports)
        patience = 0.0 if transport.silent else attempts.patience(others)
        if await reach_async(transport, patience, self._rivals or ()):
            transport.silent = False
            return not holds_calls(transport)
        if attempts.expired():
            return True  # core says so, in its own words
        transport.was_silent()
        return False

    def _decide(self, call: Any, completion: Completion) -> None:
        self.call = call
        self.completion = completion
        self._pool.running.add(self)
        self._settle()
        call.add_done_callback(self._decided_ended)

    def _decided_ended(self, call: Any) -> None:
        self._pool.running.discard(self)
        if self.completion is not None:
            self.completion.ended(at_once(call.code()))
        self._finish()

    def _otherwise(self, error: MeshRpcError) -> None:
        """Go on in grpc's own way if the host is none of ours, else end with the error."""
        method = self._method.otherwise(error)
        if method is None:
            self._fail(error)
            return
        self.call = call = method(
            self._request,
            timeout=self.attempts.remaining(),
            metadata=self._metadata,
            credentials=self._credentials,
            wait_for_ready=self._wait_for_ready,
            compression=self._compression,
        )
        self._settle()
        call.add_done_callback(self._decided_ended)

    def _fail(self, error: MeshRpcError) -> None:
        if self.settled:
            return
        self.error = error
        self._settle()
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        callbacks = self._callbacks
        if callbacks:
            self._callbacks = None
            run_callbacks(callbacks)

    # -- for the object that the user holds ----------------------------------------------------------------------

    async def deciding(self) -> Any:
        """grpc.aio's call that decides; raises the error of a call that never had one."""
        if not self.settled:
            await self.until_settled()
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
        if self.finished:
            callback()
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def cancel(self) -> bool:
        if self.call is not None:
            return bool(self.call.cancel())
        if self.settled:
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
        return self.finished or (self.call is not None and bool(self.call.done()))

    def abandon(self) -> None:
        """The user dropped the call: end it, from whichever thread the last reference went."""
        if self.finished or self.done():
            return
        loop = self._pool.loop
        try:
            loop.call_soon_threadsafe(self.cancel)
        except RuntimeError:
            self.release()  # that loop is closed: grpc cancels its calls itself, only our counts are left

    def release(self) -> None:
        """Give the count back of a call whose loop is gone."""
        transport, self._quick = self._quick, None
        if transport is not None:
            transport.subchannel.end()
        completion = self.completion or self._trying
        if completion is not None:
            completion.lease.done()


def _unclaimed(lease: Lease | None, task: asyncio.Task[None]) -> None:
    """A task cancelled before its first step has not taken over its lease."""
    if lease is not None and task.cancelled():
        lease.done()
