"""The connection engine: one httpcore pool per endpoint and TLS name. Another engine can stand behind `Engine`.

A pool of its own for every endpoint keeps an acquire independent of the number of endpoints (one httpcore pool walks
all its connections for each request), and keeps TLS identities apart: httpcore finds a connection by ip and port
only, so a connection verified for one name must never be in reach of a request for another (decision D2). Hence the
key: the Subchannel (one per target, ip, port and pod uid) and the TLS name.

No locks here: dictionaries are only used through single operations that are atomic with and without the GIL.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from meshlib.clients.httpx.allowance import Allowance
from meshlib.clients.httpx.attempt import Dial, Exchange
from meshlib.clients.httpx.goaway import gone
from meshlib.clients.httpx.held import holding
from meshlib.clients.httpx.noting import AsyncNotingBackend, NotingBackend, connecting_for
from meshlib.clients.httpx.outgoing import Outgoing
from meshlib.clients.httpx.serial import serial_pool
from meshlib.clients.httpx.sweeping import AioSweeper, SyncSweeper
from meshlib.pickers.subchannel import Subchannel


class Engine(Protocol):
    """Sends a request over a connection to one endpoint. ``send`` is a coroutine function in the asyncio engine."""

    def send(self, step: Dial, out: Outgoing, exchange: Exchange) -> Any:
        """The reply's head, its body unread. Sets ``exchange.reused``.

        Raises httpcore's exceptions; ConnectError and ConnectTimeout mean that nothing was sent.
        """
        ...

    def retire(self, subchannel: Subchannel) -> None:
        """The endpoint left: idle connections close now, busy ones when their request ends. From any thread."""
        ...

    def joined(self, joiners: Sequence[Subchannel], peers: Sequence[Subchannel], members: int) -> None:
        """Endpoints joined ``peers``; there are ``members`` now. From any thread."""
        ...

    def pool_count(self) -> int:
        """How many pairs of endpoint and TLS name have a pool."""
        ...

    def in_use(self) -> int:
        """Requests that have a connection, or wait for one."""
        ...

    def after_fork(self) -> None:
        """In a forked child: this engine is the parent's. Takes no lock and closes nothing."""
        ...


def pool_settings(pool: Any) -> dict[str, Any]:
    """The arguments that make another pool like this one. The SSL context is shared: making one costs about 20 ms.

    ``retries`` stays 0: a connection that fails moves on to another endpoint instead.
    """
    return {
        "ssl_context": pool._ssl_context,
        "max_connections": pool._max_connections,
        "max_keepalive_connections": pool._max_keepalive_connections,
        "keepalive_expiry": pool._keepalive_expiry,
        "http1": pool._http1,
        "http2": pool._http2,
        "local_address": pool._local_address,
        "socket_options": pool._socket_options,
        "network_backend": pool._network_backend,
    }


class _Pools:
    """The pools of one engine, by endpoint and TLS name."""

    def __init__(
        self,
        core: Any,
        kind: Callable[..., Any],
        settings: dict[str, Any],
        allowance: Allowance,
    ) -> None:
        self._core = core
        self.allowance = allowance
        self._kind = kind
        self._settings = settings
        self._pools: dict[Subchannel, dict[str, Any]] = {}
        self._to_evict: list[Any] = []
        #: Bodies that were thrown away unfinished: their connections must close.
        self.unread: deque[Any] = deque()

    def joined(self, joiners: Sequence[Subchannel], peers: Sequence[Subchannel], members: int) -> None:
        """Nothing is opened ahead: httpcore opens a connection with the request that needs it."""

    def pool_count(self) -> int:
        return sum(len(pools) for pools in list(self._pools.values()))

    def in_use(self) -> int:
        return sum(len(pool._requests) for pool in self._all())

    def after_fork(self) -> None:
        """In a forked child: another thread of the parent may have held a pool's lock, and a response that the forking
        thread was reading may end here."""
        self.allowance.after_fork()
        for pool in self._all():
            pool._optional_thread_lock = type(pool._optional_thread_lock)()

    def _request(self, step: Dial, out: Outgoing) -> Any:
        endpoint = step.lease.endpoint
        return out.as_core(self._core, endpoint.address, endpoint.port)

    def _pool(self, step: Dial, tls_name: str) -> Any:
        subchannel = step.lease.subchannel
        pools = self._pools.get(subchannel)
        pool = pools.get(tls_name) if pools is not None else None
        if pool is None:
            pool = self._kind(**self._settings)
            if not step.keep or _has_left(subchannel):  # serves this request, keeps nothing
                _keep_nothing(pool)
                return pool
            pool = self._pools.setdefault(subchannel, {}).setdefault(tls_name, pool)
            if _has_left(subchannel):  # left between the two looks, so nobody else will retire it
                self._forget(subchannel)
                _keep_nothing(pool)
        return pool

    def _forget(self, subchannel: Subchannel) -> list[Any]:
        pools = self._pools.pop(subchannel, None)
        return list(pools.values()) if pools else []

    def _all(self) -> list[Any]:
        return [pool for pools in list(self._pools.values()) for pool in list(pools.values())]

    def _idle(self) -> tuple[Any, list[Any]] | None:
        """An endpoint's idle connections, taken out of their pool to make room; None: all are busy.

        Each pool is asked once before the first is asked again, so that it costs no walk over all of them.
        """
        for begin in (False, True):
            if begin:
                self._to_evict = [pool for pool in self._all() if pool._connections]
            while self._to_evict:
                try:
                    pool = self._to_evict.pop()
                except IndexError:  # another thread was faster
                    break
                if pool._connections and (closing := _surplus(pool, keep=0)):
                    return pool, closing
        return None


