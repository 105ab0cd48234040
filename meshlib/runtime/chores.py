"""Chores: small blocking work of clients, done later in one daemon thread per process.

Not on the control thread, whose loop a connection attempt would stop, and not in its helpers, of which there are few:
unreachable endpoints must not keep discovery from asking. One piece at a time; the thread ends when nothing is left.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

from meshlib.model.events import SourceFailed
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.observing import emit
from meshlib.runtime.process import rebuild_after_fork


class Chores:
    """``later`` may be called from any thread. What is left at interpreter exit, and in a forked child, is not done."""

    def __init__(self, now: Callable[[], float] = SYSTEM.now) -> None:
        self._now = now
        self._order = itertools.count()
        self._reset()
        rebuild_after_fork(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._work: list[tuple[float, int, Callable[[], None]]] = []
        self._runs = False

    def after_fork(self) -> None:
        """In a forked child, which has no other thread."""
        self._reset()

    def later(self, delay: float, work: Callable[[], None]) -> bool:
        """Call ``work`` in ``delay`` seconds or a little later. What it raises is reported, not raised. False: it will
        not be done, there is no thread to be had."""
        with self._changed:
            heapq.heappush(self._work, (self._now() + delay, next(self._order), work))
            self._changed.notify()
            if self._runs:
                return True
            try:
                threading.Thread(target=self._run, name="meshlib-chores", daemon=True).start()
            except RuntimeError:  # as at interpreter exit
                self._work.clear()
                return False
            return True

    def _run(self) -> None:
        with self._changed:
            # Said by the thread itself: whoever starts it may be interrupted (Ctrl-C) and not know whether it did.
            if self._runs:
                return
            self._runs = True
        while True:
            with self._changed:
                while self._work and (left := self._work[0][0] - self._now()) > 0:
                    self._changed.wait(left)
                if not self._work:
                    self._runs = False
                    return
                work = heapq.heappop(self._work)[2]
            try:
                work()
            except Exception as error:
                emit(SourceFailed("work in the background", error, stale=True))
            del work  # it must not keep its client alive until the next one comes


CHORES = Chores()
