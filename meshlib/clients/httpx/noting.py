"""What is noted about connections that httpcore opens: how many there are, for whose request, and since when."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any

from meshlib.clients.httpx.allowance import Allowance
from meshlib.clients.httpx.attempt import Exchange
from meshlib.clients.httpx.goaway import AsyncHttp2Stream, Http2Stream

#: The request that the current thread or task sends.
connecting_for: ContextVar[Exchange | None] = ContextVar("meshlib_httpx_exchange", default=None)


class NotingBackend:
    """httpcore's network backend, counting connections and noting who opened one and when it was there.

    httpcore connects in the context of the request that needs the connection, so a context variable tells which.
    """

    def __init__(self, inner: Any, engine: Any) -> None:
        self._inner = inner
        self._engine = weakref.ref(
            engine
        )  # it holds us: in a cycle a dropped client's connections would stay

    def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
        exchange = _connecting()
        engine = self._engine()
        if engine is None:  # a pool that outlives its client
            return self._inner.connect_tcp(*arguments, **options)
        engine.admit()
        try:
            engine.sweeper.opening()
            stream = self._inner.connect_tcp(*arguments, **options)
        except BaseException:
            engine.allowance.give_back()
            raise
        return _connected(exchange, _Stream, stream, engine)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class AsyncNotingBackend:
    """The same for asyncio."""

    def __init__(self, inner: Any, engine: Any) -> None:
        self._inner = inner
        self._engine = weakref.ref(engine)

    async def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
        exchange = _connecting()
        engine = self._engine()
        if engine is None:
            return await self._inner.connect_tcp(*arguments, **options)
        await engine.admit()
        try:
            engine.sweeper.opening()
            stream = await self._inner.connect_tcp(*arguments, **options)
        except BaseException:
            engine.allowance.give_back()
            raise
        return _connected(exchange, _AsyncStream, stream, engine)

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class _Stream:
    """httpcore's stream, counted until it is closed. ``exchange``: whose latency sample begins after the handshake."""

    http2: Any = Http2Stream

    def __init__(
        self, stream: Any, allowance: list[Allowance], exchange: Exchange | None, core: Any, only_http2: bool
    ) -> None:
        self._stream = stream
        self._allowance = allowance  #: empty: given back; list.pop is atomic, two threads may close at once
        self._exchange = exchange
        self._core, self._only_http2 = core, only_http2
        self.read, self.write, self.get_extra_info = stream.read, stream.write, stream.get_extra_info

    def close(self) -> None:
        self._give_back()
        self._stream.close()

    def start_tls(self, *arguments: Any, **options: Any) -> Any:
        try:
            stream = self._stream.start_tls(*arguments, **options)
        except BaseException:
            self.close()
            raise
        return self._secured(stream)

    def _secured(self, stream: Any) -> Any:
        if self._exchange is not None:
            _begin_sample(self._exchange)
        made = type(self)(stream, self._allowance, None, self._core, self._only_http2)
        tls = stream.get_extra_info("ssl_object")
        chosen = tls is not None and tls.selected_alpn_protocol() == "h2"  # as httpcore asks
        return self.http2(made, self._core) if chosen or self._only_http2 else made

    def _give_back(self) -> None:
        try:
            allowance = self._allowance.pop()
        except IndexError:
            return
        allowance.give_back()


class _AsyncStream(_Stream):
    """The same for asyncio."""

    http2 = AsyncHttp2Stream

    async def aclose(self) -> None:
        self._give_back()
        await self._stream.aclose()

    async def start_tls(self, *arguments: Any, **options: Any) -> Any:
        try:
            stream = await self._stream.start_tls(*arguments, **options)
        except BaseException:
            await self.aclose()
            raise
        return self._secured(stream)


def _connecting() -> Exchange | None:
    exchange = connecting_for.get()
    if exchange is not None:
        exchange.reused = False
    return exchange


def _connected(exchange: Exchange | None, kind: type[_Stream], stream: Any, engine: Any) -> Any:
    secure = exchange is not None and exchange.secure
    if exchange is not None and not secure:
        _begin_sample(exchange)
    only_http2 = engine._settings["http2"] and not engine._settings["http1"]
    made = kind(stream, [engine.allowance], exchange if secure else None, engine._core, only_http2)
    return kind.http2(made, engine._core) if only_http2 and not secure else made


def _begin_sample(exchange: Exchange) -> None:
    if exchange.lease is not None:
        exchange.lease.connected()