def _has_left(subchannel: Subchannel) -> bool:
    return subchannel.removed


def _keep_nothing(pool: Any) -> None:
    """From now on every connection of the pool closes when its request ends."""
    with pool._optional_thread_lock:
        pool._max_keepalive_connections = 0


def _surplus(pool: Any, keep: int | None = None) -> list[Any]:
    """Take out of the pool what it would close at its next request: expired, dead, or more than ``keep``."""
    with pool._optional_thread_lock:
        usual = pool._max_keepalive_connections
        if keep is not None:
            pool._max_keepalive_connections = keep
        try:
            closing: list[Any] = pool._assign_requests_to_connections()
        finally:
            pool._max_keepalive_connections = usual
    return closing


def _give_up(body: Any) -> Any:
    """Have the pool forget the request of a body whose close was interrupted. None: it had ended already."""
    pool, request = body._pool, body._pool_request
    with pool._optional_thread_lock:
        if request not in pool._requests:
            return None
        pool._requests.remove(request)
    return pool


def _orphans(pool: Any) -> list[Any]:
    """Take out of the pool connections that are neither idle nor serving anybody.

    httpcore leaves one behind when a request is cancelled between getting its connection and using it; it would hold a
    slot and a socket until the pool is closed. The result also has what the pool itself would close now.
    """
    with pool._optional_thread_lock:
        serving = {id(request.connection) for request in pool._requests}
        orphans = [
            connection
            for connection in pool._connections
            if id(connection) not in serving and not connection.is_idle() and not connection.is_closed()
        ]
        for connection in orphans:
            pool._connections.remove(connection)
        # Their places go to those who wait: nobody else would tell these before the next request comes.
        return orphans + pool._assign_requests_to_connections() if orphans else []


