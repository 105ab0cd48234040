"""MultiCallable: one method of a mesh channel: pick, call the endpoint's own callable, account for the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from meshlib.clients.grpc.attempts import Attempts
from meshlib.clients.grpc.call import MeshCall
from meshlib.clients.grpc.hash_key import Keys
from meshlib.clients.grpc.otherwise import Bare, Waiting, is_not_ours
from meshlib.clients.grpc.pool import Bound, Pool
from meshlib.clients.grpc.reach import READY, connected_now
from meshlib.clients.grpc.requests import RequestSource
from meshlib.clients.grpc.status import MeshRpcError, is_local, is_refusal
from meshlib.clients.grpc.transport import Completion, Transport
from meshlib.clients.grpc.waiting import connected
from meshlib.errors import MeshError
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease

#: How a method was asked for: (kind, method, serializer, deserializer, further arguments).
Make = Callable[[Any], Any]


class MultiCallable:
    """One method of a mesh channel. Thread-safe; remembers the method's callable on each endpoint's channel.

    ``make`` builds it on a channel; ``serializer`` is what grpc will do to requests; ``bare`` gives the channel to go
    to when the host is none of ours after all. ``handle``, ``closed`` and ``clock`` are for the calls it starts.
    """

    def __init__(
        self,
        handle: TargetHandle,
        pool: Pool,
        clock: Callable[[], float],
        key: Keys,
        make: Make,
        serializer: Callable[[Any], bytes] | None = None,
        bare: Bare | None = None,
    ) -> None:
        self.handle = handle
        self._bare = bare
        self._serializer = serializer
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

    @property
    def has_connection(self) -> bool:
        """Whether any endpoint is connected now."""
        return any(connected_now(transport) for transport in self._pool.transports())

    def transport(self, lease: Lease) -> Transport:
        """The lease's transport, with its user counted in. ValueError when the channel is closed."""
        return self._pool.begin(lease)

    def _attempts(
        self, began: float, timeout: float | None, metadata: Any, wait_for_ready: bool | None
    ) -> Attempts:
        return Attempts(
            self.handle,
            self.clock,
            deadline=None if timeout is None else began + timeout,
            wait_for_ready=bool(wait_for_ready),
            hash_key=self._key(metadata),
        )

    def _blocking(
        self,
        with_call: bool,
        request: Any,
        source: RequestSource | None,
        timeout: float | None,
        metadata: Any,
        credentials: Any,
        wait_for_ready: bool | None,
        compression: Any,
    ) -> Any:
        """A call that blocks until its only response. ``source``: of its requests, when they are a stream.

        Nearly every call finds its endpoint connected and is answered. That way is kept flat, without an object or a
        function of ours that it can do without: between two waits for the network everything here costs three times
        what it costs in a loop, because the processor's caches served somebody else meanwhile.
        """
        clock = self.clock
        began = clock()
        attempts: Attempts | None = None
        lease: Lease | None = None
        bound: Bound | None = None
        subchannel = self.handle.choose(began, self._key, metadata)
        if subchannel is not None:
            bound = self._bound.get(subchannel)
            if bound is None or not _ready(bound.transport):
                bound, lease = None, Lease(subchannel, clock, began)
        while True:
            if bound is None:
                if attempts is None:
                    attempts = self._attempts(began, timeout, metadata, wait_for_ready)
                try:
                    lease = self._reach(attempts, lease)
                except MeshRpcError as error:
                    method = self.otherwise(error, attempts)
                    if method is None:
                        raise
                    return (method.with_call if with_call else method)(
                        source.view() if source is not None else request,
                        attempts.remaining(),
                        metadata,
                        credentials,
                        None,
                        compression,
                    )
                timeout = attempts.remaining()
                try:
                    bound = self.bind(lease)
                except BaseException:
                    lease.done()
                    raise
            transport = bound.transport
            completion = Completion(lease, transport) if lease is not None else None
            try:
                response = (bound.with_call if with_call else bound.callable)(
                    source.view() if source is not None else request,
                    timeout,
                    metadata,
                    credentials,
                    None,
                    compression,
                )
            except BaseException as error:
                if completion is None:
                    completion = Completion(Lease(transport.subchannel, clock, began), transport)
                if attempts is None:
                    attempts = self._attempts(began, timeout, metadata, wait_for_ready)
                lease = self._after(error, completion, attempts, source)
                if lease is None:
                    raise
                bound = None
            else:
                if completion is not None:
                    completion.ended(grpc.StatusCode.OK)
                else:
                    transport.open.pop()
                    if transport.draining:
                        transport.settle()
                    now = clock()
                    transport.subchannel.finish(now, now - began)
                return response

    def _after(
        self, error: BaseException, completion: Completion, attempts: Attempts, source: RequestSource | None
    ) -> Lease | None:
        """Account for an attempt that ended with ``error``; where to try again, or None: it is the call's error."""
        if not isinstance(error, grpc.RpcError):
            completion.done()
            return None
        code, details = error.code(), error.details()
        if not is_refusal(code, details, completion.transport.target):
            completion.ended(code)
            return None
        if is_local(details):
            completion.done()
            return None
        completion.responded(True)
        completion.done(True)
        if source is not None and not source.replayable:
            return None
        following = attempts.after_refusal(completion.transport.subchannel)
        if following is None:
            if not attempts.wait_for_ready:
                return None
            following = self._reach(attempts, None, attempts.next_round())
        return following  # of a deadline that is over, core says so itself

    def _reach(self, attempts: Attempts, lease: Lease | None, pause: float = 0.0) -> Lease:
        if lease is None and self.closed.is_set():
            raise ValueError("Cannot invoke RPC on closed channel!")
        outcome = connected(self, attempts, lease, pause)
        if isinstance(outcome, MeshRpcError):
            raise outcome
        return outcome

    def _call(
        self,
        start: Callable[[Any, Any, float | None], Any],
        request: Any,
        source: RequestSource | None,
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
    ) -> MeshCall:
        """A call that returns at once. ``source``: of its requests, when they are a stream."""
        began = self.clock() if timeout is not None else 0.0
        attempts = self._attempts(began, timeout, metadata, wait_for_ready)
        try:
            lease = self.handle.try_acquire(attempts.hash_key)
        except MeshError:
            lease = None  # the slow way says why
        call = MeshCall(self, start, attempts, request, source)
        call.begin(lease, timeout)
        return call

    def _future(
        self,
        request: Any,
        source: RequestSource | None,
        timeout: float | None,
        metadata: Any,
        credentials: Any,
        wait_for_ready: bool | None,
        compression: Any,
    ) -> MeshCall:
        def start(callable_: Any, message: Any, left: float | None) -> Any:
            return callable_.future(message, left, metadata, credentials, None, compression)

        return self._call(start, request, source, timeout, metadata, wait_for_ready)

    def _stream(
        self,
        request: Any,
        source: RequestSource | None,
        timeout: float | None,
        metadata: Any,
        credentials: Any,
        wait_for_ready: bool | None,
        compression: Any,
    ) -> MeshCall:
        def start(callable_: Any, message: Any, left: float | None) -> Any:
            return callable_(message, left, metadata, credentials, None, compression)

        return self._call(start, request, source, timeout, metadata, wait_for_ready)

    def otherwise(self, error: MeshRpcError, attempts: Attempts) -> Waiting | None:
        """The method on grpc's own channel, for a call whose host is none of ours; None: the error stands."""
        if self._bare is None or not is_not_ours(error, self.handle):
            return None
        return Waiting(self._make(self._bare()), attempts.wait_for_ready)

    def serialises(self, request: Any) -> bool:
        """Whether grpc will be able to. If not it says so at once, also while there is no connection yet."""
        if self._serializer is None:
            return True
        try:
            self._serializer(request)
        except Exception:
            return False  # raised again, and told in grpc's way, when the call is handed to it
        return True


def _ready(transport: Transport) -> bool:
    """Count a call in, if the endpoint is connected and was called before."""
    transport.open.append(None)
    try:
        if not transport.closed and transport.warm and transport.look(False) == READY:
            return True
    except ValueError:
        pass  # closed meanwhile; the slow way finds out what that means
    transport.end()
    return False
