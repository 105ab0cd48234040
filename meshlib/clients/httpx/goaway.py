"""A server that leaves an HTTP/2 connection: what it took is finished, what it did not take is sent elsewhere.

A GOAWAY says which stream is the last that the server takes (RFC 9113 6.8): those up to it may go on to their end,
those above it were not looked at and can be sent again without harm, whatever their method. h2 knows neither
(python-hyper/h2#1181: it ends the whole connection), so every rolling restart of a server would break requests. Here
a GOAWAY without an error is kept from h2, and the streams above it are told REFUSED_STREAM, which means just that
(RFC 9113 8.7). One that tells an error goes through after those, since the server is about to hang up.
"""

from __future__ import annotations

import select
from typing import Any

#: RFC 9113: the preface (3.4), the frame head (4.1), frame types and flags (6), REFUSED_STREAM (7).
_PREFACE = 24
_HEAD = 9
_DATA, _HEADERS, _RST_STREAM, _GOAWAY = 0, 1, 3, 7
_END_STREAM = 1
REFUSED_STREAM = 7
#: A GOAWAY holds at least a stream and a code; h2 takes no longer frame than this by default, and says so itself.
_SHORTEST, _LONGEST = 8, 16384
_STREAM = 0x7FFFFFFF


class _Frames:
    """Walks over the frames of one direction, however the bytes are cut."""

    __slots__ = ("_head", "left")

    def __init__(self, skip: int) -> None:
        self.left = skip  #: bytes of the frame that are still to come
        self._head = bytearray()

    def head(self, data: bytes, at: int) -> tuple[int, bytes]:
        """More of a head, from ``at``. Where it ends, and the head once it is whole."""
        end = at + _HEAD - len(self._head)
        self._head += data[at:end]
        if len(self._head) < _HEAD:
            return len(data), b""
        head = bytes(self._head)
        self._head.clear()
        self.left = int.from_bytes(head[:3], "big")
        return end, head


class Departure:
    """Both directions of one connection, as bytes. One thread may send while another one receives. No IO."""

    __slots__ = ("_goaway", "_in", "_open", "_out", "_over", "_payload", "last", "refused")

    def __init__(self) -> None:
        self._out, self._in = _Frames(_PREFACE), _Frames(0)
        self._open: set[int] = set()  #: streams that have no end yet
        self._goaway = b""  #: the head of the GOAWAY that is coming in
        self._payload = b""
        self._over = False  #: nothing that comes counts any more
        self.last: int | None = None  #: the last stream the server takes; None: it stays
        self.refused: list[int] = []  #: streams that were begun too late; their refusal is to be read

    def sent(self, data: bytes) -> None:
        """The client sends this."""
        at, frames = 0, self._out
        while at < len(data):
            if frames.left:
                step = min(frames.left, len(data) - at)
                frames.left -= step
                at += step
                continue
            at, head = frames.head(data, at)
            if head and head[3] == _HEADERS:
                stream = int.from_bytes(head[5:], "big") & _STREAM
                self._open.add(stream)  # before the look: a GOAWAY that comes in between finds it there
                if self.last is not None and stream > self.last:
                    self.refused.append(stream)

    def received(self, data: bytes) -> bytes:
        """The server sent this; returns what h2 is to see of it."""
        if self._over:
            return b""
        seen = bytearray()
        at, frames = 0, self._in
        while at < len(data):
            if not frames.left:
                at, head = frames.head(data, at)
                if not head:
                    break
                if head[3] == _GOAWAY and _SHORTEST <= frames.left <= _LONGEST:
                    self._goaway = head
                    continue
                seen += head
                if head[3] == _RST_STREAM or (head[3] in (_DATA, _HEADERS) and head[4] & _END_STREAM):
                    self._open.discard(int.from_bytes(head[5:], "big") & _STREAM)
                continue
            part = data[at : at + frames.left]
            at += len(part)
            frames.left -= len(part)
            if not self._goaway:
                seen += part
                continue
            self._payload += part
            if not frames.left:
                told, self._over = self._leave()
                seen += told
                if self._over:
                    break
        return bytes(seen)

    def take_refused(self) -> bytes:
        """The refusals of streams that were begun after the GOAWAY."""
        streams, self.refused = self.refused, []
        return b"".join(map(_refusal, streams))

    def _leave(self) -> tuple[bytes, bool]:
        """What h2 is told of a GOAWAY, and whether that is the end."""
        head, payload = self._goaway, self._payload
        self._goaway = self._payload = b""
        last = int.from_bytes(payload[:4], "big") & _STREAM
        self.last = last = last if self.last is None else min(last, self.last)
        refusals = b"".join(_refusal(stream) for stream in sorted(self._open.copy()) if stream > last)
        if payload[4:8] == b"\0\0\0\0":  # NO_ERROR
            return refusals, False
        return refusals + head + payload, True


