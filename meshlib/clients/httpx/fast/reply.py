"""Bytes in, a reply out: head, body parts, end, and whether the connection can serve another request. No IO.

httptools (llhttp) parses. Where it is stricter than h11, which the bare library uses (a folded header, the same
Content-Length twice), ``second`` reads the reply with h11 instead, so that nothing which works without meshlib stops
working; such a connection is not used again. Where it is more lenient (anything before the status line, an
informational reply in front, a length of more than 20 digits) h11 decides, too: where a reply ends must never be a
matter of opinion (request smuggling). Messages of errors are h11's.
"""

from __future__ import annotations

import re
from typing import Any

import httptools

from meshlib.clients.httpx.fast.second import SecondReader

#: httpcore's bound on a head (MAX_INCOMPLETE_EVENT_SIZE), bytes: a server must not fill our memory with headers.
MAX_HEAD = 100 * 1024
#: The first byte of every status line. llhttp skips line ends before it and also takes RTSP's and ICE's.
_FIRST = b"H"[0]
#: h11's bound on the digits of a Content-Length: those of 2**64.
_LENGTH_DIGITS = 20
#: What h11 refuses in a reason and llhttp does not (both refuse line ends).
_BAD_REASON = re.compile(rb"[\x00\x0b\x0c]").search
_VERSIONS = {"1.1": b"HTTP/1.1", "1.0": b"HTTP/1.0"}


