"""Who gets which connection to one endpoint. Pure bookkeeping: no IO, no clock, no lock; every step is O(1).

Idle connections are used last in, first out: the busiest stays warm, the others grow old and expire. When all are
busy, requests wait in the order they came.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol

from meshlib.clients.httpx.fast.sessions import Session


class Waiter(Protocol):
    """A request in the queue. ``granted``: None while it waits, then a connection or OPEN."""

    granted: Any

    def grant(self, what: Any) -> None: ...


class _Open:
    """The answer "open a connection"; its place is taken already."""

    def __repr__(self) -> str:
        return "OPEN"


OPEN: Final = _Open()


class FreeList:
    """The connections to one endpoint under one TLS name. In a sync engine, hold ``lock`` around every call."""

    __slots__ = ("busy", "idle", "keep", "limit", "listed", "lock", "session", "taken", "waiting")

    def __init__(self, limit: int, keep: int, lock: Any = None) -> None:
        self.limit = limit  #: connections at a time
        self.keep = keep  #: idle ones at most; 0 once the endpoint has left
        self.lock = lock
        self.taken = 0  #: places in use: idle, busy, and being opened
        self.idle: deque[Any] = deque()  #: oldest left
        self.busy: set[Any] = set()
        self.waiting: deque[Waiter] = deque()
        self.listed = False  #: among those that expiry and the total cap look at
        self.session: Session | None = None  #: of TLS; verified for this very endpoint and name

    def take(self) -> Any:
        """A connection, or OPEN, or None: all places are busy."""
        if self.idle:
            connection = self.idle.pop()
            self.busy.add(connection)
            return connection
        if self.taken < self.limit:
            self.taken += 1
            return OPEN
        return None

    def take_ahead(self, want: int) -> bool:
        """A place for a connection that nobody waits for: only for the first ``want``, and while half of the places
        stay free, so that no request ever waits for one."""
        if not self.keep or self.taken >= want or 2 * (self.taken + 1) > self.limit:
            return False
        self.taken += 1
        return True

    def used_since(self, then: float) -> int:
        """Connections that are busy, being opened, or became idle later than ``then``."""
        old = 0
        for connection in self.idle:  # oldest left
            if connection.idle_since > then:
                break
            old += 1
        return self.taken - old

    def opened(self, connection: Any) -> None:
        """What OPEN was answered with."""
        self.busy.add(connection)

    def give_back(self, connection: Any) -> bool:
        """The request ended and the connection is good. True: kept or handed on; False: close it, its place is free."""
        self.busy.discard(connection)
        if self.keep:
            if self.waiting:
                self.busy.add(connection)
                self.waiting.popleft().grant(connection)
                return True
            if len(self.idle) < self.keep:
                self.idle.append(connection)
                return True
        self.freed()
        return False

    def lost(self, connection: Any) -> bool:
        """A connection is closed or about to be. False: it was no longer here."""
        if connection in self.busy:
            self.busy.remove(connection)
        else:
            try:
                self.idle.remove(connection)
            except ValueError:
                return False
        self.freed()
        return True

    def freed(self) -> None:
        """A place is free: the first in the queue may open a connection."""
        self.taken -= 1
        if self.waiting and self.taken < self.limit:
            self.taken += 1
            self.waiting.popleft().grant(OPEN)

    def leave_queue(self, waiter: Waiter) -> None:
        """A request gives up waiting; what it was granted meanwhile goes to the next. Close what ``granted`` says."""
        if waiter.granted is None:
            self.waiting.remove(waiter)
        elif waiter.granted is OPEN:
            self.freed()

    def take_oldest(self) -> Any:
        """An idle connection, to be closed; None: there is none."""
        if not self.idle:
            return None
        connection = self.idle.popleft()
        self.freed()
        return connection

    def take_idle(self) -> list[Any]:
        """All idle connections, to be closed."""
        found = list(self.idle)
        self.idle.clear()
        for _ in found:
            self.freed()
        return found

    def take_expired(self, now: float) -> list[Any]:
        """Idle connections whose time has come, to be closed. They lie in the order in which they became idle."""
        found = []
        while self.idle and self.idle[0].expires_at < now:
            found.append(self.idle.popleft())
            self.freed()
        return found
