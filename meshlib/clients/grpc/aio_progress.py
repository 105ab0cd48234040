"""Progress: which of grpc.aio's calls decides one call of ours, and the accounting for its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.clients.grpc.aio_drive import Drive
from meshlib.clients.grpc.aio_pool import LoopPool, at_once
from meshlib.clients.grpc.attempts import Attempts
from meshlib.clients.grpc.callbacks import run_callbacks
from meshlib.clients.grpc.pool import Bound
from meshlib.clients.grpc.status import CANCEL_DETAILS, MeshRpcError, aio_error, is_local, is_refusal
from meshlib.clients.grpc.transport import Completion, Transport
from meshlib.runtime.lease import Lease
from meshlib.runtime.process import Generation

if TYPE_CHECKING:
    from meshlib.clients.grpc.aio_multicallables import AioMultiCallable


class Progress:
    """The progress of one call, on one loop. Its pool holds it until the call under way has ended.

    Settled once ``call``, grpc.aio's call that decides, is set, or ``error`` if none ever had a connection.
    """

    # Most calls find their endpoint connected and change none of these.
    call: Any = None
    error: MeshRpcError | None = None
    completion: Completion | None = None
    finished = False
    _attempts: Attempts | None = None
    _callbacks: list[Callable[[], None]] | None = None
    _drive: Drive | None = None
    _final = False  #: what ``call`` says stands, also that it was refused
    #: The transport of a call whose answer comes as a whole, on an endpoint that was called before. Most of them end
    #: well, and a few steps account for that; ``completion`` is made for the others.
    _quick: Transport | None = None
    _settled: asyncio.Future[None] | None = None  #: made for those who wait for it

    def __init__(
        self,
        method: AioMultiCallable,
        pool: LoopPool,
        began: float,
        request: Any,
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
        credentials: Any,
        compression: Any,
    ) -> None:
        self.method = method
        self.pool = pool
        self.began = began
        self.request = request
        self.timeout = timeout
        self.metadata = metadata
        self.wait_for_ready = wait_for_ready
        self.credentials = credentials
        self.compression = compression

    @property
    def attempts(self) -> Attempts:
        attempts = self._attempts
        if attempts is None:
            method, timeout = self.method, self.timeout
            attempts = self._attempts = Attempts(
                method.handle,
                method.clock,
                deadline=None if timeout is None else self.began + timeout,
                wait_for_ready=bool(self.wait_for_ready),
                hash_key=method.key(self.metadata),
            )
        return attempts

    # -- the course of it ------------------------------------------------------------------------------------------

    def adopt(self, bound: Bound) -> None:
        """Start on a connected endpoint: no driving needed; the attempt decides, unless its connection just went."""
        transport = bound.transport
        if transport.warm and not self.method.streams_responses:
            self._quick = transport
        else:
            self.completion = self._counted(transport)
        try:
            call = self.call = bound.callable(  # ``start``, written out for the calls that are most of them
                self.request,
                timeout=self.timeout,
                metadata=self.metadata,
                credentials=self.credentials,
                compression=self.compression,
            )
        except BaseException:
            (self.completion or self._counted(transport)).done()
            raise
        self.pool.watch(call, self)

    def drive(self, lease: Lease | None) -> None:
        """Start on ``lease``, or wait for one, in a task."""
        self.pool.waiting.add(self)
        self._drive = Drive(self, lease)

    def start(self, bound: Bound, request: Any, left: float | None) -> Any:
        """grpc.aio's call on one endpoint, with ``left`` seconds."""
        return bound.callable(
            request,
            timeout=left,
            metadata=self.metadata,
            credentials=self.credentials,
            compression=self.compression,
        )

    def decide(self, call: Any, completion: Completion | None) -> None:
        """``call`` is the one. ``completion`` None: no endpoint of ours has it."""
        self.call = call
        self.completion = completion
        self._final = True
        self._drive = None
        self._settle()
        self.pool.watch(call, self)

    def fail(self, error: MeshRpcError) -> None:
        """The call never had a connection."""
        if self.settled:
            return
        self.error = error
        self._settle()
        self._finish()

    def ended(self) -> None:
        """``call`` has ended (told by the pool, once)."""
        call = self.call
        transport, self._quick = self._quick, None
        if self.pool.generation != Generation.current:
            self._finish()  # in a forked child: the counts are the parent's
            return
        if transport is not None:
            try:
                well = call._cython_call.is_ok()  # one question to core; ``code()`` is a coroutine
            except AttributeError:  # as ``watch`` says
                well = at_once(call.code()) is grpc.StatusCode.OK
            if well:
                transport.open.pop()
                if transport.draining:
                    transport.settle()
                now = self.method.clock()
                transport.subchannel.finish(now, now - self.began)
                self.finished = True
                if self._callbacks:
                    self._finish()
                return
            self.completion = self._counted(transport)
        completion = self.completion
        if completion is not None and not self._moves_on(call, completion):
            completion.ended(at_once(call.code()))
        if self.call is not None:
            self._finish()

    def _moves_on(self, call: Any, completion: Completion) -> bool:
        """Whether ``call`` was refused by an endpoint that seemed connected, and is followed by another one."""
        # Of a request stream nobody knows then what was taken from it.
        if self._final or self.method.streams_requests or call.cancelled():
            return False
        details = at_once(call.details())
        if not is_refusal(at_once(call.code()), details, completion.transport.target):
            return False
        if is_local(details):
            completion.done()
            return False
        completion.responded(True)
        completion.done(True)
        following = self.attempts.after_refusal(completion.transport.subchannel)
        if following is None and not self.attempts.wait_for_ready:
            return False
        self.call = None
        self.drive(following)
        return True

    def _counted(self, transport: Transport) -> Completion:
        return Completion(Lease(transport.subchannel, self.method.clock, self.began), transport)

    def _settle(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _finish(self) -> None:
        self.finished = True
        callbacks = self._callbacks
        if callbacks:
            self._callbacks = None
            run_callbacks(callbacks)

    # -- for the object that the user holds ------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        return self.call is not None or self.error is not None

    async def until_settled(self) -> None:
        """Wait for ``settled``; cancelling who waits leaves the call alone."""
        while not self.settled:
            if self._settled is None or self._settled.done():
                self._settled = self.pool.loop.create_future()
            await asyncio.shield(self._settled)

    async def deciding(self) -> Any:
        """grpc.aio's call that decides; raises the error of a call that never had one."""
        if not self.settled:
            await self.until_settled()
        if self.error is not None:
            if self.error.code() is grpc.StatusCode.CANCELLED:
                raise asyncio.CancelledError
            raise aio_error(self.error)
        return self.call

    def decides(self, call: Any) -> bool:
        """Whether what ``call`` said stands; from here on it does."""
        if self.call is not call:
            return False
        if call.done():
            self._final = True
        return True

    async def until_ended(self) -> None:
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
        if self._drive is not None:
            self._drive.cancel()
        self.fail(MeshRpcError(grpc.StatusCode.CANCELLED, CANCEL_DETAILS))
        return True

    def cancelled(self) -> bool:
        if self.call is not None:
            return bool(self.call.cancelled())
        return self.error is not None and self.error.code() is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self.finished or (self.call is not None and bool(self.call.done()))

    def abandon(self) -> None:
        """The user dropped the call: end it, from whichever thread the last reference went."""
        if self.done():
            return
        loop = self.pool.loop
        try:
            loop.call_soon_threadsafe(self.cancel)
        except RuntimeError:
            self.release()  # that loop is closed: grpc cancels its calls itself, only our counts are left

    def release(self) -> None:
        """Give the count back of a call whose loop is gone."""
        transport, self._quick = self._quick, None
        if transport is not None:
            transport.subchannel.end()
        completion = self.completion or (self._drive.trying if self._drive is not None else None)
        if completion is not None:
            completion.lease.done()
