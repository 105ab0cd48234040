"""Drive: the task that brings one asyncio call to an attempt with a connection, or to the end of all it could try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.clients.grpc.reach import connected_now, holds_calls, reach_async, undecided
from meshlib.clients.grpc.status import (
    CANCEL_DETAILS,
    DEADLINE_DETAILS,
    MeshRpcError,
    is_local,
    is_refusal,
)
from meshlib.clients.grpc.transport import Completion, Transport
from meshlib.clients.grpc.waiting import next_after
from meshlib.errors import MeshError
from meshlib.runtime.lease import Lease, ServiceLease

if TYPE_CHECKING:
    from meshlib.clients.grpc.aio_progress import Progress


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


class Drive:
    """Tries endpoint after endpoint, beginning with ``lease``, or waiting for one. Ends with the progress settled."""

    def __init__(self, progress: Progress, lease: Lease | None) -> None:
        self._progress = progress
        self._method = progress.method
        self._current: Any = None
        self._rivals: list[Transport] = []  #: were left as silent, and may connect yet
        self.trying: Completion | None = None
        self._task = progress.pool.loop.create_task(self._run(lease))
        self._task.add_done_callback(partial(_unclaimed, lease))

    def cancel(self) -> None:
        self._task.cancel()
        if self._current is not None:
            self._current.cancel()

    async def _run(self, lease: Lease | None) -> None:
        progress = self._progress
        try:
            while True:
                lease = lease or await self._wait()
                lease = await self._attempt(lease)
                if progress.settled:
                    return
        except asyncio.CancelledError:
            progress.fail(MeshRpcError(grpc.StatusCode.CANCELLED, CANCEL_DETAILS))
            raise
        except MeshRpcError as error:
            self._otherwise(error)
        except grpc.aio.UsageError as error:
            progress.fail(MeshRpcError(grpc.StatusCode.CANCELLED, str(error), error))
        except Exception as error:
            # A request that cannot be serialised, an address that cannot be dialled: the caller gets it from the call.
            progress.fail(MeshRpcError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}", error))

    async def _wait(self, pause: float = 0.0) -> Lease:
        attempts, handle = self._progress.attempts, self._method.handle
        while True:
            try:
                if pause:
                    await handle.wait_for_change_async(pause)
                return await handle.acquire_async(attempts.remaining(), attempts.hash_key)
            except MeshError as error:
                verdict = attempts.verdict(error)
                if verdict is not None:
                    raise verdict from error
            pause = attempts.next_round()

    async def _attempt(self, lease: Lease) -> Lease | None:
        """One try; settles the call, or returns the next lease (None: wait for one, everything was refused)."""
        progress, attempts = self._progress, self._progress.attempts
        remaining = attempts.remaining()
        if remaining is not None and remaining <= 0:
            lease.done()
            raise MeshRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, DEADLINE_DETAILS)
        try:
            bound = self._method.bind(lease)
        except BaseException:
            lease.done()
            raise
        completion = self.trying = Completion(lease, bound.transport)
        try:
            connected = isinstance(lease, ServiceLease) or await self._connected(bound.transport)
        except BaseException:
            completion.done()
            raise
        if not connected:
            completion.responded(True)
            completion.done(True)
            return next_after(bound.transport, attempts, self._rivals)
        remaining = attempts.remaining()
        request = progress.request
        gate = Gate(progress.pool.loop) if self._method.streams_requests and request is not None else None
        if gate is not None:
            request = gate.through(request)
        try:
            call = self._current = progress.start(bound, request, remaining)
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
                following = attempts.after_refusal(lease.subchannel)
                if following is not None:
                    return following
                if attempts.wait_for_ready:
                    await self._method.handle.wait_for_change_async(attempts.next_round())
                    return None
        except asyncio.CancelledError:
            if not call.done():  # we were cancelled, not the call
                call.cancel()
                completion.done()
                raise
        if gate is not None:
            gate.settle(True)
        progress.decide(call, completion)
        return None

    async def _connected(self, transport: Transport) -> bool:
        """Whether a call goes out at once, or fails at once; False: the endpoint did not connect in its time."""
        attempts = self._progress.attempts
        if transport.draining or attempts.last_chance:
            return True
        if not undecided(transport.look(True)):
            return not holds_calls(transport)
        others = any(connected_now(other) for other in self._progress.pool.transports)
        patience = 0.0 if transport.silent else attempts.patience(others)
        if await reach_async(transport, patience, self._rivals):
            transport.silent = False
            return not holds_calls(transport)
        if attempts.expired():
            return True  # core says so, in its own words
        transport.was_silent()
        return False

    def _otherwise(self, error: MeshRpcError) -> None:
        """Go on in grpc's own way if the host is none of ours, else end with the error."""
        progress = self._progress
        method = self._method.otherwise(error)
        if method is None:
            progress.fail(error)
            return
        call = method(
            progress.request,
            timeout=progress.attempts.remaining(),
            metadata=progress.metadata,
            credentials=progress.credentials,
            wait_for_ready=progress.wait_for_ready,
            compression=progress.compression,
        )
        progress.decide(call, None)


def _unclaimed(lease: Lease | None, task: asyncio.Task[None]) -> None:
    """A task cancelled before its first step has not taken over its lease."""
    if lease is not None and task.cancelled():
        lease.done()
