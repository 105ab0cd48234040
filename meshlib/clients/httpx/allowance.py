"""Allowance: how many connections the client may have open in all, whichever wire made them."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from meshlib.observe.catalogue import OPENED, REFUSED
from meshlib.runtime.observing import TALLY
from meshlib.runtime.totals import counts_connections

#: Of the descriptors that the process may have, what one client's connections may take, and beyond which the clients
#: of a process keep no idle ones for each other. The application needs some for itself, and at the cap idle connections
#: make room one by one, while at EMFILE everything else fails too.
SHARE = 0.75
#: Where the limit is not known (no ``resource`` module) or "unlimited": Linux's default hard limit (INR_OPEN_MAX).
DEFAULT_DESCRIPTORS = 4096
#: The configuration's key for the cap.
KEY = "total_connections"


def default_cap() -> int:
    """Connections that one client may have open in all, where nobody said."""
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):
        soft = DEFAULT_DESCRIPTORS
    return max(1, int((soft if soft > 0 else DEFAULT_DESCRIPTORS) * SHARE))  # -1: unlimited


#: Of all engines of the process, by id. Those inherited through a fork count: their descriptors are still open.
_all: dict[int, weakref.ref[Allowance]] = {}
#: What metrics call these connections.
PROTOCOL = "http"


def in_use() -> int:
    """Connections of all clients of the process that are open or being opened."""
    return sum(one.used for ref in list(_all.values()) if (one := ref()) is not None)


counts_connections(PROTOCOL, in_use)


class Allowance:
    """One per engine: per client, and in asyncio per loop of it. Thread-safe if ``lock`` is a lock.

    ``cap``: connections; 0: three quarters of the process's descriptors. ``place``: where the cap was written.
    """

    __slots__ = ("__weakref__", "_lock", "_place", "_share", "cap", "used")

    def __init__(self, lock: AbstractContextManager[object], cap: int = 0, place: str = "") -> None:
        self._lock = lock
        self._place = place if cap else ""
        share = default_cap()
        self.cap = cap or share
        self._share = max(self.cap, share)  # of all clients together, unless this one was told more
        self.used = 0  #: connections open or being opened
        key = id(self)
        _all[key] = weakref.ref(self, lambda _: _all.pop(key, None))

    def take(self) -> bool:
        """A connection is about to be opened. False: the cap is reached, close an idle one first."""
        with self._lock:
            if self.used >= self.cap:
                return False
            TALLY.add(OPENED, PROTOCOL)  # first: a Ctrl-C in there must leave no place taken
            self.used += 1
        return True

    def crowded(self) -> bool:
        """The clients of the process together have their share: close an idle connection for one that is opened, if
        there is any. (Their own caps still hold; the idle ones of another client may be another loop's.)"""
        return in_use() >= self._share

    def take_ahead(self) -> bool:
        """The same as ``take`` for a connection that nobody waits for: only while half of the cap is free."""
        if self.crowded():
            return False
        with self._lock:
            if 2 * (self.used + 1) > self.cap:
                return False
            TALLY.add(OPENED, PROTOCOL)
            self.used += 1
        return True

    def give_back(self, connections: int = 1) -> None:
        """Connections were closed, or not opened after all."""
        with self._lock:
            self.used -= connections

    def after_fork(self) -> None:
        """In a forked child, where it is used no more: the response that the forking thread was reading may still be
        closed, and another thread of the parent may have held the lock."""
        self._lock = nullcontext()

    def exhausted(self, core: Any) -> Exception:
        """httpcore's ConnectError to raise when nothing idle can make room. It blames no endpoint: its cause is what
        the operating system would say a little later."""
        TALLY.add(REFUSED, PROTOCOL)
        why = f"{SHARE:.0%} of its descriptors; {KEY} changes it"
        if self._place:
            why = f"{KEY} = {self.cap}, from {self._place}"
        many = f"this client has {self.used} connections in use, the most that it may have ({why})"
        full = OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}: {many}")
        error: Exception = core.ConnectError(full)
        error.__cause__ = full
        return error


#: Makes the allowance of an engine, given its lock: the cap is read once, when the engine is made.
MakeAllowance = Callable[[AbstractContextManager[object]], Allowance]
