"""The decision core of one question: fed with (answer, now, random), it says what is true and when to ask again.

Rules R4-R7 of the DNS path: truth replaces; a negative that would empty a set is confirmed once by a second reply;
an unusable reply says nothing about endpoints, so the last good answer stays, flagged as stale, as long as it takes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from meshlib.discovery.dns.records import Answer, Kind, Question
from meshlib.discovery.dns.schedule import Limits, backoff_delay, negative_delay, positive_delay


class Change(enum.Enum):
    """What a fed answer did."""

    NONE = "none"  #: same truth as before, or nothing to say yet
    TRUTH = "truth"  #: ``good`` changed
    FAILED = "failed"  #: first unusable reply after a usable one, or at the start
    RECOVERED = "recovered"  #: usable again, same truth as before


@dataclass(slots=True)
class QuestionState:
    """One question's memory. Not thread-safe: it lives on the control loop.

    ``good`` is the last answer that counts (RECORDS, or a negative that needed no confirmation or got it); None until
    the first. ``last`` is the last reply of any kind. ``due`` is the time of the next query.
    """

    question: Question
    limits: Limits
    good: Answer | None = None
    good_at: float = 0.0  #: when ``good`` was last confirmed by a reply
    changed_at: float = 0.0
    last: Answer | None = None
    failures: int = 0  #: unusable replies in a row
    faults: int = 0  #: unusable replies ever
    replies: int = 0
    generation: int = 0  #: changes of ``good``
    due: float = 0.0
    confirming: bool = False
    too_old_reported: bool = False

    def feed(self, answer: Answer, now: float, random: float) -> Change:
        """Take one reply. ``now``: monotonic seconds; ``random`` in [0, 1)."""
        self.last = answer
        self.replies += 1
        if answer.kind is Kind.UNKNOWN:
            self.failures += 1
            self.faults += 1
            self.due = now + backoff_delay(self.failures, self.limits, random)
            return Change.FAILED if self.failures == 1 else Change.NONE
        recovered = self.failures > 0
        self.failures = 0
        self.too_old_reported = False
        if self._needs_confirmation(answer):
            self.confirming = True
            self.due = now + self.limits.confirm_after
            return Change.RECOVERED if recovered else Change.NONE
        self.confirming = False
        delay = positive_delay if answer.kind is Kind.RECORDS else negative_delay
        self.due = now + delay(answer.ttl, self.limits, random)
        changed = self.good is None or _truth(self.good) != _truth(answer)
        self.good, self.good_at = answer, now
        if changed:
            self.generation += 1
            self.changed_at = now
            return Change.TRUTH
        return Change.RECOVERED if recovered else Change.NONE

    def _needs_confirmation(self, answer: Answer) -> bool:
        """A negative after records, seen for the first time (acceptance 105-106: one reply never empties a set)."""
        if answer.kind is Kind.RECORDS:
            return False  # SRV "." included: an explicit statement (RFC 2782), not an absence
        return self.good is not None and self.good.kind is Kind.RECORDS and not self.confirming

    @property
    def avoid(self) -> str:
        """The server whose negative is being confirmed: ask another one first, if there is one."""
        return self.last.server if self.confirming and self.last is not None else ""

    @property
    def stale(self) -> bool:
        """True while ``good`` is served although the latest replies were unusable."""
        return self.good is not None and self.failures > 0

    def age(self, now: float) -> float:
        """Seconds since a reply last confirmed ``good``; 0 when there is none."""
        return max(0.0, now - self.good_at) if self.good is not None else 0.0

    def too_old(self, now: float) -> bool:
        """Stale for longer than ``limits.max_stale``: still served, but pod addresses may have new owners (R7)."""
        return self.stale and self.age(now) > self.limits.max_stale

    def ask_soon(self, now: float) -> None:
        """The environment changed (servers, search list): do not wait out a back-off."""
        self.due = min(self.due, now)


def _truth(answer: Answer) -> tuple[object, ...]:
    """What makes two answers different for endpoints: not the order, TTL or server (R12)."""
    return (answer.kind, answer.addresses, answer.srv, answer.glue)
