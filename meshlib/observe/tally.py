"""Tally: counts of things that happen seldom, by metric and label values."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager

from meshlib.observe.catalogue import Metric

#: Additions that are kept before they are counted up, so that nobody's memory grows where nobody reads.
MOST_NEWS = 256


class Tally:
    """Exact from any thread, and from a finalizer that interrupts ``add`` or ``read`` in their own thread.

    An addition is put down (atomic with and without the GIL), and counted up by whoever reads, now and then by whoever
    adds. For failures, connections and changes, not for every request. ``lock``: a reentrant one, since a finalizer may
    come in the middle; taken by ``with`` alone, since a signal's exception may come right after any other acquire.
    """

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self.reset(lock)

    def reset(self, lock: AbstractContextManager[object]) -> None:
        """Begin at zero: in a forked child, whose inherited counts the parent goes on reporting."""
        self._lock = lock
        self._busy = False  #: somebody has the lock and counts
        self._news: deque[tuple[Metric, tuple[str, ...], int]] = deque()
        self._counts: dict[Metric, dict[tuple[str, ...], int]] = {}

    def add(self, metric: Metric, *labels: str, amount: int = 1) -> None:
        """Count ``amount`` more under these label values, which are in the order of the metric's labels."""
        self._news.append((metric, labels, amount))
        if len(self._news) > MOST_NEWS and not self._busy:
            with self._lock:
                if not self._busy:
                    self._count_up()

    def read(self) -> dict[Metric, dict[tuple[str, ...], int]]:
        """A copy; what never happened is absent."""
        with self._lock:
            within = self._busy  # a finalizer that reads in the middle of another's counting
            if not within:
                self._count_up()
            try:
                self._busy = True
                return {metric: dict(counts) for metric, counts in self._counts.items()}
            finally:
                self._busy = within

    def _count_up(self) -> None:
        try:
            self._busy = True
            while self._news:
                metric, labels, amount = self._news.popleft()  # only with the lock, so nobody else takes it
                counts = self._counts.setdefault(metric, {})
                counts[labels] = counts.get(labels, 0) + amount
        finally:
            self._busy = False
