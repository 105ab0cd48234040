"""The two drivers of ``warming``: timers and tasks on an asyncio loop; the process's background thread for threads.

Both hold their engine weakly: a client that is dropped takes what is planned with it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from meshlib.clients.httpx.warming import Plan, wanted
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.chores import CHORES
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.primitives import new_lock

#: What connections belong to: an endpoint and a TLS name.
Key = tuple[Subchannel, str]
#: Peers' connections in recent use, by TLS name.
Carried = Mapping[str, Sequence[int]]


def _plan(
    plan: Plan[Key], joiners: Sequence[Subchannel], carried: Carried, members: int
) -> list[tuple[float, Key]]:
    found: list[tuple[float, Key]] = []
    for name, counts in carried.items():
        if each := wanted(counts, members):
            found += plan.joined([(joiner, name) for joiner in joiners], each)
    return found


def _left(plan: Plan[Key], subchannel: Subchannel) -> None:
    for key in plan.joiners():
        if key[0] is subchannel:
            plan.left(key)


class SyncWarmer:
    """Any thread. ``open_ahead`` is a bound method of the engine: (endpoint and name, how many it should have)."""

    def __init__(
        self,
        open_ahead: Callable[[Key, int], bool],
        later: Callable[[float, Callable[[], None]], object] = CHORES.later,
        random: Callable[[], float] = SYSTEM.random,
    ) -> None:
        self._open_ahead = weakref.WeakMethod(open_ahead)
        self._later = later
        self._plan: Plan[Key] = Plan(random)
        self._lock = new_lock()

    def joined(self, joiners: Sequence[Subchannel], carried: Carried, members: int) -> None:
        with self._lock:
            planned = _plan(self._plan, joiners, carried, members)
        me = weakref.ref(self)
        for delay, key in planned:
            self._later(delay, partial(_due, me, key))

    def left(self, subchannel: Subchannel) -> None:
        with self._lock:
            _left(self._plan, subchannel)

    def stop(self) -> None:
        with self._lock:
            self._plan.stop()

    def due(self, key: Key) -> None:
        """In the background thread: opens, one after the other, what is to be opened now."""
        with self._lock:
            keys = self._plan.due(key)
        while keys:
            key = keys.pop()
            opened = False
            try:
                open_ahead = self._open_ahead()
                with self._lock:
                    want = self._plan.want(key)
                opened = open_ahead is not None and open_ahead(key, want)
            finally:
                with self._lock:
                    keys += self._plan.ended(key, opened)


def _due(warmer: weakref.ref[SyncWarmer], key: Key) -> None:
    alive = warmer()
    if alive is not None:
        alive.due(key)


class AioWarmer:
    """On its loop only. ``open_ahead`` as in SyncWarmer, a coroutine."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        open_ahead: Callable[[Key, int], Coroutine[Any, Any, bool]],
        random: Callable[[], float] = SYSTEM.random,
    ) -> None:
        self._loop = loop
        self._open_ahead = weakref.WeakMethod(open_ahead)
        self._plan: Plan[Key] = Plan(random)
        self._timers: dict[asyncio.TimerHandle, None] = {}
        self._tasks: set[asyncio.Task[bool]] = set()

    def joined(self, joiners: Sequence[Subchannel], carried: Carried, members: int) -> None:
        self._timers = {timer: None for timer in self._timers if timer.when() > self._loop.time()}
        for delay, key in _plan(self._plan, joiners, carried, members):
            self._timers[self._loop.call_later(delay, self._due, key)] = None

    def left(self, subchannel: Subchannel) -> None:
        _left(self._plan, subchannel)

    def stop(self) -> None:
        """What is under way is cancelled."""
        self._plan.stop()
        for timer in self._timers:
            timer.cancel()
        self._timers = {}
        for task in self._tasks:
            task.cancel()

    def _due(self, key: Key) -> None:
        self._open(self._plan.due(key))

    def _open(self, keys: Iterable[Key]) -> None:
        for key in keys:
            open_ahead = self._open_ahead()
            if open_ahead is None:
                return
            task = self._loop.create_task(open_ahead(key, self._plan.want(key)), name="meshlib-warm")
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, key))

    def _ended(self, key: Key, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        self._open(self._plan.ended(key, not task.cancelled() and task.exception() is None and task.result()))
        if not task.cancelled():
            task.result()  # what nobody expected goes to the loop's exception handler
