"""The four kinds of callables of an asyncio mesh channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from meshlib.clients.grpc.aio_call import StreamStreamCall, StreamUnaryCall, UnaryStreamCall, UnaryUnaryCall
from meshlib.clients.grpc.aio_pool import LoopPool
from meshlib.clients.grpc.aio_progress import Progress
from meshlib.clients.grpc.aio_shapes import StreamRequest, UnaryRequest
from meshlib.clients.grpc.hash_key import Keys
from meshlib.clients.grpc.otherwise import Bare, is_not_ours
from meshlib.clients.grpc.pool import Bound
from meshlib.clients.grpc.status import MeshRpcError
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease


class AioMultiCallable:
    """One method of an asyncio mesh channel; usable on any loop (``pool`` gives the running loop's channels)."""

    #: What a call of this kind is, what its user holds of it if that is not the same, and which side is a stream.
    call_type: type[Progress] = Progress
    held_type: Any = None
    streams_requests = False
    streams_responses = False

    def __init__(
        self,
        handle: TargetHandle,
        pool: Callable[[], LoopPool],
        clock: Callable[[], float],
        key: Keys,
        make: Callable[[Any], Any],
        bare: Bare | None = None,
    ) -> None:
        self._bare = bare
        self.handle = handle
        self.clock = clock
        self.key = key
        self._pool = pool
        self._make = make

    def _start(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
        credentials: Any,
        compression: Any,
    ) -> Any:
        """Start now on an endpoint that is connected; else in a task, which connects and may have to move on."""
        pool = self._pool()
        if pool.closed:
            raise grpc.aio.UsageError("Channel is closed.")
        began = self.clock()
        subchannel = self.handle.choose(began, self.key, metadata)
        call = self.call_type(
            self, pool, began, request, timeout, metadata, wait_for_ready, credentials, compression
        )
        if subchannel is None:
            call.drive(None)  # the call object says why, when it is awaited
        else:
            bound = pool.connected(subchannel, self, self._make)
            if bound is not None:
                call.adopt(bound)
            else:
                call.drive(Lease(subchannel, self.clock, began))
        return call if self.held_type is None else self.held_type(call)

    def otherwise(self, error: MeshRpcError) -> Any:
        """The method on grpc's own channel, for a call whose host is none of ours; None: the error stands."""
        if self._bare is None or not is_not_ours(error, self.handle):
            return None
        return self._make(self._bare())

    def bind(self, lease: Lease) -> Bound:
        """The method on the lease's endpoint, in the running loop's pool, with the call counted in."""
        return self._pool().bind(lease, self, self._make)


# wait_for_ready never reaches the endpoint's channel: waiting on one dead endpoint would swallow the deadline while
# others could serve, so the waiting is done over all of them.


class UnaryUnary(AioMultiCallable, UnaryRequest, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    """One request, one response."""

    call_type = UnaryUnaryCall


class UnaryStream(AioMultiCallable, UnaryRequest, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """One request, a stream of responses."""

    held_type = UnaryStreamCall
    streams_responses = True


class StreamUnary(AioMultiCallable, StreamRequest, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    """A stream of requests, one response."""

    streams_requests = True
    call_type = StreamUnaryCall


class StreamStream(AioMultiCallable, StreamRequest, grpc.aio.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """A stream of requests, a stream of responses."""

    streams_requests = True
    held_type = StreamStreamCall
    streams_responses = True