class SyncEngine(_Pools):
    """For threads: one engine per MeshPool, shared by all its threads."""

    def __init__(
        self,
        core: Any,
        original: Any,
        allowance: Allowance,
        evict_more: Callable[[], bool] | None = None,
        sweeper: SyncSweeper | None = None,
    ) -> None:
        """For an engine that has this one inside: ``evict_more``, its bound method that closes an idle connection
        elsewhere, which uses the same allowance, and its ``sweeper``."""
        settings = pool_settings(original)
        settings["network_backend"] = NotingBackend(settings["network_backend"], self)
        kind = serial_pool(core) if settings["http2"] else holding(core.ConnectionPool)
        super().__init__(core, kind, settings, allowance)
        self.sweeper = sweeper or SyncSweeper(self.sweep, allowance, settings["keepalive_expiry"])
        self._evict_more = weakref.WeakMethod(evict_more) if evict_more is not None else None

    def send(self, step: Dial, out: Outgoing, exchange: Exchange) -> Any:
        pool, request = self._pool(step, out.tls_name), self._request(step, out)
        if step.fresh:
            pool._close_connections(_surplus(pool, keep=0))
        if self._settings["http2"]:
            pool._close_connections(gone(pool))
        exchange.reused, exchange.lease = True, step.lease
        token = connecting_for.set(exchange)
        try:
            return pool.handle_request(request)
        except BaseException:
            pool._close_connections(_orphans(pool))
            raise
        finally:
            connecting_for.reset(token)

    def admit(self) -> None:
        """Count in a connection that is about to be opened. Raises ConnectError at the cap, when nothing is idle."""
        if self.allowance.crowded():
            self._make_room()
        while not self.allowance.take():
            if not self._make_room():
                raise self.allowance.exhausted(self._core)

    def _make_room(self) -> bool:
        more = self._evict_more() if self._evict_more is not None else None
        return self.evict() or (more is not None and more())

    def evict(self) -> bool:
        """Close an endpoint's idle connections. False: there are none."""
        found = self._idle()
        if found is not None:
            found[0]._close_connections(found[1])
        return found is not None

    def tidy(self) -> None:
        """Close what replies that were thrown away unread still hold; called once per request."""
        while self.unread:
            try:
                body = self.unread.popleft()
            except IndexError:  # another thread was faster
                break
            body.close()

    def sweep(self) -> Iterator[None]:
        """Close what nobody has used for ``keepalive_expiry``, in bounded pieces."""
        self.tidy()
        for pool in self._all():
            if pool._connections:
                pool._close_connections(_surplus(pool))
                yield

    def reclaim(self, body: Any) -> None:
        pool = _give_up(body)
        if pool is not None:
            pool._close_connections(_orphans(pool))

    def retire(self, subchannel: Subchannel) -> None:
        for pool in self._forget(subchannel):
            self._drain(pool)

    def drain(self) -> None:
        """Retire all endpoints: requests in flight finish."""
        pools, self._pools = self._all(), {}
        for pool in pools:
            self._drain(pool)

    def close(self) -> None:
        """Close all connections, those of requests in flight too (as httpcore's pool does)."""
        pools, self._pools = self._all(), {}
        for pool in pools:
            pool.close()

    def _drain(self, pool: Any) -> None:
        _keep_nothing(pool)
        pool._close_connections(_surplus(pool))


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Call it on the loop soon, from any thread."""
    if loop.is_closed():
        return  # its transports are dead; dropping the references is all that can be done
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        if not loop.is_closed():  # closed between the look and the call: as above
            raise


class AsyncEngine(_Pools):
    """For asyncio: one engine per MeshPool and event loop, used on that loop only (except ``retire``)."""

    def __init__(
        self,
        core: Any,
        original: Any,
        loop: asyncio.AbstractEventLoop,
        allowance: Allowance,
        evict_more: Callable[[], bool] | None = None,
        sweeper: AioSweeper | None = None,
    ) -> None:
        """``evict_more``, ``sweeper``: as in SyncEngine."""
        settings = pool_settings(original)
        settings["network_backend"] = AsyncNotingBackend(settings["network_backend"], self)
        super().__init__(core, holding(core.AsyncConnectionPool), settings, allowance)
        self.sweeper = sweeper or AioSweeper(loop, self.sweep, allowance, settings["keepalive_expiry"])
        self._evict_more = weakref.WeakMethod(evict_more) if evict_more is not None else None
        self.loop = loop
        self._closing: set[asyncio.Task[None]] = set()

    def after_fork(self) -> None:
        super().after_fork()
        self.sweeper.after_fork()

    async def send(self, step: Dial, out: Outgoing, exchange: Exchange) -> Any:
        pool, request = self._pool(step, out.tls_name), self._request(step, out)
        if step.fresh:
            await pool._close_connections(_surplus(pool, keep=0))
        if self._settings["http2"] and (closing := gone(pool)):
            await pool._close_connections(closing)
        exchange.reused, exchange.lease = True, step.lease
        token = connecting_for.set(exchange)
        try:
            return await pool.handle_async_request(request)
        except BaseException:
            if orphans := _orphans(pool):
                self._later(pool._close_connections(orphans))
            raise
        finally:
            connecting_for.reset(token)

    async def admit(self) -> None:
        """As in SyncEngine."""
        if self.allowance.crowded():
            await self._make_room()
        while not self.allowance.take():
            if not await self._make_room():
                raise self.allowance.exhausted(self._core)

    async def _make_room(self) -> bool:
        more = self._evict_more() if self._evict_more is not None else None
        return await self.evict() or (more is not None and more())

    async def evict(self) -> bool:
        """As in SyncEngine; whoever is cancelled here leaves the closing to the loop."""
        found = self._idle()
        if found is not None:
            await asyncio.shield(self._later(found[0]._close_connections(found[1])))
        return found is not None

    def tidy(self) -> None:
        """As in SyncEngine."""
        while self.unread:
            self._later(self.unread.popleft().aclose())

    def sweep(self) -> Iterator[None]:
        """As in SyncEngine."""
        self.tidy()
        for pool in self._all():
            if pool._connections:
                if closing := _surplus(pool):
                    self._later(pool._close_connections(closing))
                yield

    def reclaim(self, body: Any) -> None:
        pool = _give_up(body)
        if pool is not None and (orphans := _orphans(pool)):
            self._later(pool._close_connections(orphans))

    def retire(self, subchannel: Subchannel) -> None:
        self._on_loop(self._retire, subchannel)

    def drain(self) -> None:
        """Retire all endpoints: requests in flight finish. From any thread."""
        self._on_loop(self._drain_all)

    def close_elsewhere(self) -> None:
        """Close from another thread or loop; nothing is awaited."""
        self._on_loop(self._close_all)

    async def close(self) -> None:
        """Close all connections, those of requests in flight too (as httpcore's pool does). On the loop."""
        pools, self._pools = self._all(), {}
        for pool in pools:
            await pool.aclose()
        if self._closing:
            await asyncio.gather(*self._closing)

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        on_loop(self.loop, function, *arguments)

    def _retire(self, subchannel: Subchannel) -> None:
        for pool in self._forget(subchannel):
            self._drain(pool)

    def _drain_all(self) -> None:
        pools, self._pools = self._all(), {}
        for pool in pools:
            self._drain(pool)

    def _close_all(self) -> None:
        pools, self._pools = self._all(), {}
        for pool in pools:
            if pool._connections:
                self._later(pool.aclose())

    def _drain(self, pool: Any) -> None:
        _keep_nothing(pool)
        if closing := _surplus(pool):
            self._later(pool._close_connections(closing))

    def _later(self, closing: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self.loop.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task
