"""What an application gets of an asyncio connection: for looking at it, and to speak another protocol after a 101."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from meshlib.clients.httpx.fast.aio_wire import AioConnection


class AioStream:
    """``extensions["network_stream"]``: httpcore's interface to the connection, for looking and after an upgrade."""

    __slots__ = ("_connection",)

    def __init__(self, connection: AioConnection) -> None:
        self._connection = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._connection.receive_raw(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        connection = self._connection
        if buffer:
            if not connection.lost:
                connection.transport.write(buffer)
                await connection.drain(timeout)
            if connection.lost:
                raise connection._core.WriteError("the connection is closed")

    async def aclose(self) -> None:
        self._connection.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AioStream:
        """The same stream, encrypted from now on. Raises ConnectError, ConnectTimeout."""
        connection, core = self._connection, self._connection._core
        try:
            async with asyncio.timeout(timeout):
                connection.transport = await connection._loop.start_tls(
                    connection.transport, connection, ssl_context, server_hostname=server_hostname
                )
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                raise core.ConnectTimeout(error) from error
            if isinstance(error, OSError):
                raise core.ConnectError(error) from error
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        transport = self._connection.transport
        if info == "server_addr":
            return transport.get_extra_info("peername")
        if info == "client_addr":
            return transport.get_extra_info("sockname")
        if info in ("ssl_object", "socket"):
            return transport.get_extra_info(info)
        return self._connection.is_dead() if info == "is_readable" else None
