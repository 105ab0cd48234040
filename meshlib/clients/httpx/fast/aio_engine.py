"""The fast engine of one asyncio loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from meshlib.clients.httpx import wire
from meshlib.clients.httpx.allowance import Allowance
from meshlib.clients.httpx.attempt import Dial, Exchange
from meshlib.clients.httpx.fast.aio_dial import dial, resuming
from meshlib.clients.httpx.fast.aio_stream import AioStream
from meshlib.clients.httpx.fast.aio_wire import AioConnection
from meshlib.clients.httpx.fast.bodies import AioBody
from meshlib.clients.httpx.fast.choice import Choice
from meshlib.clients.httpx.fast.free_list import OPEN, FreeList
from meshlib.clients.httpx.fast.request import request_head
from meshlib.clients.httpx.fast.response import Response
from meshlib.clients.httpx.fast.sessions import Session, new_check, usable
from meshlib.clients.httpx.fast.slots import Slots
from meshlib.clients.httpx.fast.warmers import AioWarmer, Key
from meshlib.clients.httpx.outgoing import Outgoing
from meshlib.clients.httpx.sweeping import AioSweeper
from meshlib.clients.httpx.warming import MANY, RECENT, TIMEOUT
from meshlib.model.endpoint import Endpoint
from meshlib.pickers.subchannel import Subchannel


class _Waiter:
    """A task in the queue for a connection."""

    __slots__ = ("future", "granted")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()
        self.granted: Any = None

    def grant(self, what: Any) -> None:
        self.granted = what
        if not self.future.done():
            self.future.set_result(None)


def _abort(slots: Slots) -> None:
    for slot in slots.forget_all():
        for connection in (*slot.idle, *slot.busy):
            connection.close()


class AioFastEngine:
    """An Engine (see ``wire``). Used on its loop only, except where a method says otherwise."""

    def __init__(
        self,
        core: Any,
        original: Any,
        now: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        allowance: Allowance,
    ) -> None:
        self._core = core
        self._settings = wire.pool_settings(original)
        self._choice = Choice(core, self._settings)
        self._sweeper = AioSweeper(loop, self.sweep, allowance, self._settings["keepalive_expiry"])
        self._other = wire.AsyncEngine(core, original, loop, allowance, self._evict, self._sweeper)
        self.allowance = allowance
        self._now = now
        self.loop = loop
        # one thread, and nothing is awaited between a look and a change, so locks would guard nothing
        self._slots = Slots(self._settings, now, nullcontext)
        #: Bodies that were thrown away unfinished: their connections must close.
        self.unread: deque[Any] = deque()
        self._warmer = AioWarmer(loop, self.open_ahead)
        self._inherited = False  #: by a fork: the connections, and the loop's epoll, are the parent's too

    def __del__(self) -> None:
        """Dropped without close: the loop still holds the connections. In any thread, in the middle of anything."""
        if not self._inherited and self._slots.count():
            wire.on_loop(self.loop, _abort, self._slots)

    def pool_count(self) -> int:
        return self._slots.count() + self._other.pool_count()

    def in_use(self) -> int:
        """Requests that have a connection, or wait for one."""
        return self._slots.in_use() + self._other.in_use()

    async def send(self, step: Dial, out: Outgoing, exchange: Exchange) -> Any:
        if not self._choice.is_fast(out.method, out.secure, out.extensions):
            return await self._other.send(step, out, exchange)
        error = self._core.LocalProtocolError
        head = request_head(out.method, out.url.target, out.headers, error)
        timeouts = out.timeouts
        slot = self._slots.find(step.lease.subchannel, out.tls_name, step.keep)
        if step.fresh:
            self._dispose(slot.take_idle())
        connection = self._take(slot)
        if connection is None:
            connection = await self._wait(slot, timeouts.get("pool"))
        exchange.lease, exchange.reused = step.lease, connection is not OPEN
        if connection is OPEN:
            connection = await self._open(slot, step, out)
            step.lease.connected()
        try:
            reply = connection.reply
            reply.begin(out.method, head.upgrades)
            connection.serving = True
            sent = await connection.send_request(
                head, out.body, exchange.body.replayable, timeouts.get("write")
            )
            timeout = timeouts.get("read")
            while not reply.head_done:
                await connection.receive(timeout)
        except BaseException:
            self._lose(connection)
            raise
        if head.closes or not sent:
            reply.spoil()
        return Response(reply, AioBody(self, connection, timeout), AioStream(connection))

    def ended(self, connection: AioConnection) -> None:
        """The request on the connection is over, whichever way."""
        if self._inherited:
            return
        if connection.lost or not connection.reply.reusable:
            self._lose(connection)
            return
        connection.rest()
        slot: FreeList = connection.slot
        if slot.session is None and connection.check is not None and self._now() < connection.check.until:
            ticket = connection.transport.get_extra_info("ssl_object").session
            slot.session = Session(ticket, connection.check)
        if connection not in slot.busy:  # the client was closed meanwhile
            return
        if not self._slots.rest(connection, slot):
            self._dispose([connection])

    def lost(self, connection: AioConnection) -> None:
        """An idle connection ended by itself."""
        self._lose(connection)

    def tidy(self) -> None:
        """As in SyncFastEngine."""
        while self.unread:
            body = self.unread.popleft()
            if isinstance(body, AioBody):
                body.close()
            else:
                self._other.unread.append(body)
        self._other.tidy()

    def sweep(self) -> Iterator[None]:
        """As in SyncFastEngine."""
        self.tidy()
        for expired in self._slots.expired():
            self._dispose(expired)
            yield
        yield from self._other.sweep()

    def reclaim(self, body: Any) -> None:
        if isinstance(body, AioBody):
            body.close()
        else:
            self._other.reclaim(body)

    def retire(self, subchannel: Subchannel) -> None:
        """From any thread."""
        self._on_loop(self._retire, subchannel)
        self._other.retire(subchannel)

    def drain(self) -> None:
        """Retire all endpoints: requests in flight finish. From any thread."""
        self._on_loop(self._drain_all)
        self._other.drain()

    def close_elsewhere(self) -> None:
        """Close from another thread or loop; nothing is awaited."""
        self._on_loop(self._close_all)
        self._other.close_elsewhere()

    async def close(self) -> None:
        """Close all connections, those of requests in flight too (as httpcore's pool does). On the loop."""
        self._close_all()
        await asyncio.sleep(0)  # the transports tell their protocols in the next turn
        await self._other.close()

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        wire.on_loop(self.loop, function, *arguments)

    def _retire(self, subchannel: Subchannel) -> None:
        self._warmer.left(subchannel)
        self._drain(self._slots.forget(subchannel))

    def _drain_all(self) -> None:
        self._warmer.stop()
        self._drain(self._slots.forget_all())

    def _drain(self, slots: list[FreeList]) -> None:
        for slot in slots:
            slot.keep = 0
            self._dispose(slot.take_idle())

    def _close_all(self) -> None:
        self._warmer.stop()
        for slot in self._slots.forget_all():
            slot.keep = 0
            self._dispose(slot.take_idle())
            for connection in list(slot.busy):
                self._lose(connection)

    def _take(self, slot: FreeList) -> Any:
        """An idle connection that is alive, OPEN, or None: all are busy."""
        now = self._now()
        while True:
            got = slot.take()
            if got is None or got is OPEN or (got.expires_at >= now and not got.is_dead()):
                return got
            self._lose(got)

    async def _wait(self, slot: FreeList, timeout: float | None) -> Any:
        """In the queue, for a connection or OPEN. Raises PoolTimeout."""
        waiter = _Waiter(self.loop)
        slot.waiting.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter.future
        except BaseException as error:
            slot.leave_queue(waiter)
            if waiter.granted is not None and waiter.granted is not OPEN:
                self._lose(waiter.granted)
            if isinstance(error, TimeoutError):
                words = f"all {slot.limit} connections to this endpoint were busy for {timeout} s"
                raise self._core.PoolTimeout(words) from error
            raise
        granted = waiter.granted
        if granted is OPEN or not granted.is_dead():
            return granted
        self._lose(granted)
        got = self._take(slot)  # its place is free now, unless somebody in the queue was faster
        return got if got is not None else await self._wait(slot, timeout)

    async def _open(self, slot: FreeList, step: Dial, out: Outgoing) -> AioConnection:
        """Open a connection in the place that was taken. Raises ConnectError, ConnectTimeout."""
        counted = False
        try:
            if self.allowance.crowded():
                await self._make_room()
            while not (counted := self.allowance.take()):
                if not await self._make_room():
                    raise self.allowance.exhausted(self._core)
            return await self._dial(slot, step.lease.endpoint, out.tls_name, out.connect_timeout)
        except BaseException:
            self._not_opened(slot, counted)
            raise

    async def _dial(
        self, slot: FreeList, endpoint: Endpoint, tls_name: str, timeout: float | None
    ) -> AioConnection:
        context: Any = None
        session: Session | None = None
        self._sweeper.opening()
        if tls_name:
            context = self._settings["ssl_context"] or self._core.default_ssl_context()
            context.set_alpn_protocols(["http/1.1"])
            session = usable(slot.session, context, self._now())
        connection = await dial(
            self._core,
            lambda: AioConnection(self._core, self.loop, slot, self),
            self._settings,
            (endpoint.address, endpoint.port),
            context and resuming(self.loop, context, session and session.ticket),
            tls_name,
            timeout,
        )
        if tls_name:
            reused = connection.transport.get_extra_info("ssl_object").session_reused
            if session is not None and reused:
                connection.check = session.check
            else:  # as in SyncFastEngine
                slot.session, connection.check = None, new_check(context, self._now())
        slot.opened(connection)
        return connection

    def _not_opened(self, slot: FreeList, counted: bool) -> None:
        slot.freed()
        if counted:
            self.allowance.give_back()

    def joined(self, joiners: Sequence[Subchannel], peers: Sequence[Subchannel], members: int) -> None:
        """As in SyncFastEngine, in tasks of the loop. From any thread."""
        if members <= MANY:
            self._on_loop(self._joined, joiners, peers, members)

    def _joined(self, joiners: Sequence[Subchannel], peers: Sequence[Subchannel], members: int) -> None:
        self._warmer.joined(joiners, self._slots.used_since(self._now() - RECENT, peers), members)

    async def open_ahead(self, key: Key, want: int) -> bool:
        """As in SyncFastEngine."""
        subchannel, tls_name = key
        slot = self._slots.find(subchannel, tls_name, True)
        if self._inherited or not slot.take_ahead(want):
            return False
        counted = self.allowance.take_ahead()
        if not counted:
            self._not_opened(slot, counted)
            return False
        try:
            connection = await self._dial(slot, subchannel.endpoint, tls_name, TIMEOUT)
        except (self._core.ConnectError, self._core.ConnectTimeout):
            self._not_opened(slot, counted)
            return False
        except BaseException:
            self._not_opened(slot, counted)
            raise
        if connection.lost:
            self._lose(connection)
            return False
        kept = self._slots.rest(connection, slot)
        if not kept:
            self._dispose([connection])
        return kept

    async def _make_room(self) -> bool:
        """Close an idle connection, of whichever wire. False: all are busy."""
        return self._evict() or await self._other.evict()

    def _evict(self) -> bool:
        """The same for those of the fast wire."""
        idle = self._slots.evict()
        if idle is not None:
            self._dispose([idle])
        return idle is not None

    def after_fork(self) -> None:
        """In a forked child. Closing a transport there would take the parent's out of the epoll that both share."""
        self._inherited = True
        self._other.after_fork()

    def _lose(self, connection: AioConnection) -> None:
        if not self._inherited and connection.slot.lost(connection):
            self._dispose([connection])

    def _dispose(self, connections: list[Any]) -> None:
        """Close connections that have left their free lists."""
        if connections:
            self.allowance.give_back(len(connections))
            for connection in connections:
                connection.close()
