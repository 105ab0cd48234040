"""The four kinds of callables of a mesh channel: pick, call the endpoint's own callable, account for the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from meshlib.clients.grpc.attempts import Attempts
from meshlib.clients.grpc.call import MeshCall
from meshlib.clients.grpc.hash_key import KeyFunction
from meshlib.clients.grpc.pool import Bound, Pool
from meshlib.clients.grpc.requests import RequestSource
from meshlib.clients.grpc.status import DEADLINE_DETAILS, MeshRpcError, is_local, is_refusal
from meshlib.clients.grpc.transport import Completion
from meshlib.clients.grpc.waiting import wait_for_lease
from meshlib.errors import MeshError
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease
from meshlib.runtime.primitives import new_lock

#: How a method was asked for: (kind, method, serializer, deserializer, further arguments).
Make = Callable[[Any], Any]


class MultiCallable:
    """One method of a mesh channel. Thread-safe; remembers the method's callable on each endpoint's channel.

    ``make`` builds it on a channel. ``handle``, ``closed`` and ``clock`` are for the calls it starts.
    """

    def __init__(
        self,
        handle: TargetHandle,
        pool: Pool,
        clock: Callable[[], float],
        key: KeyFunction | None,
        make: Make,
    ) -> None:
        self.handle = handle
        self.clock = clock
        self._pool = pool
        self._key = key
        self._make = make
        self._bound: dict[Subchannel, Bound] = {}
        pool.register(self)

    @property
    def closed(self) -> Any:
        return self._pool.closed

    def bind(self, lease: Lease) -> Bound:
        """The method on the lease's endpoint, with the call counted in. ValueError when the channel is closed."""
        bound = self._bound.get(lease.subchannel)
        if bound is not None and bound.transport.begin():
            return bound
        transport = self._pool.begin(lease)
        try:
            bound = Bound(transport, self._make(transport.channel))
        except BaseException:
            transport.end()
            raise
        if not transport.draining:
            self._bound[lease.subchannel] = bound
            if lease.subchannel.removed:  # dropped meanwhile, before it was in the table
                self.forget(lease.subchannel)
        return bound

    def forget(self, subchannel: Subchannel) -> None:
        """The endpoint is gone."""
        self._bound.pop(subchannel, None)

    def forget_all(self) -> object:
        """In a forked child: start over; returns what must stay referenced."""
        old, self._bound = self._bound, {}
        return old

    def _attempts(self, timeout: float | None, metadata: Any, wait_for_ready: bool | None) -> Attempts:
        return Attempts(
            self.handle,
            self.clock,
            deadline=None if timeout is None else self.clock() + timeout,
            wait_for_ready=bool(wait_for_ready),
            hash_key=self._key(metadata) if self._key is not None else None,
        )

    def _pick_now(self, metadata: Any) -> Lease | None:
        """A lease if one can be had at once. None: the slow way, which waits or says why not."""
        try:
            return self.handle.try_acquire(self._key(metadata) if self._key is not None else None)
        except MeshError:
            return None

    def _blocking(
        self,
        invoke: Callable[[Any, Any, float | None], Any],
        request: Callable[[], Any],
        replayable: Callable[[], bool],
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
    ) -> Any:
        """A call that blocks until its only response. ``request()`` gives the request of each attempt."""
        lease = self._pick_now(metadata)
        attempts: Attempts | None = None
        if lease is None:
            if self.closed.is_set():
                raise ValueError("Cannot invoke RPC on closed channel!")
            attempts = self._attempts(timeout, metadata, wait_for_ready)
            lease = self._wait(attempts)
            timeout = attempts.remaining()
        started = self.clock() if attempts is None and timeout is not None else 0.0
        while True:
            try:
                bound = self.bind(lease)
            except BaseException:
                lease.done()
                raise
            completion = Completion(lease, bound.transport)
            try:
                response = invoke(bound.callable, request(), timeout)
            except grpc.RpcError as error:
                code, details = error.code(), error.details()
                if not is_refusal(code, details, bound.transport.target):
                    completion.ended(code)
                    raise
                if is_local(details):
                    completion.done()
                    raise
                completion.responded(True)
                completion.done(True)
                if not replayable():
                    raise
                if attempts is None:
                    attempts = self._attempts(timeout, metadata, wait_for_ready)
                    if timeout is not None:
                        attempts.deadline = started + timeout
                following = attempts.after_refusal(bound.transport.subchannel)
                if following is None and not attempts.wait_for_ready:
                    raise
                lease = following or self._wait(attempts, attempts.next_round())
                timeout = attempts.remaining()
                if timeout is not None and timeout <= 0:
                    lease.done()
                    raise MeshRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, DEADLINE_DETAILS, error) from error
            except BaseException:
                completion.done()
                raise
            else:
                completion.ended(grpc.StatusCode.OK)
                return response

    def _wait(self, attempts: Attempts, pause: float = 0.0) -> Lease:
        outcome = wait_for_lease(self.handle, attempts, self.closed, pause)
        if isinstance(outcome, MeshRpcError):
            raise outcome
        return outcome

    def _call(
        self,
        start: Callable[[Any, Any, float | None], Any],
        request: Callable[[], Any],
        replayable: Callable[[], bool],
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
    ) -> MeshCall:
        """A call that returns at once."""
        attempts = self._attempts(timeout, metadata, wait_for_ready)
        lease = self._pick_now(metadata)
        call = MeshCall(
            self, lambda bound, left: start(bound.callable, request(), left), attempts, replayable
        )
        call.begin(lease, timeout)
        return call


