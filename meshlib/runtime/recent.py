"""RecentEvents: the last things that happened in this process, in words, for status pages."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from meshlib.model.events import (
    EndpointsChanged,
    EntrySkipped,
    Event,
    FallbackEnded,
    FellBack,
    SourceFailed,
    SourceRecovered,
    WatchRestarted,
)
from meshlib.observe.log import clean
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.observing import subscribe
from meshlib.runtime.process import rebuild_after_fork

#: Different events that are kept: what fits below a table on one screen.
KEPT = 20


class RecentEvent(msgspec.Struct, frozen=True):
    """``at``: Unix seconds of the last time; ``times``: how often the same was said while it was kept."""

    at: float
    kind: str
    text: str
    times: int


class RecentEvents:
    """An event sink, safe from any thread. The same words again count up instead of pushing others out.

    Keeps texts, not events: those of a large Service hold thousands of endpoints.
    """

    def __init__(self, wall: Callable[[], float] = SYSTEM.wall) -> None:
        self._wall = wall
        self.after_fork()
        rebuild_after_fork(self)

    def after_fork(self) -> None:
        """In a forked child: what happened in the parent did not happen here."""
        self._lock = threading.Lock()
        self._events: dict[str, RecentEvent] = {}

    def __call__(self, event: Event) -> None:
        text = _words(event)
        with self._lock:
            before = self._events.pop(text, None)
            if len(self._events) >= KEPT:
                del self._events[next(iter(self._events))]
            times = before.times + 1 if before is not None else 1
            self._events[text] = RecentEvent(self._wall(), type(event).__name__, text, times)

    def snapshot(self) -> tuple[RecentEvent, ...]:
        """Oldest first."""
        with self._lock:
            return tuple(self._events.values())


def _words(event: Event) -> str:
    match event:
        case EndpointsChanged():
            why = f": {event.reason}" if event.reason else ""
            change = f"+{len(event.added)} -{len(event.removed)}"
            text = f"{event.target}: {event.total} endpoints ({change}) from {event.source}{why}"
        case FellBack():
            text = f"{event.target}: calls go to {event.path}: {event.reason}"
        case FallbackEnded():
            text = f"{event.target}: calls are balanced again"
        case SourceFailed():
            text = f"{event.source}: {str(event.error).partition(chr(10))[0] or repr(event.error)}"
        case SourceRecovered():
            text = f"{event.source}: answers again"
        case EntrySkipped():
            text = f"{event.source}: skipped {event.where}: {event.reason}"
        case WatchRestarted():
            text = f"{event.source}: {'listed again' if event.relist else 'watch reopened'}: {event.reason}"
        case _:
            text = repr(event)
    return clean(text)


RECENT = RecentEvents()
subscribe(RECENT)
