"""Counters: how often each kind of event happened in this process, for ``meshlib doctor`` and status pages."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

from meshlib.model.events import Event

_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")


class Counters:
    """Exact under threads: every change holds the injected lock. Counting is per event, never per request."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._counts: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Count one event under its type's name (``EndpointsChanged`` -> ``endpoints_changed``)."""
        self.add(_WORD_START.sub("_", type(event).__name__).lower())

    def add(self, name: str) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1

    def snapshot(self) -> dict[str, int]:
        """A copy, by name; what never happened is absent."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def replace_lock(self, lock: AbstractContextManager[object]) -> None:
        """For the child of a fork: the inherited lock may be held by a thread that does not exist there."""
        self._lock = lock
