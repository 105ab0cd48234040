"""Tally: counts of things that happen seldom, by metric and label values."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from meshlib.observe.catalogue import Metric

if TYPE_CHECKING:
    from threading import Lock

#: Additions that are kept before they are counted up, so that nobody's memory grows where nobody reads.
MOST_NEWS = 256


class Tally:
    """Exact from any thread, and from a finalizer that interrupts ``add`` or ``read`` in their own thread.

    Adding takes no lock that anybody waits for: an addition is put down (atomic with and without the GIL), and counted
    up by whoever reads. For failures, connections and changes, not for every request.
    """

    def __init__(self, lock: Lock) -> None:
        self.reset(lock)

    def reset(self, lock: Lock) -> None:
        """Begin at zero: in a forked child, whose inherited counts the parent goes on reporting."""
        self._lock = lock
        self._news: deque[tuple[Metric, tuple[str, ...], int]] = deque()
        self._counts: dict[Metric, dict[tuple[str, ...], int]] = {}

    def add(self, metric: Metric, *labels: str, amount: int = 1) -> None:
        """Count ``amount`` more under these label values, which are in the order of the metric's labels."""
        self._news.append((metric, labels, amount))
        if len(self._news) > MOST_NEWS and self._lock.acquire(blocking=False):
            try:
                self._count_up()
            finally:
                self._lock.release()

    def read(self) -> dict[Metric, dict[tuple[str, ...], int]]:
        """A copy; what never happened is absent."""
        with self._lock:
            self._count_up()
            return {metric: dict(counts) for metric, counts in self._counts.items()}

    def _count_up(self) -> None:
        while self._news:
            metric, labels, amount = self._news.popleft()  # only with the lock, so nobody else takes it
            counts = self._counts.setdefault(metric, {})
            counts[labels] = counts.get(labels, 0) + amount
