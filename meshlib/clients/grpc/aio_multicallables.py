"""The four kinds of callables of an asyncio mesh channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from meshlib.clients.grpc.aio_attempt import AioAttempts
from meshlib.clients.grpc.aio_call import StreamStreamCall, StreamUnaryCall, UnaryStreamCall, UnaryUnaryCall
from meshlib.clients.grpc.aio_pool import LoopPool
from meshlib.clients.grpc.attempts import Attempts
from meshlib.clients.grpc.hash_key import Keys
from meshlib.clients.grpc.pool import Bound
from meshlib.clients.grpc.reach import READY
from meshlib.clients.grpc.transport import Completion
from meshlib.errors import MeshError
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease


class AioMultiCallable:
    """One method of an asyncio mesh channel; usable on any loop (``pool`` gives the running loop's channels)."""

    #: The call object of this kind, and whether its request is a stream.
    call_type: Any
    streams_requests = False

    def __init__(
        self,
        handle: TargetHandle,
        pool: Callable[[], LoopPool],
        clock: Callable[[], float],
        key: Keys,
        make: Callable[[Any], Any],
    ) -> None:
        self._handle = handle
        self._pool = pool
        self._clock = clock
        self._key = key
        self._make = make

    def _start(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
        **others: Any,
    ) -> Any:
        """Start now on an endpoint that is connected; else in a task, which connects and may have to move on."""
        pool = self._pool()
        if pool.closed:
            raise grpc.aio.UsageError("Channel is closed.")
        key = self._key(metadata)
        lease: Lease | None
        try:
            lease = self._handle.try_acquire(key)
        except MeshError:
            lease = None  # the call object says so, when it is awaited
        bound: Bound | None = None
        if lease is not None:
            try:
                bound = pool.bind(lease, self, self._make)
            except BaseException:
                lease.done()
                raise
            if bound.transport.look(False) != READY:
                bound.transport.end()
                bound = None

        def start(bound: Bound, request: Any, left: float | None) -> Any:
            return bound.callable(request, timeout=left, metadata=metadata, **others)

        attempts = Attempts(
            self._handle,
            self._clock,
            deadline=None if timeout is None else self._clock() + timeout,
            wait_for_ready=bool(wait_for_ready),
            hash_key=key,
        )
        progress = AioAttempts(
            self._handle, pool, attempts, self._bind, start, request, self.streams_requests
        )
        if bound is not None and lease is not None:
            completion = Completion(lease, bound.transport)
            try:
                progress.adopt(bound, completion, timeout)
            except BaseException:
                completion.done()
                raise
        else:
            progress.drive(lease)
        return self.call_type(progress)

    def _bind(self, lease: Lease) -> Bound:
        return self._pool().bind(lease, self, self._make)


# wait_for_ready never reaches the endpoint's channel: waiting on one dead endpoint would swallow the deadline while
# others could serve, so the waiting is done over all of them.


class _UnaryRequest(AioMultiCallable):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self._start(
            request, timeout, metadata, wait_for_ready, credentials=credentials, compression=compression
        )


class _StreamRequest(AioMultiCallable):
    streams_requests = True

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self._start(
            request_iterator,
            timeout,
            metadata,
            wait_for_ready,
            credentials=credentials,
            compression=compression,
        )


class UnaryUnary(_UnaryRequest, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    """One request, one response."""

    call_type = UnaryUnaryCall


class UnaryStream(_UnaryRequest, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """One request, a stream of responses."""

    call_type = UnaryStreamCall


class StreamUnary(_StreamRequest, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    """A stream of requests, one response."""

    call_type = StreamUnaryCall


class StreamStream(_StreamRequest, grpc.aio.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """A stream of requests, a stream of responses."""

    call_type = StreamStreamCall
