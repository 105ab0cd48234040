"""One connection of a sync client: a blocking socket, and the bodies that go over it."""

from __future__ import annotations

import select
import socket
import ssl
from typing import Any

from meshlib.clients.httpx.fast.reply import ReplyParser
from meshlib.clients.httpx.fast.request import Framing, Head
from meshlib.clients.httpx.fast.sessions import Check

#: As httpcore reads.
READ_SIZE = 64 * 1024
#: A head and a small body go out in one packet and one system call; copying more than this costs more than the call.
JOIN_UP_TO = 16 * 1024


def is_readable(sock: socket.socket) -> bool:
    """Whether the peer sent something, its end of the connection included. A closed socket counts as readable."""
    number = sock.fileno()
    if number < 0:
        return True
    poll = getattr(select, "poll", None)  # not on Windows, and taken away by some cooperative libraries
    if poll is None:
        return bool(select.select([number], [], [], 0)[0])
    poller = poll()
    poller.register(number, select.POLLIN)
    return bool(poller.poll(0))


class SyncConnection:
    """Used by one thread at a time; ``close`` may come from any. Raises httpcore's exceptions."""

    __slots__ = ("_core", "_error", "_timeout", "check", "expires_at", "idle_since", "reply", "slot", "sock")

    def __init__(self, core: Any, sock: Any, slot: Any) -> None:
        self._core = core
        self.sock = sock  #: a socket or an SSLSocket
        self.check: Check | None = None  #: of the peer, over TLS
        self.slot = slot
        self.reply = ReplyParser(core.RemoteProtocolError)
        self.expires_at = self.idle_since = 0.0
        self._timeout: float | None = -1.0  # not known yet
        self._error: Exception | None = None  #: to be raised when everything that came was taken

    def is_dead(self) -> bool:
        """Asked while idle: anything to read can only be the end, or what nobody asked for, or TLS's own: the tickets
        of a session come after the handshake, and a connection that was opened ahead has read nothing since."""
        if not is_readable(self.sock):
            return False
        if not isinstance(self.sock, ssl.SSLSocket):
            return True
        try:
            self._set_timeout(0)
            self.sock.recv(1)
        except ssl.SSLWantReadError:
            return False
        except OSError:
            pass  # reset: dead as well
        return True

    def write(self, data: bytes, timeout: float | None) -> None:
        """``timeout``: seconds, for each piece that the kernel takes, as httpcore counts it."""
        try:
            self._set_timeout(timeout)
            sent = self.sock.send(data)
            if sent < len(data):
                view = memoryview(data)
                while sent < len(data):
                    sent += self.sock.send(view[sent:])
        except TimeoutError as error:
            raise self._core.WriteTimeout(error) from error
        except OSError as error:
            raise self._core.WriteError(error) from error

    def read(self, size: int, timeout: float | None) -> bytes:
        """Empty: the peer closed."""
        try:
            self._set_timeout(timeout)
            data: bytes = self.sock.recv(size)
            return data
        except TimeoutError as error:
            raise self._core.ReadTimeout(error) from error
        except OSError as error:
            raise self._core.ReadError(error) from error

    def _set_timeout(self, timeout: float | None) -> None:
        if timeout != self._timeout:
            self.sock.settimeout(timeout)
            self._timeout = timeout

    def forget_timeout(self) -> None:
        """Somebody else has used the socket."""
        self._timeout = -1.0

    def send_request(self, head: Head, body: Any, joinable: bool, timeout: float | None) -> bool:
        """False: the server stopped listening before the end; it may have answered nevertheless (RFC 9112 9.5).

        ``joinable``: the body is there already, waiting for its parts cannot delay the head.
        """
        if joinable and head.length >= 0:
            whole = b"".join(body)
            if len(whole) == head.length <= JOIN_UP_TO:  # nearly every request: one piece
                return self._try_write(head.data + whole, timeout)
            body = (whole,)
        framing = Framing(head.length, self._core.LocalProtocolError)
        pending = head.data
        if not joinable and pending:
            if not self._try_write(pending, timeout):
                return False
            pending = b""
        for part in body:
            data = framing.part(part)
            if not data:
                continue
            if pending:
                if len(data) <= JOIN_UP_TO:
                    data, pending = pending + data, b""
                else:
                    if not self._try_write(pending, timeout):
                        return False
                    pending = b""
            if not self._try_write(data, timeout):
                return False
        pending += framing.end()
        return not pending or self._try_write(pending, timeout)

    def _try_write(self, data: bytes, timeout: float | None) -> bool:
        try:
            self.write(data, timeout)
        except self._core.WriteError:
            return False
        return True

    def receive(self, timeout: float | None) -> None:
        """Read once, for the reply."""
        if self._error is not None:
            raise self._error
        data = self.read(READ_SIZE, timeout)
        try:
            if data:
                self.reply.feed(data)
            else:
                self.reply.eof()
        except self._core.RemoteProtocolError as error:
            if not self.reply.head_done:
                raise
            self._error = error  # the head, and what came of the body, go first

    def close(self) -> None:
        self.sock.close()

    def __repr__(self) -> str:
        return f"<SyncConnection {self.sock!r}>"