class ReplyParser:
    """The replies of one connection, one after the other. Not thread-safe: whoever holds the connection uses it."""

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_error",
        "_idling",
        "_interim",
        "_keeps",
        "_length",
        "_parser",
        "_raw",
        "_raw_size",
        "_received",
        "_second",
        "_stray",
        "_upgrades",
        "complete",
        "head_done",
        "headers",
        "leftover",
        "parts",
        "reason",
        "size",
        "status",
        "upgraded",
        "version",
    )

    def __init__(self, error: type[Exception]) -> None:
        self._error = error  #: httpcore's RemoteProtocolError
        self._parser: Any = None
        self._second: SecondReader | None = None
        self._chunked = False
        self.begin(b"GET", False)

    def begin(self, method: bytes, upgrades: bool) -> None:
        """A request goes out; what comes from now on answers it. ``upgrades``: it proposes another protocol."""
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
            # h11 takes lines of a head that end in a mere line feed
            self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
        elif self._chunked:
            self._parser.set_dangerous_leniencies(
                lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=False
            )
        self._bodiless = method == b"HEAD"
        self._chunked = False
        self._interim = False  #: an informational reply came first
        self._second = None
        self._idling = 0  #: bytes since the last byte of the body: chunk extensions, trailers
        self._upgrades = upgrades
        self._raw: list[bytes] = []
        self._raw_size = 0
        self._stray = False
        self._keeps = False
        self._length: int | None = None  #: declared; None: chunked, or until the end of the connection
        self._received = 0
        self.status = 0
        self.reason = b""
        self.version = b"HTTP/1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[
            bytes
        ] = []  #: of the body, not taken yet; an earlier reply's may have been left unread
        self.size = 0  #: bytes in ``parts``
        self.head_done = self.complete = self.upgraded = False
        self.leftover = b""  #: after a 101: what already belongs to the other protocol

    @property
    def reusable(self) -> bool:
        """The reply has ended, the connection stays open, and nothing came after it."""
        return self.complete and self._keeps and not self._stray

    def take(self) -> list[bytes]:
        """The parts of the body that have come; they are the caller's then."""
        parts, self.parts, self.size = self.parts, [], 0
        return parts

    def spoil(self) -> None:
        """The connection must not serve another request, whatever the reply says."""
        self._stray = True

    def feed(self, data: bytes) -> None:
        """Bytes from the connection. Raises the error class given for what is no reply."""
        if self._second is not None:
            self._from_second(data)
            return
        if self.complete:
            self._stray = True
            return
        if not self.head_done:
            if not self._raw and data[0] != _FIRST:
                self._to_second(data)
                return
            self._raw.append(data)
            self._raw_size += len(data)
        before = self._received
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.leftover = data[upgrade.args[0] :]
        except httptools.HttpParserError as refused:
            self._refused(refused)
        if self.head_done:
            self._raw = []
            if self._received == before and not self.complete:
                self._idling += len(data)
                if self._idling > MAX_HEAD:
                    raise self._error("Receive buffer too long")
            else:
                self._idling = 0
        elif self._raw_size > MAX_HEAD and self._second is None:
            raise self._error("Receive buffer too long")

    def eof(self) -> None:
        """The connection ended. That ends a reply without a length; otherwise it raises."""
        self._keeps = False
        if self.complete:
            return
        if not self.head_done:
            raise self._error("Server disconnected without sending a response.")
        if self._second is not None:
            self._from_second(b"")
        elif self._length is not None:
            raise self._error(
                "peer closed connection without sending complete message body "
                f"(received {self._received} bytes, expected {self._length})"
            )
        elif any(name.lower() == b"transfer-encoding" for name, _ in self.headers):
            raise self._error(
                "peer closed connection without sending complete message body (incomplete chunked read)"
            )
        else:
            self.complete = True

    def _refused(self, refused: Exception) -> None:
        """httptools stopped. Who else can read it, or whose error is it?"""
        if self.upgraded:
            # llhttp wants headers with a 101 that h11 can do without, and does not say where it stopped
            second = SecondReader(False, True, self._error)
            second.feed(b"".join(self._raw))
            self.leftover = second.leftover()
        elif self.complete:  # what came behind the reply is no reply
            self._stray = True
        elif self.head_done:
            raise self._error(
                str(refused.__context__ or refused)
            ) from refused  # context: raised by a callback
        else:
            self._to_second(b"".join(self._raw))

    def _to_second(self, data: bytes) -> None:
        """h11 reads the reply, from its first byte."""
        self._parser, self._keeps = None, False
        self._second = SecondReader(self._bodiless, self._upgrades, self._error)
        self._from_second(data)

    def _from_second(self, data: bytes) -> None:
        second = self._second
        assert second is not None  # noqa: S101 - for mypy; the callers looked
        parts = second.feed(data)
        self.parts += parts
        self.size += sum(map(len, parts))
        if second.head is not None and not self.head_done:
            self.version, self.status, self.reason, self.headers = second.head
            self.head_done, self.upgraded = True, self.status == 101
        self.leftover += second.leftover()
        self.complete = second.complete
        self._keeps = self._interim and second.reusable

    # called by httptools

    def on_message_begin(self) -> None:
        if self.complete:
            self._stray = True

    def on_status(self, reason: bytes) -> None:
        if not self.complete:
            self.reason += reason  # comes in pieces when the bytes do

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:
            self.headers.append((name, value.rstrip(b" \t")))
        elif len(name) == 17 and name.lower() == b"transfer-encoding" and not self.complete:
            raise httptools.HttpParserError("Transfer-Encoding in a trailer")  # RFC 9110 6.5.1
        # else: another trailer, which h11 drops as well

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        parser = self._parser
        status = parser.get_status_code()
        if (
            status < 200 and status != 101
        ):  # informational, and llhttp would take anything between it and the reply
            self._interim = True
            raise httptools.HttpParserError("an informational reply")
        if self.reason != b"OK" and _BAD_REASON(self.reason):
            raise httptools.HttpParserError("illegal status line")
        version = parser.get_http_version()
        self.status = status
        self.version = _VERSIONS.get(version) or b"HTTP/" + version.encode()
        # h11 does not keep connections of HTTP/1.0 servers either, whatever they say
        self._keeps = version == "1.1" and parser.should_keep_alive()
        for place, (name, value) in enumerate(self.headers):
            if len(name) == 14 and name.lower() == b"content-length":
                if len(value) > _LENGTH_DIGITS:
                    raise httptools.HttpParserError("bad Content-Length")
                self._length = int(value)
            elif len(name) == 17 and name.lower() == b"transfer-encoding":
                if self._chunked or value.lower() != b"chunked":
                    raise httptools.HttpParserError("Only Transfer-Encoding: chunked is supported")
                self._chunked = True
                self.headers[place] = (name, b"chunked")  # h11 shows it so
        if status == 101 and not self._upgrades:
            raise httptools.HttpParserError("Received 101 without a pending proposal")
        if self._chunked:  # as h11: no line of the framing ends in a mere line feed, blanks may follow a size
            parser.set_dangerous_leniencies(
                lenient_optional_cr_before_lf=False, lenient_spaces_after_chunk_size=True
            )
        self.head_done = True
        if status == 101:
            self.upgraded, self.complete, self._keeps = True, True, False
        elif self._bodiless:
            # llhttp does not know of HEAD and would take the next reply for a body: a new parser next time. It says
            # "close" for a missing length, which only counts where there is a body.
            self._keeps = self._keeps or (
                version == "1.1" and self._length is None and not self._says_close()
            )
            self._parser, self.complete = None, True

    def on_body(self, data: bytes) -> None:
        if self.complete:
            self._stray = True
            return
        self._received += len(data)
        self.size += len(data)
        self.parts.append(data)

    def on_message_complete(self) -> None:
        if self.head_done:
            self.complete = True

    def _says_close(self) -> bool:
        return any(
            name.lower() == b"connection" and b"close" in value.lower() for name, value in self.headers
        )
