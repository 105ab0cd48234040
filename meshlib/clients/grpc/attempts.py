"""Attempts: which endpoints one call has tried, and what comes next. Decides only; waiting is done by its callers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import grpc

from meshlib.clients.grpc.status import DEADLINE_DETAILS, MeshRpcError
from meshlib.errors import HeldBack, MeshError, ResolveError
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease

#: First and longest pause of a wait_for_ready call between two looks, seconds: short enough not to be felt when the
#: first endpoint appears, long enough that a thousand waiting calls cost nothing.
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
#: The part of what is left of the deadline in which one endpoint has to connect while there may be others: the answer
#: takes at least another round trip, so a connection that needs more would rarely be of use to this call.
PATIENCE = 0.5
#: The same without a deadline, seconds: a TLS handshake between continents, or within a cluster one lost SYN, which is
#: sent again after a second (RFC 6298). Slower ones go on connecting, and calls come back to them.
OPEN_PATIENCE = 1.5
#: A call without a deadline shares out this time, seconds: core's own limit for one connection attempt, after which
#: the first endpoint that was silent has failed for good.
OPEN_LIMIT = 20.0
#: At most this while another endpoint is connected, seconds: the "Connection Attempt Delay" of RFC 8305 section 5.
SHORT_PATIENCE = 0.25


class Attempts:
    """The course of one call, from the first pick to the last refusal. Used by one thread at a time.

    ``deadline``: on ``clock``, or None. ``wait_for_ready``: as in gRPC; nothing but the deadline ends the waiting.
    """

    __slots__ = (
        "_clock",
        "_give_up",
        "_handle",
        "_pause",
        "_service_tried",
        "_silent",
        "_tried",
        "deadline",
        "hash_key",
        "last_chance",
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
        self._silent: list[Subchannel] = []  #: in the order in which they were asked
        self._give_up: float | None = deadline  #: begins, without a deadline, with the first wait
        #: There is nobody left but endpoints that were silent: the next one has all the time that is left.
        self.last_chance = False
        self._service_tried = False
        self._pause = FIRST_PAUSE

    def remaining(self) -> float | None:
        """Seconds left, None without a deadline; zero or less: over."""
        return None if self.deadline is None else self.deadline - self._clock()

    def expired(self) -> bool:
        return self.deadline is not None and self.deadline <= self._clock()

    def patience(self, others: bool) -> float:
        """How long the next endpoint may take to connect, seconds; zero or less: the deadline is over.

        ``others``: another endpoint is connected and could take the call at once.
        """
        now = self._clock()
        if self._give_up is None:
            self._give_up = now + OPEN_LIMIT
        share = (self._give_up - now) * PATIENCE
        if self.deadline is None:
            share = min(share, OPEN_PATIENCE)
        return min(share, SHORT_PATIENCE) if others else share

    def after_silence(self, subchannel: Subchannel, connected: Iterable[Subchannel] = ()) -> Lease | None:
        """The next endpoint after one did not connect in time; when all were tried, the first silent one once more.

        That one, which has been connecting for longest, then gets the call, whatever comes of it: what core says about
        it is the caller's answer, as it would be with nobody to move on to. ``connected``: those left as silent that
        are connected by now, and may be picked again. None: all of them are gone.
        """
        self._tried.add(subchannel)
        self._silent.append(subchannel)
        self._tried.difference_update(connected)
        return self._pick(self._tried) or self._last_chance()

    def after_refusal(self, subchannel: Subchannel) -> Lease | None:
        """The next endpoint after one refused its connection, last the Service's own address; None: all refused."""
        self._tried.add(subchannel)
        lease = self._pick(self._tried)
        if lease is None and self._silent and not self.last_chance:
            lease = self._last_chance()
        if lease is None and not self._service_tried:
            self._service_tried = True
            lease = self._handle.all_refused()
            if lease is not None and lease.subchannel in self._tried:
                lease.done()
                lease = None
        return lease

    def _last_chance(self) -> Lease | None:
        self.last_chance = True
        return self._pick(self._tried - {self._silent[0]})

    def _pick(self, exclude: set[Subchannel]) -> Lease | None:
        try:
            return self._handle.try_acquire(self.hash_key, exclude=exclude)
        except MeshError:
            return None  # the set changed under us; the caller still has the connection's own error to show

    def next_round(self) -> float:
        """Start over with all endpoints; returns how long to pause first, seconds (within the deadline)."""
        self._tried.clear()
        self._silent.clear()
        self._give_up = self.deadline
        self.last_chance = False
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
        if self.wait_for_ready and isinstance(error, ResolveError) and not isinstance(error, HeldBack):
            return None
        return MeshRpcError(grpc.StatusCode.UNAVAILABLE, f"{type(error).__name__}: {error}", error)