def _refusal(stream: int) -> bytes:
    return b"\0\0\4\3\0" + stream.to_bytes(4, "big") + REFUSED_STREAM.to_bytes(4, "big")


def is_refusal(error: BaseException) -> bool:
    """Whether httpcore's exception holds an h2 event that says: this stream was not looked at."""
    event: Any = error.args[0] if error.args else None
    return type(event).__name__ == "StreamReset" and event.error_code == REFUSED_STREAM


class Http2Stream:
    """httpcore's network stream under an HTTP/2 connection, with departures.

    A server that leaves may stop listening before everything it sent is read, so a write that fails then is not the end
    (httpcore would throw away what has come): reading tells it, in its place.
    """

    def __init__(self, inner: Any, core: Any) -> None:
        self._inner = inner
        self._write_error: type[Exception] = core.WriteError
        self._departure = Departure()

    @property
    def leaves(self) -> bool:
        """No new request may go over it."""
        return self._departure.last is not None

    def is_stale(self) -> bool:
        """Asked while idle. httpcore reads nothing then, and that there is something to read need not be the end: it
        may be a PING or a WINDOW_UPDATE. A GOAWAY that is not read yet refuses the next request."""
        return self.leaves or _hung_up(self._inner.get_extra_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        departure = self._departure
        while not departure.refused:
            data: bytes = self._inner.read(max_bytes, timeout)
            if not data or (data := departure.received(data)):
                return data
        return departure.take_refused()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._departure.sent(buffer)
        try:
            self._inner.write(buffer, timeout)
        except self._write_error:
            if not self.leaves:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class AsyncHttp2Stream(Http2Stream):
    """The same for asyncio."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # type: ignore[override]
        departure = self._departure
        while not departure.refused:
            data: bytes = await self._inner.read(max_bytes, timeout)
            if not data or (data := departure.received(data)):
                return data
        return departure.take_refused()

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # type: ignore[override]
        self._departure.sent(buffer)
        try:
            await self._inner.write(buffer, timeout)
        except self._write_error:
            if not self.leaves:
                raise


def _hung_up(sock: Any) -> bool:
    """Whether the peer has closed its end, without a look at what it sent before. False where that cannot be asked."""
    poll = getattr(select, "poll", None)  # not on Windows, and taken away by some cooperative libraries
    if poll is None or sock is None:
        return False
    poller = poll()
    end = getattr(select, "POLLRDHUP", 0)  # Linux; elsewhere POLLHUP, which is always told
    poller.register(sock.fileno(), end)
    return any(
        event & (end | select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poller.poll(0)
    )


def gone(pool: Any) -> list[Any]:
    """Take out of a pool the idle HTTP/2 connections that must not get another request; the busy ones get none."""
    closing = []
    with pool._optional_thread_lock:
        for connection in list(pool._connections):
            # a SerialConnection has it inside
            http2 = getattr(getattr(connection, "inner", connection), "_connection", None)
            stream = getattr(http2, "_network_stream", None)
            if http2 is None or not isinstance(stream, Http2Stream):
                continue
            if stream.leaves:
                http2._used_all_stream_ids = True  # httpcore's word for it: closes when its last request ends
            assigned = any(request.connection is connection for request in pool._requests)
            if connection.is_idle() and not assigned and stream.is_stale():
                pool._connections.remove(connection)
                closing.append(connection)
    return closing
