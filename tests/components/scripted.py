"""A server that answers with exactly the bytes a test gives it, and keeps what it was sent."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from types import TracebackType

#: What a script may hold besides bytes.
CLOSE, RESET = "close", "reset"
_WAIT = 10.0


class ScriptedServer:
    """Each connection plays ``script``: for every request that has come in whole, the next entry is sent.

    An entry is a sequence of pieces, each sent on its own: bytes, CLOSE (an orderly end) or RESET. The last entry
    serves all further requests. ``early``: answer to the head, without waiting for the body.
    """

    def __init__(
        self, script: Sequence[Sequence[bytes | str]], *, early: bool = False, host: str = "127.0.0.1"
    ) -> None:
        self._script, self._early = script, early
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_WAIT)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        turn, data = 0, b""
        with connection:
            try:
                while True:
                    head, data = self._head(connection, data)
                    if not head:
                        return
                    self.heads.append(head)
                    if not self._early:
                        body, data = self._body(connection, head.lower(), data)
                        self.bodies.append(body)
                    for piece in self._script[min(turn, len(self._script) - 1)]:
                        if piece == CLOSE:
                            connection.shutdown(socket.SHUT_RDWR)
                            return
                        if piece == RESET:
                            linger = b"\x01\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds
                            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                            return
                        assert isinstance(piece, bytes)
                        connection.sendall(piece)
                    turn += 1
            except OSError:
                return

    def _head(self, connection: socket.socket, data: bytes) -> tuple[bytes, bytes]:
        while b"\r\n\r\n" not in data:
            got = connection.recv(65536)
            if not got:
                return b"", b""
            data += got
        head, _, rest = data.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n", rest

    def _body(self, connection: socket.socket, head: bytes, data: bytes) -> tuple[bytes, bytes]:
        """The body as it came over the wire, chunks and all."""
        if b"\r\ntransfer-encoding:" in head:
            while not data.endswith(b"0\r\n\r\n"):
                data += self._more(connection)
            return data, b""
        _, found, rest = head.partition(b"\r\ncontent-length:")
        length = int(rest.partition(b"\r\n")[0]) if found else 0
        while len(data) < length:
            data += self._more(connection)
        return data[:length], data[length:]

    def _more(self, connection: socket.socket) -> bytes:
        got = connection.recv(65536)
        if not got:
            raise ConnectionError
        return got
