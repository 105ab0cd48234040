"""One gate to one API server, for all reflectors and version probes of a process (decision D8). Sans-IO.

While the server is not known to be well, one request at a time goes through and stands for all; after each failure the
gate stays shut for a back-off delay. So an outage costs the server at most 7 requests in its first minute, however many
namespaces a process watches: with the smallest jitter the probes leave at 0, 0.8, 2.4, 5.6, 12, 24.8 and 50.4 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from meshlib.discovery.kubernetes.backoff import Backoff


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """Permission for one request. ``epoch``: answers to requests from before the last failure prove nothing."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now. ``until``: monotonic seconds, or inf: until the outcome of the probe that is under way."""

    until: float


class Gate:
    """State machine fed with outcomes; one owner (the control loop), not thread-safe.

    After every call but ``admit`` the owner wakes those who wait with ``until=inf``.
    """

    __slots__ = ("_backoff", "_closed_until", "_epoch", "_probe", "_random", "failures", "proven", "requests")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._backoff = Backoff()
        self._epoch = 0
        self._closed_until = -math.inf
        self._probe: Ticket | None = None
        self.proven = False  #: the last word from this server was good: everybody may ask
        self.requests = 0  #: admitted since the start
        self.failures = 0  #: that closed the gate, since the start

    def admit(self, now: float) -> Ticket | Wait:
        """A ticket (then exactly one of the methods below must follow), or how long to wait before asking again."""
        if now < self._closed_until:
            return Wait(self._closed_until)
        if self.proven:
            self.requests += 1
            return Ticket(self._epoch)
        if self._probe is not None:
            return Wait(math.inf)
        self.requests += 1
        self._probe = Ticket(self._epoch)
        return self._probe

    def succeeded(self, ticket: Ticket) -> None:
        """The server did what it is for: a list came, or a watch lives. Opens the gate."""
        if ticket.epoch != self._epoch:
            return
        self._probe = None
        self.proven = True
        self._closed_until = -math.inf
        self._backoff.reset()

    def answered(self, ticket: Ticket) -> None:
        """The request is over and says nothing about lists and watches (a version probe, a cancelled request)."""
        if self._probe is ticket:
            self._probe = None

    def failed(self, ticket: Ticket, now: float, retry_after: float | None = None) -> None:
        """The server did not answer or failed. Shuts the gate for a back-off delay, or ``retry_after`` if longer."""
        wanted = now + (retry_after or 0.0)
        if (
            ticket.epoch != self._epoch
        ):  # sent before the failure that shut the gate: the same outage, counted once
            self._closed_until = max(self._closed_until, wanted if retry_after else -math.inf)
            return
        delay = self._backoff.next(now, self._random())
        self._epoch += 1
        self._probe = None
        self.proven = False
        self.failures += 1
        self._closed_until = max(now + delay, wanted)

    def suspect(self, ticket: Ticket) -> None:
        """A proven watch ended before its time: the next request goes alone, at once."""
        if ticket.epoch == self._epoch and self.proven:
            self._epoch += 1
            self.proven = False
            self._probe = None

    def closed_for(self, now: float) -> float:
        """Seconds until the next probe may go; 0 when it may go now."""
        return max(0.0, self._closed_until - now)
