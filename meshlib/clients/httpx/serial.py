"""HTTP/2 for threads: a connection carries one request at a time.

httpcore lets threads share an HTTP/2 connection, but neither it nor h2 guards what they share there: two threads can be
given one stream, and all requests of the connection break. With several threads most of them do, so nothing is lost by
giving each request a connection of its own, as HTTP/1.1 does. In asyncio nothing can come in between, and
requests share connections.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshlib.runtime.primitives import new_lock

_pools: dict[Any, type] = {}


def serial_pool(core: Any) -> type:
    """httpcore's ConnectionPool with such connections."""
    kind = _pools.get(core)
    if kind is None:
        base: Any = core.ConnectionPool

        class SerialPool(base):  # type: ignore[misc]
            def create_connection(self, origin: Any) -> Any:
                return SerialConnection(super().create_connection(origin), core.ConnectionNotAvailable)

        kind = _pools.setdefault(core, SerialPool)
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
            response.stream = _Body(response.stream, self._lock)
        except BaseException:
            self._lock.release()
            raise
        return response

    def is_available(self) -> bool:
        return not self._lock.locked() and bool(self.inner.is_available())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return f"<SerialConnection {self.inner!r}>"


class _Body:
    def __init__(self, inner: Any, lock: Any) -> None:
        self._inner = inner
        self._lock: Any = lock  #: None: given back

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner

    def close(self) -> None:
        lock, self._lock = self._lock, None
        try:
            self._inner.close()
        finally:
            if lock is not None:
                lock.release()
