"""Room: how many flows there may be at once, by the descriptors that they take. Belongs to one loop."""

from __future__ import annotations

from collections.abc import Callable

#: Descriptors that are left for the rest of the process: sources, pages, files.
RESERVED = 256


def room_for(descriptors: int) -> int:
    """How many may be used, of so many as the process may have; at least a few."""
    return max(64, descriptors - RESERVED)


class Room:
    """Counts. Whoever found no room may ask to be told when there is some again."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._waiting: list[Callable[[], None]] = []

    def take(self, count: int) -> bool:
        """Whether there was room."""
        if self.taken + count > self.most:
            return False
        self.taken += count
        return True

    def give(self, count: int) -> None:
        """Done with it; those who wait are told, in the order in which they came."""
        self.taken -= count
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell()

    def wait(self, tell: Callable[[], None]) -> None:
        """Call once, when somebody has given."""
        self._waiting.append(tell)
