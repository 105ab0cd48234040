"""Sweeping: closing connections that were idle for too long, and those of replies that were thrown away.

httpcore looks for them when a request comes, which for a client at rest is never. Here a client that has connections is
swept once per ``keepalive_expiry``, whatever it does meanwhile, so that an idle one closes no later than two of them
after its last use and no request pays for it. Threads' clients are swept in the process's background thread, those of
asyncio by a timer of their loop. Without connections nothing is planned.

Both hold their engine weakly: a client that is dropped ends it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from functools import partial

from meshlib.clients.httpx.allowance import Allowance
from meshlib.clients.httpx.body import settle_abandoned
from meshlib.runtime.chores import CHORES

#: Seconds between two sweeps, however short keepalive_expiry is: less would find more only of what httpcore would not
#: find at all.
PAUSE = 1.0
#: Pools that one turn of an asyncio loop looks at: some 0.1 ms, so that nobody notices thousands of them.
PIECES = 32

#: Does one sweep in pieces: an engine's bound method.
Sweep = Callable[[], Iterator[None]]


def _every(expiry: float | None) -> float | None:
    return None if expiry is None else max(PAUSE, expiry)


class SyncSweeper:
    """``opening`` from any thread. ``expiry``: keepalive_expiry in seconds; None: nothing expires, nothing is done.

    ``allowance``: says whether there are connections, of whichever wire.
    """

    def __init__(
        self,
        sweep: Sweep,
        allowance: Allowance,
        expiry: float | None,
        later: Callable[[float, Callable[[], None]], bool] = CHORES.later,
    ) -> None:
        self._sweep = weakref.WeakMethod(sweep)
        self._allowance = allowance
        self._every = _every(expiry)
        self._later = later
        self._planned: object = None  #: of two that threads plan at the same time, the one that counts

    def opening(self) -> None:
        """A connection is about to be opened, and counted already."""
        if self._planned is not None or self._every is None:
            return
        plan = object()
        kept = False
        try:
            self._planned = plan
            kept = self._later(self._every, partial(_due, weakref.ref(self), plan))
        finally:
            if not kept:  # no thread to be had, or a signal handler raised: the next connection tries again
                self._planned = None

    def due(self, plan: object) -> None:
        """In the background thread."""
        if plan is not self._planned:
            return
        self._planned = None  # whoever opens a connection from here on plans the next sweep
        sweep = self._sweep()
        if sweep is None:
            return
        settle_abandoned()
        try:
            for _ in sweep():
                pass
        finally:
            if self._allowance.used:
                self.opening()


def _due(sweeper: weakref.ref[SyncSweeper], plan: object) -> None:
    alive = sweeper()
    if alive is not None:
        alive.due(plan)


class AioSweeper:
    """On its loop only; the rest as in SyncSweeper."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sweep: Sweep, allowance: Allowance, expiry: float | None
    ) -> None:
        self._loop = loop
        self._sweep = weakref.WeakMethod(sweep)
        self._allowance = allowance
        self._every = _every(expiry)
        self._next: asyncio.Handle | None = None

    def opening(self) -> None:
        """A connection is about to be opened, and counted already."""
        if self._next is None and self._every is not None:
            self._next = self._loop.call_later(self._every, self._due)

    def after_fork(self) -> None:
        """In a forked child, which may go on with the loop: the connections are the parent's."""
        self._every = None

    def _due(self) -> None:
        self._next = None
        sweep = self._sweep()
        if sweep is not None and self._every is not None:
            settle_abandoned()
            self._go(sweep())

    def _go(self, pieces: Iterator[None]) -> None:
        self._next = None
        try:
            for done, _ in enumerate(pieces, 1):
                if done == PIECES:
                    self._next = self._loop.call_soon(self._go, pieces)
                    return
        finally:
            if self._allowance.used:
                self.opening()
