"""LoopPool: the asyncio channels of one mesh channel in one event loop. grpc.aio channels belong to the loop they were
made in, so each loop has its own.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any

import grpc
from grpc import ChannelConnectivity

from meshlib.clients.grpc.options import endpoint_target
from meshlib.clients.grpc.pool import Bound
from meshlib.clients.grpc.reach import READY
from meshlib.clients.grpc.transport import Transport
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease, ServiceLease
from meshlib.runtime.process import Generation

#: Only the loop's own thread touches what is in here.
_NO_LOCK = nullcontext()


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing left to wait for (``code()`` of a call that has ended); else None."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value
    except (grpc.RpcError, asyncio.CancelledError):
        return None
    coroutine.close()
    return None


class LoopPool:
    """Transports by Subchannel, and each method's callable on them. Used on its loop only."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[str], grpc.aio.Channel],
        core_waits: bool = False,
    ) -> None:
        self.loop = loop
        self.closed = False
        self._connect = connect
        self._core_waits = core_waits
        self._transports: dict[Subchannel, Transport] = {}
        #: No longer for new calls, but still with some; ``close`` ends those, too.
        self._leaving: set[Transport] = set()
        self._bound: dict[Subchannel, dict[object, Bound]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        #: Calls that have no endpoint yet, to be cancelled at close.
        self.waiting: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Calls whose end will be accounted for by a callback of this loop, by the number that the callback knows.
        self._running: dict[int, Any] = {}
        self._numbers = count()
        #: In which process: a forked child may run this loop's callbacks, but the counts are the parent's.
        self.generation = Generation.current

    def bind(self, lease: Lease, method: object, make: Callable[[Any], Any]) -> Bound:
        """``method`` on the lease's endpoint, with the call counted in. UsageError, as in grpc, when closed."""
        if self.closed:
            raise grpc.aio.UsageError("Channel is closed.")
        subchannel = lease.subchannel
        bound = self._bound.get(subchannel, {}).get(method)
        if bound is not None and bound.transport.begin():
            return bound
        transport = self.transport(lease)
        bound = Bound(transport, make(transport.channel))
        if subchannel in self._transports:
            self._bound.setdefault(subchannel, {})[method] = bound
        transport.begin()
        return bound

    def connected(self, subchannel: Subchannel, method: object, make: Callable[[Any], Any]) -> Bound | None:
        """``bind`` for an endpoint that is connected; else None."""
        transport = self._transports.get(subchannel)
        if transport is None or transport.closed or transport.look(False) != READY:
            return None
        methods = self._bound.get(subchannel)
        if methods is None:
            methods = self._bound[subchannel] = {}
        bound = methods.get(method)
        if bound is None:
            bound = methods[method] = Bound(transport, make(transport.channel))
        transport.open.append(None)
        return bound

    def watch(self, attempt: Any, call: Any) -> None:
        """Have ``call.ended()`` called, once, when ``attempt``, a call of grpc.aio, ends; hold ``call`` until then.

        Its callbacks stay with the attempt for good in most versions of grpcio. If they led to ``call``, which leads to
        the attempt, each call would be a cycle, left to the garbage collector; so they only know a number.
        """
        number = next(self._numbers)
        self._running[number] = call
        core = getattr(attempt, "_cython_call", None)
        if core is not None:
            core.add_done_callback(partial(self._ended, number))
        else:  # made by interceptors of the user's, or by a grpcio that we do not know
            attempt.add_done_callback(partial(self._ended, number))

    def _ended(self, number: int, _: Any = None) -> None:
        call = self._running.pop(number, None)
        if call is not None:  # else told before, as of a call that was cancelled; or released with its loop
            call.ended()

    def transport(self, lease: Lease) -> Transport:
        """The endpoint's transport, made when it is first wanted."""
        subchannel = lease.subchannel
        transport = self._transports.get(subchannel)
        if transport is None or transport.closed:
            target = endpoint_target(subchannel.endpoint)
            made = self._connect(target)
            transport = Transport(made, target, subchannel, _NO_LOCK, self._shut, self._core_waits)
            if isinstance(lease, ServiceLease):
                transport.draining = True  # its Subchannel is made for this one try
                self._leaving.add(transport)
            elif not transport.draining:
                self._transports[subchannel] = transport
        return transport

    def drop(self, subchannel: Subchannel) -> None:
        """The endpoint left the set: no new calls; its channel closes when the last one has ended."""
        self._bound.pop(subchannel, None)
        transport = self._transports.pop(subchannel, None)
        if transport is not None:
            self._leaving.add(transport)
            transport.drain()

    def states(self) -> list[ChannelConnectivity]:
        return [transport.channel.get_state() for transport in self._transports.values()]

    @property
    def transports(self) -> list[Transport]:
        return list(self._transports.values())

    async def close(self, grace: float | None) -> None:
        """Close all channels: calls in flight may finish within ``grace`` seconds, then they are cancelled."""
        self.closed = True
        transports, self._transports = self._transports, {}
        self._bound.clear()
        leaving, self._leaving = self._leaving, set()
        closing = [*transports.values(), *leaving]
        channels = [transport.channel for transport in closing if transport.close()]
        waiting = [call for call in self.waiting if not call.done()]
        if grace and waiting:
            await asyncio.wait([asyncio.ensure_future(call.until_ended()) for call in waiting], timeout=grace)
        for call in waiting:
            call.cancel()
        if channels:
            await asyncio.gather(*(channel.close(grace) for channel in channels))
        others = self._closing - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)

    def abandon(self) -> None:
        """The loop was closed without closing the channel: its callbacks will never come, so give the counts back."""
        self.closed = True
        running, self._running = self._running, {}
        for call in [*running.values(), *self.waiting]:
            call.release()

    def close_later(self, grace: float | None) -> None:
        """``close`` in a task of this loop."""
        self._keep(self.loop.create_task(self.close(grace)))

    def forget_method(self, method: object) -> None:
        for methods in self._bound.values():
            methods.pop(method, None)

    def _shut(self, transport: Transport) -> None:
        """Close a drained channel. The task is referenced until done, as asyncio does not."""
        self._leaving.discard(transport)
        self._keep(self.loop.create_task(transport.channel.close(None)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
