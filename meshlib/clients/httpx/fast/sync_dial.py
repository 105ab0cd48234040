"""Opening a sync connection: TCP, then TLS, each within the connect timeout, as httpcore counts it."""

from __future__ import annotations

import socket
import ssl
from typing import Any


def dial(
    core: Any, host: str, port: int, local_address: str | None, options: Any, timeout: float | None
) -> socket.socket:
    """Open a TCP connection. Raises ConnectTimeout, ConnectError."""
    try:
        source = None if local_address is None else (local_address, 0)
        sock = socket.create_connection((host, port), timeout, source_address=source)
        try:
            for option in options or ():
                sock.setsockopt(*option)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
    except TimeoutError as error:
        raise core.ConnectTimeout(error) from error
    except OSError as error:
        raise core.ConnectError(error) from error
    return sock


def wrap_tls(
    core: Any,
    sock: socket.socket,
    context: ssl.SSLContext,
    name: str | None,
    timeout: float | None,
    session: Any,
) -> ssl.SSLSocket:
    """The handshake; closes the socket when it fails. Raises ConnectTimeout, ConnectError."""
    try:
        sock.settimeout(timeout)
        return context.wrap_socket(sock, server_hostname=name, session=session)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise core.ConnectTimeout(error) from error
        if isinstance(error, OSError):
            raise core.ConnectError(error) from error
        raise
