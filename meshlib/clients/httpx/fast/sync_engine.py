"""The fast engine for threads: one per MeshPool, shared by all its threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from meshlib.clients.httpx import wire
from meshlib.clients.httpx.allowance import Allowance
from meshlib.clients.httpx.attempt import Dial, Exchange
from meshlib.clients.httpx.fast.bodies import SyncBody
from meshlib.clients.httpx.fast.choice import Choice
from meshlib.clients.httpx.fast.free_list import OPEN, FreeList
from meshlib.clients.httpx.fast.request import request_head
from meshlib.clients.httpx.fast.response import Response
from meshlib.clients.httpx.fast.sessions import Check, Session, new_check, usable
from meshlib.clients.httpx.fast.slots import Slots
from meshlib.clients.httpx.fast.sync_dial import dial, wrap_tls
from meshlib.clients.httpx.fast.sync_stream import SyncStream
from meshlib.clients.httpx.fast.sync_wire import SyncConnection
from meshlib.clients.httpx.fast.warmers import Key, SyncWarmer
from meshlib.clients.httpx.outgoing import Outgoing
from meshlib.clients.httpx.sweeping import SyncSweeper
from meshlib.clients.httpx.warming import MANY, RECENT, TIMEOUT
from meshlib.model.endpoint import Endpoint
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.primitives import new_lock


class _Waiter:
    """A thread in the queue for a connection. It waits for a lock that it holds already and ``grant`` releases: an
    Event would do the same with several locks, and a signal handler that raises between them breaks it."""

    __slots__ = ("_turn", "granted")

    def __init__(self) -> None:
        self._turn = new_lock()
        self._turn.acquire()
        self.granted: Any = None

    def grant(self, what: Any) -> None:
        self.granted = what
        self._turn.release()

    def wait(self, timeout: float | None) -> bool:
        """Until granted. False: ``timeout`` (seconds) has passed."""
        return self._turn.acquire(timeout=-1 if timeout is None else max(0.0, timeout))


class SyncFastEngine:
    """An Engine (see ``wire``). All methods may be called from any thread."""

    def __init__(self, core: Any, original: Any, now: Callable[[], float], allowance: Allowance) -> None:
        self._core = core
        self._settings = wire.pool_settings(original)
        self._choice = Choice(core, self._settings)
        self._sweeper = SyncSweeper(self.sweep, allowance, self._settings["keepalive_expiry"])
        self._other = wire.SyncEngine(core, original, allowance, self._evict, self._sweeper)
        self.allowance = allowance
        self._now = now
        self._slots = Slots(self._settings, now, new_lock)
        self._context = self._settings["ssl_context"]
        self._warmer = SyncWarmer(self.open_ahead)
        #: Bodies that were thrown away unfinished: their connections must close.
        self.unread: deque[Any] = deque()
        self._inherited = False  #: by a fork: the connections are the parent's

    def pool_count(self) -> int:
        return self._slots.count() + self._other.pool_count()

    def in_use(self) -> int:
        """Requests that have a connection, or wait for one."""
        return self._slots.in_use() + self._other.in_use()

    def send(self, step: Dial, out: Outgoing, exchange: Exchange) -> Any:
        if not self._choice.is_fast(out.method, out.secure, out.extensions):
            return self._other.send(step, out, exchange)
        error = self._core.LocalProtocolError
        head = request_head(out.method, out.url.target, out.headers, error)
        timeouts = out.timeouts
        slot = self._slots.find(step.lease.subchannel, out.tls_name, step.keep)
        if step.fresh:
            with slot.lock:
                stale = slot.take_idle()
            self._dispose(stale)
        connection = self._acquire(slot, timeouts.get("pool"))
        exchange.lease, exchange.reused = step.lease, connection is not None
        if connection is None:
            connection = self._open(slot, step, out)
            step.lease.connected()
        try:
            reply = connection.reply
            reply.begin(out.method, head.upgrades)
            sent = connection.send_request(head, out.body, exchange.body.replayable, timeouts.get("write"))
            timeout = timeouts.get("read")
            while not reply.head_done:
                connection.receive(timeout)
        except BaseException:
            self._lose(connection)
            raise
        if head.closes or not sent:
            reply.spoil()
        return Response(reply, SyncBody(self, connection, timeout), SyncStream(connection, reply.leftover))

    def ended(self, connection: SyncConnection) -> None:
        """The request on the connection is over, whichever way."""
        if self._inherited:
            return
        if not connection.reply.reusable:
            self._lose(connection)
            return
        slot: FreeList = connection.slot
        if slot.session is None and connection.check is not None and self._now() < connection.check.until:
            slot.session = Session(connection.sock.session, connection.check)
        with slot.lock:
            if connection not in slot.busy:  # the client was closed meanwhile
                return
            kept = self._slots.rest(connection, slot)
        if not kept:
            self._dispose([connection])

    def tidy(self) -> None:
        """Close what replies that were thrown away unread still hold; called once per request."""
        while self.unread:
            try:
                body = self.unread.popleft()
            except IndexError:  # another thread was faster
                break
            body.close()
        self._other.tidy()

    def sweep(self) -> Iterator[None]:
        """Close what nobody has used for ``keepalive_expiry``, in bounded pieces."""
        self.tidy()
        for expired in self._slots.expired():
            self._dispose(expired)
            yield
        yield from self._other.sweep()

    def reclaim(self, body: Any) -> None:
        if isinstance(body, SyncBody):
            body.close()
        else:
            self._other.reclaim(body)

    def retire(self, subchannel: Subchannel) -> None:
        self._warmer.left(subchannel)
        self._drain(self._slots.forget(subchannel))
        self._other.retire(subchannel)

    def drain(self) -> None:
        """Retire all endpoints: requests in flight finish."""
        self._warmer.stop()
        self._drain(self._slots.forget_all())
        self._other.drain()

    def close(self) -> None:
        """Close all connections, those of requests in flight too (as httpcore's pool does)."""
        self._warmer.stop()
        for slot in self._slots.forget_all():
            with slot.lock:
                slot.keep = 0
                closing = slot.take_idle()
                busy = list(slot.busy)
                for connection in busy:
                    slot.lost(connection)
            self._dispose(closing + busy)
        self._other.close()

    def _drain(self, slots: list[FreeList]) -> None:
        for slot in slots:
            with slot.lock:
                slot.keep = 0
                closing = slot.take_idle()
            self._dispose(closing)

    def _acquire(self, slot: FreeList, timeout: float | None) -> SyncConnection | None:
        """An idle connection that is alive; None: open one, its place is taken. Raises PoolTimeout."""
        now = self._now()
        waiter: _Waiter | None = None
        while True:
            with slot.lock:
                got = slot.take()
                if got is None:
                    waiter = _Waiter()
                    slot.waiting.append(waiter)
            if waiter is not None:
                got, waiter = self._wait(slot, waiter, timeout), None
            if got is OPEN:
                return None
            connection: SyncConnection = got
            try:
                if connection.expires_at >= now and not connection.is_dead():
                    return connection
            except BaseException:  # a signal handler's
                self._lose(connection)
                raise
            self._lose(connection)

    def _wait(self, slot: FreeList, waiter: _Waiter, timeout: float | None) -> Any:
        try:
            if waiter.wait(timeout):
                return waiter.granted
            raise self._core.PoolTimeout(
                f"all {slot.limit} connections to this endpoint were busy for {timeout} s"
            )
        except BaseException:
            with slot.lock:
                slot.leave_queue(waiter)
            if waiter.granted is not None and waiter.granted is not OPEN:
                self._lose(waiter.granted)
            raise

    def _open(self, slot: FreeList, step: Dial, out: Outgoing) -> SyncConnection:
        """Open a connection in the place that was taken. Raises ConnectError, ConnectTimeout."""
        counted = False
        try:
            if self.allowance.crowded():
                self._make_room()
            while not (counted := self.allowance.take()):
                if not self._make_room():
                    raise self.allowance.exhausted(self._core)
            return self._dial(slot, step.lease.endpoint, out.tls_name, out.connect_timeout)
        except BaseException:
            self._not_opened(slot, counted)
            raise

    def _dial(
        self, slot: FreeList, endpoint: Endpoint, tls_name: str, timeout: float | None
    ) -> SyncConnection:
        settings = self._settings
        self._sweeper.opening()
        sock: Any = dial(
            self._core,
            endpoint.address,
            endpoint.port,
            settings["local_address"],
            settings["socket_options"],
            timeout,
        )
        check: Check | None = None
        if tls_name:
            context = self._context or self._core.default_ssl_context()
            context.set_alpn_protocols(["http/1.1"])
            session = usable(slot.session, context, self._now())
            sock = wrap_tls(self._core, sock, context, tls_name, timeout, session and session.ticket)
            if session is not None and sock.session_reused:
                check = session.check
            else:  # too old, or the server has other keys now: the next one is to be kept
                slot.session, check = None, new_check(context, self._now())
        connection = SyncConnection(self._core, sock, slot)
        connection.check = check
        with slot.lock:
            slot.opened(connection)
        return connection

    def _not_opened(self, slot: FreeList, counted: bool) -> None:
        with slot.lock:
            slot.freed()
        if counted:
            self.allowance.give_back()

    def joined(self, joiners: Sequence[Subchannel], peers: Sequence[Subchannel], members: int) -> None:
        """Endpoints joined: open connections ahead, in the background, as ``warming`` decides."""
        if members <= MANY:
            self._warmer.joined(joiners, self._slots.used_since(self._now() - RECENT, peers), members)

    def open_ahead(self, key: Key, want: int) -> bool:
        """Open an idle connection unless there are ``want`` already. A failure is left to the request that needs one,
        which tries again and reports."""
        subchannel, tls_name = key
        slot = self._slots.find(subchannel, tls_name, True)
        with slot.lock:
            if self._inherited or not slot.take_ahead(want):
                return False
        counted = False
        try:
            counted = self.allowance.take_ahead()
            if not counted:
                self._not_opened(slot, counted)
                return False
            connection = self._dial(slot, subchannel.endpoint, tls_name, TIMEOUT)
        except (self._core.ConnectError, self._core.ConnectTimeout):
            self._not_opened(slot, counted)
            return False
        except BaseException:
            self._not_opened(slot, counted)
            raise
        with slot.lock:
            kept = connection not in slot.busy or self._slots.rest(connection, slot)
        if not kept:
            self._dispose([connection])
        return kept

    def _make_room(self) -> bool:
        """Close an idle connection, of whichever wire. False: all are busy."""
        return self._evict() or self._other.evict()

    def _evict(self) -> bool:
        """The same for those of the fast wire."""
        idle = self._slots.evict()
        if idle is not None:
            self._dispose([idle])
        return idle is not None

    def after_fork(self) -> None:
        """In a forked child, which has only the thread that forked. If that was in the middle of a response, its end
        must neither take a lock that another thread of the parent held, nor close what the parent reads from."""
        self._inherited = True
        self._other.after_fork()

    def _lose(self, connection: SyncConnection) -> None:
        if self._inherited:
            return
        slot: FreeList = connection.slot
        with slot.lock:
            here = slot.lost(connection)
        if here:
            self._dispose([connection])

    def _dispose(self, connections: list[Any]) -> None:
        """Close connections that have left their free lists."""
        if connections:
            self.allowance.give_back(len(connections))
            for connection in connections:
                connection.close()
