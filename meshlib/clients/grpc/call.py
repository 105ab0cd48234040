"""MeshCall: what ``future()`` and the streaming methods return - grpc's call object over one or more attempts.

It is to the user what grpcio's own rendezvous is: an iterator of responses, a ``grpc.Call`` and a ``grpc.Future``.
Nearly everything is passed to the attempt under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.clients.grpc.course import Course
from meshlib.clients.grpc.status import CANCEL_DETAILS, MeshRpcError

if TYPE_CHECKING:
    _Future = grpc.Future[Any]
else:
    _Future = grpc.Future  # not generic at run time


class MeshCall(Course, grpc.RpcError, grpc.Call, _Future):
    """One RPC. Thread-safe. Dropping the last reference cancels it, as with grpcio's own."""

    _sampled = False  #: the first response came

    # -- what grpc answers -----------------------------------------------------------------------------------------

    def initial_metadata(self) -> Any:
        return self._until_final(lambda call, _: call.initial_metadata())

    def trailing_metadata(self) -> Any:
        return self._until_final(lambda call, _: call.trailing_metadata())

    def code(self) -> Any:
        return self._until_final(lambda call, _: call.code())

    def details(self) -> Any:
        return self._until_final(lambda call, _: call.details())

    def debug_error_string(self) -> Any:
        return self._until_final(lambda call, _: call.debug_error_string())

    def result(self, timeout: float | None = None) -> Any:
        return self._until_final(self._unless_cancelled(lambda call, left: call.result(left)), timeout)

    def exception(self, timeout: float | None = None) -> Any:
        return self._until_final(self._unless_cancelled(lambda call, left: call.exception(left)), timeout)

    def traceback(self, timeout: float | None = None) -> Any:
        return self._until_final(self._unless_cancelled(lambda call, left: call.traceback(left)), timeout)

    def _unless_cancelled(
        self, look: Callable[[Any, float | None], Any]
    ) -> Callable[[Any, float | None], Any]:
        """A call cancelled before it had an endpoint answers as a cancelled rendezvous does."""

        def checked(call: Any, left: float | None) -> Any:
            if self._cancelled and call is self._error:
                raise grpc.FutureCancelledError
            return look(call, left)

        return checked

    # -- the iterator --------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            attempt = self._attempt or self._started()
            if isinstance(attempt, MeshRpcError):
                raise attempt
            rendezvous = attempt.rendezvous
            try:
                response = next(rendezvous)
            except grpc.RpcError:
                if self._replaced(attempt):
                    continue
                raise
            if not self._sampled:
                self._sampled = True
                attempt.completion.responded()
            return response

    next = __next__

    # -- the context ---------------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        with self._condition:
            if self._callbacks is None:
                return False
            self._cancelled = True
            if self._attempt is not None:
                return bool(self._attempt.rendezvous.cancel())
        return self._fail(MeshRpcError(grpc.StatusCode.CANCELLED, CANCEL_DETAILS))

    def cancelled(self) -> bool:
        attempt = self._attempt
        return bool(attempt.rendezvous.cancelled()) if attempt is not None else self._cancelled

    def running(self) -> bool:
        return not self.done()

    def is_active(self) -> bool:
        return not self.done()

    def done(self) -> bool:
        with self._condition:
            if self._callbacks is None:
                return True
            attempt = self._attempt
        if attempt is None or not attempt.rendezvous.done():
            return False
        return not self._settle(attempt)

    def time_remaining(self) -> Any:
        remaining = self._attempts.remaining()
        return None if remaining is None else max(0.0, remaining)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        with self._condition:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            self._pin[:] = [self]  # somebody waits for the end: it must come even if the caller drops us
            return True

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        if not self.add_callback(partial(fn, self)):
            fn(self)

    def __repr__(self) -> str:
        attempt = self._attempt
        if self._error is not None:
            return repr(self._error)
        return (
            repr(attempt.rendezvous)
            if attempt is not None
            else f"<{type(self).__name__} waiting for an endpoint>"
        )

    __str__ = __repr__