def _always() -> bool:
    return True


# Every argument list below is grpc's own. wait_for_ready never reaches the endpoint's channel: waiting on one dead
# endpoint would swallow the deadline while others could serve, so the waiting is done over all of them.


class UnaryUnary(MultiCallable, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    """One request, one response."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        def invoke(callable_: Any, message: Any, left: float | None) -> Any:
            return callable_(message, left, metadata, credentials, None, compression)

        return self._blocking(invoke, lambda: request, _always, timeout, metadata, wait_for_ready)

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        def invoke(callable_: Any, message: Any, left: float | None) -> Any:
            return callable_.with_call(message, left, metadata, credentials, None, compression)

        return self._blocking(invoke, lambda: request, _always, timeout, metadata, wait_for_ready)

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        def start(callable_: Any, message: Any, left: float | None) -> Any:
            return callable_.future(message, left, metadata, credentials, None, compression)

        return self._call(start, lambda: request, _always, timeout, metadata, wait_for_ready)


class UnaryStream(MultiCallable, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """One request, a stream of responses."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        def start(callable_: Any, message: Any, left: float | None) -> Any:
            return callable_(message, left, metadata, credentials, None, compression)

        return self._call(start, lambda: request, _always, timeout, metadata, wait_for_ready)


class StreamUnary(MultiCallable, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    """A stream of requests, one response."""

    def __call__(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        def invoke(callable_: Any, messages: Any, left: float | None) -> Any:
            return callable_(messages, left, metadata, credentials, None, compression)

        source = RequestSource(request_iterator, new_lock())
        return self._blocking(
            invoke, source.view, lambda: source.replayable, timeout, metadata, wait_for_ready
        )

    def with_call(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        def invoke(callable_: Any, messages: Any, left: float | None) -> Any:
            return callable_.with_call(messages, left, metadata, credentials, None, compression)

        source = RequestSource(request_iterator, new_lock())
        return self._blocking(
            invoke, source.view, lambda: source.replayable, timeout, metadata, wait_for_ready
        )

    def future(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        def start(callable_: Any, messages: Any, left: float | None) -> Any:
            return callable_.future(messages, left, metadata, credentials, None, compression)

        source = RequestSource(request_iterator, new_lock())
        return self._call(start, source.view, lambda: source.replayable, timeout, metadata, wait_for_ready)


class StreamStream(MultiCallable, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """A stream of requests, a stream of responses."""

    def __call__(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        def start(callable_: Any, messages: Any, left: float | None) -> Any:
            return callable_(messages, left, metadata, credentials, None, compression)

        source = RequestSource(request_iterator, new_lock())
        return self._call(start, source.view, lambda: source.replayable, timeout, metadata, wait_for_ready)
