"""HTTP/2 for threads: a connection carries one request at a time.

httpcore lets threads share an HTTP/2 connection, but neither it nor h2 guards what they share there: two threads can be
given one stream, and all requests of the connection break. With several threads most of them do, so nothing is lost by
giving each request a connection of its own, as HTTP/1.1 does. In asyncio nothing can come in between, and
requests share connections.

What a signal handler raises (Ctrl-C) may come between a read and h2's look at what was read: such a connection closes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshlib.clients.httpx.held import holding
from meshlib.runtime.primitives import new_lock

_pools: dict[Any, Any] = {}


def serial_pool(core: Any) -> Any:
    """httpcore's ConnectionPool with such connections."""
    kind = _pools.get(core)
    if kind is None:

        class SerialPool(core.ConnectionPool):  # type: ignore[misc]
            def create_connection(self, origin: Any) -> Any:
                return SerialConnection(super().create_connection(origin), core.ConnectionNotAvailable)

        kind = _pools.setdefault(core, holding(SerialPool))
    return kind


class SerialConnection:
    """httpcore's interface to a connection of its pool. From any thread."""

    def __init__(self, inner: Any, busy: type[Exception]) -> None:
        self.inner = inner
        self._busy = busy
        self._lock = (
            new_lock()
        )  #: held from the request to the end of the reply's body; by no thread in particular

    def handle_request(self, request: Any) -> Any:
        if not self._lock.acquire(blocking=False):
            raise self._busy  # the pool finds another one
        try:
            response = self.inner.handle_request(request)
            response.stream = _Body(self, response.stream)
        except BaseException as error:
            self.ended(error)
            raise
        return response

    def ended(self, error: BaseException | None) -> None:
        """The request is over, by an exception or not."""
        try:
            if error is not None and not isinstance(error, Exception | GeneratorExit):
                self.inner.close()
        finally:
            self._lock.release()

    def is_available(self) -> bool:
        return not self._lock.locked() and bool(self.inner.is_available())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return f"<SerialConnection {self.inner!r}>"


class _Body:
    def __init__(self, connection: SerialConnection, inner: Any) -> None:
        self._connection: SerialConnection | None = connection  #: None: closed
        self._inner = inner
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._inner
        except BaseException as error:
            self._error = error
            raise

    def close(self) -> None:
        connection, self._connection = self._connection, None
        error, self._error = self._error, None
        try:
            self._inner.close()
        except BaseException as failed:
            error = failed
            raise
        finally:
            if connection is not None:
                connection.ended(error)
