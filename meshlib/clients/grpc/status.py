"""Statuses: which failures mean "nothing was sent", which count against an endpoint, and the errors made here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    _Future = grpc.Future[Any]
else:
    _Future = grpc.Future  # not generic at run time

#: Codes that count as a failure of the endpoint (decision D6), as HTTP's 5xx do. The last one because an endpoint that
#: accepts and never answers must not look fast to callers with short deadlines.
FAILURES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)

#: How gRPC core begins the details of a call that failed because its channel has no connection (pick_first's failing
#: picker; the same words since grpcio 1.48).
NEVER_CONNECTED = "failed to connect to all addresses"

DEADLINE_DETAILS = "Deadline Exceeded"
CANCEL_DETAILS = "Locally cancelled by application!"
CLOSED_DETAILS = "Channel closed!"


def is_refusal(code: grpc.StatusCode | None, details: str | None, target: str) -> bool:
    """Whether a call ended without ever having had a connection to ``target``, so that nothing of it was sent.

    The details must name the very address we dialled: a server that forwards the error of *its* backend uses the same
    words with another address, and such a call must not be sent twice.
    """
    return (
        code is grpc.StatusCode.UNAVAILABLE
        and details is not None
        and details.startswith(NEVER_CONNECTED)
        and f" {target}:" in details
    )


def is_local(details: str | None) -> bool:
    """Whether a refusal is our own process' fault (out of descriptors): no endpoint is to blame for it."""
    return details is not None and "Too many open files" in details


class MeshRpcError(grpc.RpcError, grpc.Call, _Future):
    """An error of a call that never reached a server: no endpoint, deadline while waiting for one, cancelled, closed.

    It is everything grpc's own error is (``RpcError``, ``Call`` and ``Future``); ``__cause__`` holds the meshlib error.
    """

    def __init__(self, code: grpc.StatusCode, details: str, cause: BaseException | None = None) -> None:
        super().__init__(code, details)
        self._code = code
        self._details = details
        self.__cause__ = cause

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def debug_error_string(self) -> str:
        return f"{self._code.name}:{self._details}"

    def initial_metadata(self) -> tuple[Any, ...]:
        return ()

    def trailing_metadata(self) -> tuple[Any, ...]:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> Any:
        return None

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> Any:
        raise self

    def exception(self, timeout: float | None = None) -> MeshRpcError:
        return self

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        try:
            raise self
        except grpc.RpcError:
            return sys.exc_info()[2]

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        fn(self)

    def __str__(self) -> str:
        return (
            f"<{type(self).__name__} of RPC that terminated with:\n"
            f"\tstatus = {self._code}\n"
            f'\tdetails = "{self._details}"\n'
            f'\tdebug_error_string = "{self.debug_error_string()}"\n>'
        )

    __repr__ = __str__

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._code, self._details))


def aio_error(error: MeshRpcError) -> grpc.aio.AioRpcError:
    """The same error as grpc.aio raises it."""
    made = grpc.aio.AioRpcError(
        error.code(),
        grpc.aio.Metadata(),
        grpc.aio.Metadata(),
        details=error.details(),
        debug_error_string=error.debug_error_string(),
    )
    made.__cause__ = error.__cause__
    return made
