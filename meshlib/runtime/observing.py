"""The Observer of this process: the sink that the runtime hands to everybody, and where applications subscribe."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from meshlib.model.events import Event, EventSink
from meshlib.observe import Observer
from meshlib.runtime.clock import SYSTEM

_observer = Observer(SYSTEM.now, threading.RLock)
#: What the clients and the runtime itself count for the metrics: failures, connections. Any thread.
TALLY = _observer.tally
os.register_at_fork(after_in_child=_observer.after_fork)


def emit(event: Event) -> None:
    """Count, log and pass on one event; never raises. Any thread."""
    _observer(event)


def subscribe(callback: EventSink) -> Callable[[], None]:
    """Have ``callback`` called for every event of this process (any Mesh); returns the function that ends it.

    It runs on the thread that emitted, mostly the control thread: it must be quick and must not block. What it raises
    is logged and counted, and disturbs nothing else.
    """
    return _observer.hooks.subscribe(callback)


def counters() -> dict[str, int]:
    """How often each kind of event happened in this process; kinds that never happened are absent."""
    return _observer.counters.snapshot()
