"""The free lists of one engine: by endpoint and TLS name; which can make room; what has expired.

Dictionaries are only used through single operations that are atomic with and without the GIL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from meshlib.clients.httpx.fast.free_list import FreeList
from meshlib.pickers.subchannel import Subchannel

_NEVER = float("inf")
_NOTHING: Mapping[str, FreeList] = {}


class Slots:
    """Free lists, made on first use."""

    def __init__(
        self,
        settings: dict[str, Any],
        now: Callable[[], float],
        new_lock: Callable[[], Any],
    ) -> None:
        self.limit: int = settings["max_connections"]
        self.keep: int = settings["max_keepalive_connections"]
        self.expiry: float | None = settings["keepalive_expiry"]
        self._now = now
        self._new_lock = new_lock
        self._lists: dict[Subchannel, dict[str, FreeList]] = {}
        self._with_idle: deque[FreeList] = deque()

    def count(self) -> int:
        return sum(len(lists) for lists in list(self._lists.values()))

    def in_use(self) -> int:
        """Requests that have a connection, or wait for one."""
        return sum(
            slot.taken - len(slot.idle) + len(slot.waiting)
            for lists in list(self._lists.values())
            for slot in list(lists.values())
        )

    def find(self, subchannel: Subchannel, tls_name: str, keep: bool) -> FreeList:
        """The list for an endpoint; for one that is used once or has left: a list of its own that keeps nothing."""
        lists = self._lists.get(subchannel)
        slot = lists.get(tls_name) if lists is not None else None
        if slot is None:
            slot = FreeList(self.limit, self.keep, self._new_lock())
            if not keep or _has_left(subchannel):
                slot.keep = 0
                return slot
            slot = self._lists.setdefault(subchannel, {}).setdefault(tls_name, slot)
            if _has_left(subchannel):  # left between the two looks, so nobody else will retire it
                self.forget(subchannel)
                slot.keep = 0
        return slot

    def used_since(self, then: float, peers: Sequence[Subchannel]) -> dict[str, list[int]]:
        """By TLS name, how many connections of each peer recent requests used."""
        found: dict[str, list[int]] = {}
        for peer in peers:
            for name, slot in list(self._lists.get(peer, _NOTHING).items()):
                with slot.lock:
                    used = slot.used_since(then)
                found.setdefault(name, []).append(used)
        return {name: counts + [0] * (len(peers) - len(counts)) for name, counts in found.items()}

    def rest(self, connection: Any, slot: FreeList) -> bool:
        """Put a good connection back (holding the list's lock). False: close it."""
        connection.idle_since = now = self._now()
        connection.expires_at = now + self.expiry if self.expiry is not None else _NEVER
        kept = slot.give_back(connection)
        if kept:
            self.note_idle(slot)
        return kept

    def forget(self, subchannel: Subchannel) -> list[FreeList]:
        """The endpoint left. The caller closes what is idle."""
        lists = self._lists.pop(subchannel, None)
        return list(lists.values()) if lists else []

    def forget_all(self) -> list[FreeList]:
        found = [slot for lists in list(self._lists.values()) for slot in list(lists.values())]
        self._lists = {}
        return found

    def note_idle(self, slot: FreeList) -> None:
        """Call (holding the list's lock) after a connection became idle."""
        if not slot.listed:
            slot.listed = True
            self._with_idle.append(slot)

    def evict(self) -> Any:
        """The oldest idle connection of the first endpoint that has one, to be closed; None: all are busy."""
        for _ in range(len(self._with_idle)):
            slot = self._next_listed()
            if slot is None:
                return None
            with slot.lock:
                connection = slot.take_oldest()
                self._relist(slot)
            if connection is not None:
                return connection
        return None

    def expired(self) -> Iterator[list[Any]]:
        """Idle connections that have expired or are dead, to be closed: those of one list after the other."""
        for _ in range(len(self._with_idle)):
            slot = self._next_listed()
            if slot is None:
                return
            with slot.lock:
                found = slot.take_expired(self._now())
                for connection in [one for one in slot.idle if one.is_dead()]:
                    slot.lost(connection)
                    found.append(connection)
                self._relist(slot)
            yield found

    def _next_listed(self) -> FreeList | None:
        try:
            return self._with_idle.popleft()
        except IndexError:  # another thread was faster
            return None

    def _relist(self, slot: FreeList) -> None:
        slot.listed = bool(slot.idle)
        if slot.listed:
            self._with_idle.append(slot)


def _has_left(subchannel: Subchannel) -> bool:
    return subchannel.removed
