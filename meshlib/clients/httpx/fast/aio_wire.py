"""One connection of an asyncio client: a Protocol whose bytes go straight into the parser.

Flow control both ways: a request waits while the transport says that its buffer is full, and a reply that nobody
reads stops the transport from reading. Timeouts are one lazy timer per connection, which is moved on instead of being
made and cancelled for each request.
"""

from __future__ import annotations

import asyncio
import select
import weakref
from typing import Any

from meshlib.clients.httpx.fast.reply import ReplyParser
from meshlib.clients.httpx.fast.request import Framing, Head
from meshlib.clients.httpx.fast.sessions import Check

#: Body bytes that may wait for their reader before the transport stops reading: what asyncio reads at a time, so that
#: one piece never exceeds twice this.
READ_HIGH = 256 * 1024
#: As in the sync wire: below this, one piece is cheaper than two.
JOIN_UP_TO = 16 * 1024


class AioConnection(asyncio.Protocol):
    """Used by one task at a time, on its loop only. Raises httpcore's exceptions."""

    __slots__ = (
        "_core",
        "_deadline",
        "_drained",
        "_engine",
        "_error",
        "_loop",
        "_paused_reading",
        "_poller",
        "_raw",
        "_timer",
        "_waiter",
        "check",
        "expires_at",
        "idle_since",
        "lost",
        "reply",
        "serving",
        "slot",
        "transport",
    )

    def __init__(self, core: Any, loop: asyncio.AbstractEventLoop, slot: Any, engine: Any) -> None:
        self._core = core
        self._loop = loop
        self.slot = slot
        self._engine: weakref.ref[Any] = weakref.ref(engine)  # the loop holds us: a dropped client must end
        self.reply = ReplyParser(core.RemoteProtocolError)
        self.transport: Any = None
        self.expires_at = self.idle_since = 0.0
        self.check: Check | None = None  #: of the peer, over TLS
        self.serving = False  #: a request is on it
        self.lost = False  #: closed, by whomever
        self._error: BaseException | None = None  #: to be raised when everything that came was taken
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None  #: set while the transport's buffer is full
        self._paused_reading = False
        self._raw: bytearray | None = None  #: after an upgrade: what came and was not read yet
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._poller: Any = None

    # called by the transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0 and hasattr(select, "poll"):
            self._poller = select.poll()
            self._poller.register(sock.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._raw is not None:
            self._raw += data
            self._hold(len(self._raw))
        elif self._error is not None:
            return
        elif not self.serving:
            self.close()  # nobody asked
            return
        else:
            reply = self.reply
            try:
                reply.feed(data)
            except Exception as error:
                self._error = error
            if not reply.head_done and self._error is None:
                return
            if reply.upgraded:
                self._raw = bytearray(reply.leftover)
            self._hold(reply.size)
        self._wake()

    def eof_received(self) -> bool:
        return False  # the transport closes itself

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._error is None and self._raw is None and self.serving:
            if exc is not None:
                self._error = self._core.ReadError(exc)
                self._error.__cause__ = exc
            else:
                try:
                    self.reply.eof()
                except Exception as error:
                    self._error = error
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._wake()
        if not self.serving and (engine := self._engine()) is not None:
            engine.lost(self)

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # called by the engine

    def is_dead(self) -> bool:
        """Asked while idle: anything to read can only be the end, or what nobody asked for."""
        if self.lost or self.transport.is_closing():
            return True
        return self._poller is not None and bool(self._poller.poll(0))

    async def send_request(self, head: Head, body: Any, joinable: bool, timeout: float | None) -> bool:
        """False: the server stopped listening before the end; it may have answered nevertheless (RFC 9112 9.5).

        ``joinable``: the body is there already, waiting for its parts cannot delay the head.
        """
        if joinable and head.length >= 0:
            whole = b"".join(body)
            if len(whole) == head.length <= JOIN_UP_TO:  # nearly every request: one piece
                return await self._write(head.data + whole, timeout)
            body = (whole,)
        framing = Framing(head.length, self._core.LocalProtocolError)
        pending = head.data
        if not joinable:
            if not await self._write(pending, timeout):
                return False
            pending = b""
            async for part in body:
                if (data := framing.part(part)) and not await self._write(data, timeout):
                    return False
        else:
            for part in body:
                data = framing.part(part)
                if len(data) <= JOIN_UP_TO:
                    pending += data
                else:
                    self.transport.write(pending)
                    pending = b""
                    if not await self._write(data, timeout):
                        return False
        pending += framing.end()
        return not pending or await self._write(pending, timeout)

    async def _write(self, data: bytes, timeout: float | None) -> bool:
        if self.lost:
            return False
        self.transport.write(data)
        if self._drained is not None:
            await self.drain(timeout)
        return not self.lost

    async def drain(self, timeout: float | None) -> None:
        """Wait until the transport takes more. Raises WriteTimeout; a lost connection ends the wait."""
        drained = self._drained
        if drained is None or self.lost:
            return
        try:
            async with asyncio.timeout(timeout):
                await drained
        except TimeoutError as error:
            raise self._core.WriteTimeout(error) from error

    async def receive(self, timeout: float | None) -> None:
        """Wait until more of the reply (once its head is there: anything more) has come; raises what went wrong."""
        if self._error is not None:
            raise self._error
        if self._paused_reading:
            self._resume()
        await self._wait(timeout)
        if not self.reply.head_done:
            self._raise_error()  # else the head, and what came of the body, go first

    def rest(self) -> None:
        """The request is over and the connection is kept: it must notice its end."""
        self.serving = False
        if self._paused_reading:
            self._resume()

    async def receive_raw(self, size: int, timeout: float | None) -> bytes:
        """After an upgrade. Empty: the peer closed."""
        if self._raw is None:
            return b""
        if not self._raw and not self.lost:
            if self._paused_reading:
                self._resume()
            await self._wait(timeout)
        data = bytes(self._raw[:size])
        del self._raw[:size]
        return data

    def close(self) -> None:
        """At once, without the pleasantries of TLS. What was written and is not sent yet is lost.

        Whoever still reads from it gets a ReadError: that the reply has no end is not the server's fault.
        """
        if self.serving and self._error is None and self._raw is None and not self.reply.complete:
            self._error = self._core.ReadError("the connection was closed")
        if self.transport is None or self._loop.is_closed():
            return  # a closed loop takes no orders; the socket closes when it is collected
        self.transport.abort()

    # inside

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    async def _wait(self, timeout: float | None) -> None:
        waiter = self._waiter = self._loop.create_future()
        if timeout is not None:
            self._arm(timeout)
        try:
            await waiter
        except TimeoutError as error:
            raise self._core.ReadTimeout(error) from error
        finally:
            self._waiter = self._deadline = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _arm(self, timeout: float) -> None:
        self._deadline = deadline = self._loop.time() + timeout
        timer = self._timer
        if timer is not None:
            if timer.when() <= deadline:
                return  # it finds the new deadline when it fires
            timer.cancel()
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        if self._loop.time() < deadline:
            self._timer = self._loop.call_at(deadline, self._on_timer)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    def _hold(self, size: int) -> None:
        if size > READ_HIGH and not self._paused_reading and not self.transport.is_closing():
            self.transport.pause_reading()
            self._paused_reading = True

    def _resume(self) -> None:
        self._paused_reading = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def __repr__(self) -> str:
        return f"<AioConnection {self.transport!r}>"
