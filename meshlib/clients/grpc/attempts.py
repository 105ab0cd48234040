"""Attempts: which endpoints one call has tried, and what comes next. Decides only; waiting is done by its callers."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from meshlib.clients.grpc.status import DEADLINE_DETAILS, MeshRpcError
from meshlib.errors import MeshError, ResolveError
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease

#: First and longest pause of a wait_for_ready call between two looks, seconds: short enough not to be felt when the
#: first endpoint appears, long enough that a thousand waiting calls cost nothing.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5


class Attempts:
    """The course of one call, from the first pick to the last refusal. Used by one thread at a time.

    ``deadline``: on ``clock``, or None. ``wait_for_ready``: as in gRPC; nothing but the deadline ends the waiting.
    """

    __slots__ = (
        "_clock",
        "_handle",
        "_pause",
        "_service_tried",
        "_tried",
        "deadline",
        "hash_key",
        "wait_for_ready",
    )

    def __init__(
        self,
        handle: TargetHandle,
        clock: Callable[[], float],
        *,
        deadline: float | None = None,
        wait_for_ready: bool = False,
        hash_key: str | bytes | None = None,
    ) -> None:
        self._handle = handle
        self._clock = clock
        self.deadline = deadline
        self.wait_for_ready = wait_for_ready
        self.hash_key = hash_key
        self._tried: set[Subchannel] = set()
        self._service_tried = False
        self._pause = FIRST_PAUSE

    def remaining(self) -> float | None:
        """Seconds left, None without a deadline; zero or less: over."""
        return None if self.deadline is None else self.deadline - self._clock()

    def expired(self) -> bool:
        return self.deadline is not None and self.deadline <= self._clock()

    def after_refusal(self, subchannel: Subchannel) -> Lease | None:
        """The next endpoint after one refused its connection, last the Service's own address; None: all refused."""
        self._tried.add(subchannel)
        try:
            lease = self._handle.try_acquire(self.hash_key, exclude=self._tried)
        except MeshError:
            lease = None  # the set changed under us; the caller still has the connection's own error to show
        if lease is None and not self._service_tried:
            self._service_tried = True
            lease = self._handle.all_refused()
            if lease is not None and lease.subchannel in self._tried:
                lease.done()
                lease = None
        return lease

    def next_round(self) -> float:
        """Start over with all endpoints; returns how long to pause first, seconds (within the deadline)."""
        self._tried.clear()
        self._service_tried = False
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        remaining = self.remaining()
        return pause if remaining is None else max(0.0, min(pause, remaining))

    def verdict(self, error: MeshError) -> MeshRpcError | None:
        """What ``error`` of a pick means: the call's error, or None: pause for ``next_round`` and pick again."""
        if self.expired():
            return MeshRpcError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"{DEADLINE_DETAILS} while waiting: {error}", error
            )
        if self.wait_for_ready and isinstance(error, ResolveError):
            return None
        return MeshRpcError(grpc.StatusCode.UNAVAILABLE, f"{type(error).__name__}: {error}", error)
