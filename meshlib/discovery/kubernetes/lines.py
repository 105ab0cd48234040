"""Bytes of a watch stream to lines. Splits on ``\\n`` only: text splitters also break at U+2028, U+0085 or ``\\r``."""

from __future__ import annotations

from collections.abc import Iterator

#: Longest line in bytes. etcd refuses objects above 1.5 MB by default; JSON escaping may add some, never 2.6 times.
MAX_LINE = 4 * 1024 * 1024


class LineTooLong(Exception):
    """A line passed the limit; the stream cannot be used any further."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"a watch line is longer than {limit} bytes")


class LineSplitter:
    """Feed chunks, get whole non-empty lines without the newline. A last line without newline is never given out."""

    __slots__ = ("_limit", "_parts", "_size")

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that ``chunk`` completes; raises LineTooLong. Consume fully before feeding again."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if self._size + end - start > self._limit:
                raise LineTooLong(self._limit)
            line = chunk[start:end]
            if self._parts:
                line = b"".join((*self._parts, line))
                self._parts.clear()
                self._size = 0
            start = end + 1
            if line and not line.isspace():  # empty lines are keep-alives of some proxies
                yield line
        rest = chunk[start:]
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
            if self._size > self._limit:
                raise LineTooLong(self._limit)

    @property
    def pending(self) -> int:
        """Bytes of the unfinished last line."""
        return self._size
