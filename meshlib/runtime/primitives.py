"""Locks, events and helper threads for the client shells, which may not make their own (decision D9)."""

from __future__ import annotations

import threading
from collections.abc import Callable


def new_lock() -> threading.Lock:
    """A plain lock, held for a few assignments at a time."""
    return threading.Lock()


def new_condition() -> threading.Condition:
    """A re-entrant condition for threads that wait for a call's progress."""
    return threading.Condition()


def new_event() -> threading.Event:
    """An event that never resets: closed, cancelled."""
    return threading.Event()


def start_helper(name: str, work: Callable[[], None]) -> None:
    """Run ``work`` in a daemon thread of its own, for waits that the caller must not do itself."""
    threading.Thread(target=work, name=f"meshlib-{name}", daemon=True).start()
