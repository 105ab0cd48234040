"""Reply bodies of the fast wire: their end gives the connection back and ends the lease, in one object.

An httpcore body is wrapped for its lease (``clients.httpx.body``); here that would be one more generator per request,
and asyncio registers every asynchronous generator, so these are plain iterators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from meshlib.clients.httpx.body import abandon, end
from meshlib.runtime.lease import Lease

#: An iterator that has ended, for bodies of which nothing was taken yet.
_NOTHING: Iterator[bytes] = iter(())


class _Body:
    """``close`` gives the connection back, or closes it when it cannot serve another request. Idempotent."""

    __slots__ = ("_blames", "_connection", "_engine", "_lease", "_timeout")

    def __init__(self, engine: Any, connection: Any, timeout: float | None) -> None:
        self._engine = engine
        self._connection: Any = connection  #: None: closed
        self._timeout = timeout
        self._lease: Lease | None = None
        self._blames: Callable[[BaseException], bool] | None = None

    def hold(self, lease: Lease, blames: Callable[[BaseException], bool]) -> None:
        """The lease ends with the body, once: by exhaustion, close, an exception, or the garbage collector."""
        self._lease, self._blames = lease, blames

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._engine.ended(connection)

    def _end(self, error: BaseException | None = None) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            end(lease, error is not None and self._blames is not None and self._blames(error))

    def _fail(self, error: BaseException) -> None:
        try:
            self._close()
        finally:
            self._end(error)

    def __del__(self) -> None:
        lease = self._lease
        if lease is not None:
            self._lease = None
            abandon(lease)
        if self._connection is not None:
            self._engine.unread.append(self)  # a finalizer must not take locks: the next request closes it


class SyncBody(_Body):
    """For threads."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        connection = self._connection
        if connection is not None:
            reply = connection.reply
            try:
                while True:
                    yield from reply.take()
                    if reply.complete:
                        break
                    connection.receive(self._timeout)
            except BaseException as error:
                self._fail(error)
                raise
        self._end()

    def close(self) -> None:
        try:
            self._close()
        finally:
            self._end()


class AioBody(_Body):
    """For asyncio. Nothing in ``aclose`` waits, so it cannot be interrupted."""

    __slots__ = ("_parts",)
    _parts: Iterator[bytes]

    def __init__(self, engine: Any, connection: Any, timeout: float | None) -> None:
        super().__init__(engine, connection, timeout)
        self._parts = _NOTHING

    def __aiter__(self) -> AioBody:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        connection = self._connection
        if connection is not None:
            reply = connection.reply
            try:
                while True:
                    if reply.parts:
                        self._parts = iter(reply.take())
                        return next(self._parts)
                    if reply.complete:
                        break
                    await connection.receive(self._timeout)
            except BaseException as error:
                self._fail(error)
                raise
        self._end()
        raise StopAsyncIteration

    def close(self) -> None:
        try:
            self._close()
        finally:
            self._end()

    async def aclose(self) -> None:
        self.close()
