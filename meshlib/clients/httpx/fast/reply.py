"""Bytes in, a reply out: head, body parts, end, and whether the connection can serve another request. No IO.

httptools (llhttp) parses. Where it is stricter than h11, which the bare library uses (a folded header, the same
Content-Length twice), ``second`` reads the reply with h11 instead, so that nothing which works without meshlib stops
working; such a connection is not used again. Messages of errors are h11's.
"""

from __future__ import annotations

from typing import Any

import httptools

from meshlib.clients.httpx.fast.second import SecondReader

#: httpcore's bound on a head (MAX_INCOMPLETE_EVENT_SIZE), bytes: a server must not fill our memory with headers.
MAX_HEAD = 100 * 1024
_VERSIONS = {"1.1": b"HTTP/1.1", "1.0": b"HTTP/1.0"}


class ReplyParser:
    """The replies of one connection, one after the other. Not thread-safe: whoever holds the connection uses it."""

    __slots__ = (
        "_bodiless",
        "_error",
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
        self.parts: list[bytes] = []  #: of the body, not taken yet
        self.begin(b"GET", False)

    def begin(self, method: bytes, upgrades: bool) -> None:
        """A request goes out; what comes from now on answers it. ``upgrades``: it proposes another protocol."""
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
            # h11 takes both, and a reply's end is as certain with them
            self._parser.set_dangerous_leniencies(
                lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
            )
        self._bodiless = method == b"HEAD"
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
            self._raw.append(data)
            self._raw_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.leftover = data[upgrade.args[0] :]
        except httptools.HttpParserError as refused:
            self._refused(refused)
        if self.head_done:
            self._raw = []
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
            raise self._error(str(refused)) from refused
        else:
            self._keeps = False
            self._second = SecondReader(self._bodiless, self._upgrades, self._error)
            self._from_second(b"".join(self._raw))

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

    # called by httptools

    def on_message_begin(self) -> None:
        if self.complete:
            self._stray = True

    def on_status(self, reason: bytes) -> None:
        if not self.complete:
            self.reason += reason  # comes in pieces when the bytes do

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:  # else: a trailer, which h11 drops as well
            self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        parser = self._parser
        status = parser.get_status_code()
        if status < 200 and status != 101:  # informational: the reply itself follows
            self.headers, self.reason = [], b""
            return
        version = parser.get_http_version()
        self.status = status
        self.version = _VERSIONS.get(version) or b"HTTP/" + version.encode()
        # h11 does not keep connections of HTTP/1.0 servers either, whatever they say
        self._keeps = version == "1.1" and parser.should_keep_alive()
        chunked = False
        for place, (name, value) in enumerate(self.headers):
            if len(name) == 14 and name.lower() == b"content-length":
                self._length = int(value)
            elif len(name) == 17 and name.lower() == b"transfer-encoding":
                if chunked or value.lower() != b"chunked":
                    raise httptools.HttpParserError("Only Transfer-Encoding: chunked is supported")
                chunked = True
                self.headers[place] = (name, b"chunked")  # h11 shows it so
        if status == 101 and not self._upgrades:
            raise httptools.HttpParserError("Received 101 without a pending proposal")
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
