"""Observer: the one sink the runtime hands out; counts, logs, and tells the application's callbacks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from meshlib.model.events import Event
from meshlib.observe import event_counts
from meshlib.observe.counters import Counters
from meshlib.observe.hooks import Hooks
from meshlib.observe.log import LogEvents
from meshlib.observe.tally import Tally


class Observer:
    """An ``EventSink``, safe from any thread. ``now``: monotonic seconds; ``new_lock``: the runtime makes locks,
    reentrant ones: a finalizer may emit in the middle of another event."""

    def __init__(
        self, now: Callable[[], float], new_lock: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._new_lock = new_lock
        self.counters = Counters(new_lock())
        self.hooks = Hooks(new_lock(), on_failure=lambda: self.counters.add("subscriber_failed"))
        self.tally = Tally(new_lock())
        self._log = LogEvents(now, new_lock())

    def __call__(self, event: Event) -> None:
        self.counters(event)
        event_counts.count(event, self.tally)
        self._log(event)
        self.hooks(event)

    def after_fork(self) -> None:
        """In the child: new locks (the inherited ones may be held for ever); counters and subscribers stay, metrics
        begin at zero."""
        for part in (self.counters, self.hooks, self._log):
            part.replace_lock(self._new_lock())
        self.tally.reset(self._new_lock())
