"""Hooks: callbacks of the application that are told about events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from meshlib.model.events import Event, EventSink

_log = logging.getLogger("meshlib.observe")


class Hooks:
    """Fans events out to callbacks. Without callbacks an event costs one loop over an empty tuple.

    Callbacks run on the thread that emitted, mostly the control thread: they must be quick and must not block. What
    one raises is logged and counted (``on_failure``) and reaches neither the emitter nor the other callbacks.
    """

    def __init__(
        self, lock: AbstractContextManager[object], on_failure: Callable[[], None] | None = None
    ) -> None:
        self._lock = lock
        self._on_failure = on_failure
        self._callbacks: tuple[EventSink, ...] = ()  # replaced as a whole: emitting needs no lock

    def __call__(self, event: Event) -> None:
        for callback in self._callbacks:
            try:
                callback(event)
            except Exception:  # foreign code must not stop discovery
                _log.exception("a subscriber of meshlib events failed on %s", type(event).__name__)
                if self._on_failure is not None:
                    self._on_failure()

    def subscribe(self, callback: EventSink) -> Callable[[], None]:
        """Call ``callback`` for every later event; any thread. Returns the function that unsubscribes it."""
        with self._lock:
            self._callbacks = (*self._callbacks, callback)
        return lambda: self.unsubscribe(callback)

    def unsubscribe(self, callback: EventSink) -> None:
        """Forget one subscription of ``callback``; unknown ones are ignored. One more event may reach it."""
        with self._lock:
            if callback in self._callbacks:
                at = self._callbacks.index(callback)
                self._callbacks = self._callbacks[:at] + self._callbacks[at + 1 :]

    def replace_lock(self, lock: AbstractContextManager[object]) -> None:
        """For the child of a fork: the inherited lock may be held by a thread that does not exist there."""
        self._lock = lock
