"""Cell: the one place where the way of a request and the way of a change meet, and the only place that waits.

The control thread stores a new State with one assignment; callers read one reference and go on without a lock. Those
who find nothing known yet wait here: threads on an event, coroutines on a future of their own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from meshlib.pickers.base import Picker


@dataclass(frozen=True, slots=True)
class State:
    """What callers see. Exactly one of the three holds: a picker, an error, or neither (nothing known yet).

    ``error`` makes a fresh exception for each raise: a shared instance would collect the tracebacks of all threads.
    """

    picker: Picker | None = None
    error: Callable[[], Exception] | None = None

    @property
    def settled(self) -> bool:
        return self.picker is not None or self.error is not None


UNKNOWN = State()


class Cell:
    """Holds the current State. ``publish`` is called by the control thread only; everything else from anywhere."""

    __slots__ = ("_lock", "_waiters", "state")

    def __init__(self, state: State = UNKNOWN) -> None:
        self.state = state
        self._lock = threading.Lock()
        self._waiters: set[Callable[[], None]] = set()

    def publish(self, state: State) -> None:
        with self._lock:
            self.state = state
            waiters, self._waiters = self._waiters, set()
        for wake in waiters:
            wake()

    def wait(self, seen: State, timeout: float) -> State:
        """Block until the state is another than ``seen``, at most ``timeout`` seconds; returns the state then."""
        event = threading.Event()
        if self._enter(seen, event.set):
            try:
                event.wait(timeout)
            finally:
                self._leave(event.set)
        return self.state

    async def wait_async(self, seen: State, timeout: float) -> State:
        """The same for a coroutine of any loop."""
        loop = asyncio.get_running_loop()
        changed: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            if not changed.done():
                changed.set_result(None)

        def wake() -> None:
            # A loop that was closed meanwhile refuses, and nobody waits there any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(resolve)

        if self._enter(seen, wake):
            try:
                async with asyncio.timeout(timeout):
                    await changed
            except TimeoutError:
                pass  # the caller looks at the returned state; running out of time is an ordinary outcome
            finally:
                self._leave(wake)
        return self.state

    def _enter(self, seen: State, wake: Callable[[], None]) -> bool:
        with self._lock:
            if self.state is not seen:
                return False
            self._waiters.add(wake)
            return True

    def _leave(self, wake: Callable[[], None]) -> None:
        with self._lock:
            self._waiters.discard(wake)
