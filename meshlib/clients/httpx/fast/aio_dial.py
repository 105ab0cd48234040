"""Opening an asyncio connection: TCP, then TLS, each within the connect timeout, as httpcore counts it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

from meshlib.clients.httpx.fast.aio_wire import AioConnection

#: asyncio insists on a bound for the handshake. Where the caller set none, a day is as good as none, and where he did,
#: his own bound comes first.
NO_HANDSHAKE_TIMEOUT = 86400.0


class _Resuming:
    """An SSL context that begins with a session: asyncio wraps its connections through ``wrap_bio`` and has no option
    for it. The session was negotiated, and the peer verified, for this very endpoint and name."""

    def __init__(self, context: ssl.SSLContext, session: Any) -> None:
        self._context, self._session = context, session

    def wrap_bio(self, *arguments: Any, **options: Any) -> Any:
        wrap: Any = self._context.wrap_bio
        return wrap(*arguments, **options, session=self._session)


def resuming(loop: asyncio.AbstractEventLoop, context: ssl.SSLContext, session: Any) -> Any:
    """The context, with the session where the loop is known to take it so."""
    if session is None or not isinstance(loop, asyncio.BaseEventLoop):  # uvloop has a TLS of its own
        return context
    return _Resuming(context, session)


async def dial(
    core: Any,
    make: Callable[[], AioConnection],
    settings: dict[str, Any],
    address: tuple[str, int],
    context: Any,
    tls_name: str,
    timeout: float | None,
) -> AioConnection:
    """``context`` None: no TLS. Raises ConnectTimeout, ConnectError; cancelled, it leaves no socket behind."""
    loop = asyncio.get_running_loop()
    sock: socket.socket | None = None
    connection: AioConnection | None = None

    def hand_over() -> AioConnection:
        # From here on the socket is the transport's. Closing it under a transport that still speaks (TLS says goodbye)
        # would let the next connection have the same descriptor, and the loop refuses that one.
        nonlocal sock, connection
        sock, connection = None, make()
        return connection

    try:
        sock = opened = _tcp_socket(address[0], settings["local_address"], settings["socket_options"])
        async with asyncio.timeout(timeout):
            await _connect(loop, opened, address)
        options: dict[str, Any] = {}
        if context is not None:
            options = {
                "ssl": context,
                "server_hostname": tls_name,
                "ssl_handshake_timeout": NO_HANDSHAKE_TIMEOUT,
            }
        async with asyncio.timeout(timeout):
            _, made = await loop.create_connection(hand_over, sock=opened, **options)
        return made
    except BaseException as error:
        if connection is not None:
            connection.close()
        if sock is not None:
            sock.close()
        if isinstance(error, TimeoutError):
            raise core.ConnectTimeout(error) from error
        if isinstance(error, OSError):
            raise core.ConnectError(error) from error
        raise


async def _connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: tuple[str, int]) -> None:
    """``loop.sock_connect``. uvloop's would look the address up in a thread of its pool, numeric as it is: twice the
    time, and a forked child of a process that has that pool crashes in libuv when it exits."""
    if isinstance(loop, asyncio.BaseEventLoop):
        await loop.sock_connect(sock, address)
        return
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        await _writable(loop, sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    seen: asyncio.Future[None] = loop.create_future()

    def see() -> None:
        if not seen.done():
            seen.set_result(None)

    loop.add_writer(sock, see)
    try:
        await seen
    finally:
        loop.remove_writer(sock)


def _tcp_socket(address: str, local_address: str | None, options: Any) -> socket.socket:
    """A non-blocking socket of the address's family, bound and with its options, not connected."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if local_address is not None:
            sock.bind((local_address, 0))
        for option in options or ():
            sock.setsockopt(*option)
    except BaseException:
        sock.close()
        raise
    return sock
