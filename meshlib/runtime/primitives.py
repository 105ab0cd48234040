"""Locks, events and helper threads for the client shells, which may not make their own (decision D9)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

#: Locks that the Subchannels of a target share among them. Enough that threads rarely meet on one by chance, few
#: enough to stay in the processor's cache: locks of their own would cost two more misses with 10,000 endpoints.
STRIPES = 64


class StripedLocks:
    """Hands out locks from a fixed set, in turn. For locks that are held for a few assignments and never nested."""

    __slots__ = ("_locks", "_numbers")

    def __init__(self) -> None:
        self._locks = tuple(threading.Lock() for _ in range(STRIPES))
        # Not itertools.cycle: without the GIL one that threads share may read beyond its end. A number that two
        # threads draw at once only makes two Subchannels neighbours.
        self._numbers = itertools.count()

    def __call__(self) -> threading.Lock:
        return self._locks[next(self._numbers) % STRIPES]


def new_lock() -> threading.Lock:
    """A plain lock, held for a few assignments at a time."""
    return threading.Lock()


def new_condition() -> threading.Condition:
    """A re-entrant condition for threads that wait for a call's progress."""
    return threading.Condition()


def new_event() -> threading.Event:
    """An event that never resets: closed, cancelled."""
    return threading.Event()


def start_helper(name: str, work: Callable[[], None]) -> None:
    """Run ``work`` in a daemon thread of its own, for waits that the caller must not do itself."""
    threading.Thread(target=work, name=f"meshlib-{name}", daemon=True).start()
