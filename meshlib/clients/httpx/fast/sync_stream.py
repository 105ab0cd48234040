"""What an application gets of a sync connection: for looking at it, and to speak another protocol after a 101."""

from __future__ import annotations

import ssl
from typing import Any

from meshlib.clients.httpx.fast.sync_dial import wrap_tls
from meshlib.clients.httpx.fast.sync_wire import SyncConnection, is_readable


class SyncStream:
    """``extensions["network_stream"]``: httpcore's interface to the connection, for looking and after an upgrade."""

    __slots__ = ("_connection", "_leftover", "_tls")

    def __init__(self, connection: SyncConnection, leftover: bytes) -> None:
        self._connection = connection
        self._leftover = leftover
        self._tls: Any = None  #: httpcore's stream, after start_tls

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._leftover:
            data, self._leftover = self._leftover[:max_bytes], self._leftover[max_bytes:]
            return data
        return self._connection.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            self._connection.write(buffer, timeout)

    def close(self) -> None:
        self._connection.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> SyncStream:
        """The same stream, encrypted from now on."""
        connection = self._connection
        connection.sock = wrap_tls(
            connection._core, connection.sock, ssl_context, server_hostname, timeout, None
        )
        connection.forget_timeout()
        return self

    def get_extra_info(self, info: str) -> Any:
        sock = self._connection.sock
        if info == "server_addr":
            return sock.getpeername()
        if info == "client_addr":
            return sock.getsockname()
        if info == "socket":
            return sock
        if info == "ssl_object":
            return sock._sslobj if isinstance(sock, ssl.SSLSocket) else None  # type: ignore[attr-defined]
        return is_readable(sock) if info == "is_readable" else None
