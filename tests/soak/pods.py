"""Pods of a made-up cluster: one HTTP or gRPC server each, on a loopback address of its own. Each can be made to fail.

They answer with what they were asked, so that a caller notices an answer that was meant for somebody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from enum import Enum
from typing import Any

import grpc

METHOD_UNARY = "/soak.Echo/Unary"
METHOD_STREAM = "/soak.Echo/Stream"
STREAM_LENGTH = 5
#: How long a slow pod takes, seconds.
SLOW = 0.05


class Mood(Enum):
    """How a pod answers."""

    WELL = "well"
    SLOW = "slow"
    FAILING = "failing"  #: 503, UNAVAILABLE
    RESETTING = "resetting"  #: the connection ends instead of an answer (HTTP only)


class HttpPod:
    """``GET /x`` is answered with ``x``."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.mood = Mood.WELL
        self.open: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), self.host, self.port)

    async def stop(self) -> None:
        """As a process that is killed."""
        if self._server is not None:
            self._server.close()
        for transport in list(self.open):
            transport.abort()


class _Connection(asyncio.Protocol):
    def __init__(self, pod: HttpPod) -> None:
        self._pod = pod
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pod.open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self._pod.open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            self._data = rest
            said = head.split(b" ", 2)[1].removeprefix(b"/")
            if self._pod.mood is Mood.SLOW:
                asyncio.get_running_loop().call_later(SLOW, self._answer, said)
            else:
                self._answer(said)

    def _answer(self, said: bytes) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return
        if self._pod.mood is Mood.RESETTING:
            self._transport.abort()
            return
        status = b"503 Sick" if self._pod.mood is Mood.FAILING else b"200 OK"
        self._transport.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(said), said))


class GrpcPod:
    """Unary: the request; stream: the request, so many times."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.mood = Mood.WELL
        self._server: Any = None

    async def start(self) -> None:
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "Stream": grpc.unary_stream_rpc_method_handler(self._stream),
        }
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("soak.Echo", handlers),))
        self._server.add_insecure_port(f"{self.host}:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """At once: open calls are cut off."""
        await self._server.stop(None)

    async def _unary(self, request: bytes, context: Any) -> bytes:
        await self._suffer(context)
        return request

    async def _stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        await self._suffer(context)
        for _ in range(STREAM_LENGTH):
            yield request

    async def _suffer(self, context: Any) -> None:
        if self.mood is Mood.SLOW:
            await asyncio.sleep(SLOW)
        elif self.mood is not Mood.WELL:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "sick")
