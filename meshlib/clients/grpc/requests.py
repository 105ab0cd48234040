"""RequestSource: the request messages of one streaming call, so that a refused attempt loses none of them.

grpcio's consumer thread takes the first message from the user's iterator before there is a connection. When the
connection is refused, the next attempt must see that message again; once a second one is asked for, the first was
accepted by a connection and nothing needs to be kept any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

_NOTHING: Any = object()


class RequestSource:
    """Shares one iterator among the attempts of one call, one after the other. ``view`` gives each its own iterator."""

    __slots__ = ("_committed", "_current", "_first", "_iterator", "_lock")

    def __init__(self, iterator: Iterator[Any], lock: AbstractContextManager[object]) -> None:
        self._iterator = iterator
        self._lock = lock
        self._first: Any = _NOTHING
        self._committed = False
        self._current: View | None = None

    @property
    def replayable(self) -> bool:
        """Whether another attempt would see every message from the start."""
        return not self._committed

    def view(self) -> View:
        """The messages from the start, for the next attempt; what the previous one may still hold ends."""
        self._current = View(self)
        return self._current

    def take(self, view: View) -> Any:
        """The next message for ``view``. StopIteration when the source, or the attempt, is over."""
        if self._committed and view is self._current:
            return next(self._iterator)
        with self._lock:  # an abandoned attempt may still sit in the user's iterator: one at a time
            if view is not self._current:
                raise StopIteration
            if view.position == 0 and self._first is not _NOTHING:
                view.position = 1
                return self._first
            if view.position == 0:
                message = self._first = next(self._iterator)
                view.position = 1
                return message
            self._committed = True
            self._first = _NOTHING
        return next(self._iterator)


class View:
    """The iterator that one attempt hands to grpc."""

    __slots__ = ("_source", "position")

    def __init__(self, source: RequestSource) -> None:
        self._source = source
        self.position = 0

    def __iter__(self) -> View:
        return self

    def __next__(self) -> Any:
        return self._source.take(self)
