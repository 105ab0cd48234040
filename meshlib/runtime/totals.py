"""Totals: what all endpoints of a target did together, those that left included, counted without touching requests.

A Subchannel counts its own requests. Here is who they are, per target and process: the sum over all of them is the
target's, and what a Subchannel counted is kept when it goes, so that no sum ever falls.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshlib.observe.catalogue import Metric, target_label
from meshlib.pickers.subchannel import DECAY, Subchannel
from meshlib.runtime.process import rebuild_after_fork

if TYPE_CHECKING:
    from meshlib.runtime.balancer import Balancer

#: How long a Subchannel that left is looked at after its last request, seconds. A thread may have picked it from the
#: set before and not begun yet; one that is kept from running for longer than this has its request left out.
LATE = 10.0


@dataclass(frozen=True, slots=True)
class Sum:
    """``picks`` never falls. ``requests`` ended, ``failures`` are among them. ``latency``: seconds; None:
    no sample yet."""

    picks: int
    requests: int
    failures: int
    inflight: int
    draining: int  #: Subchannels that left and have requests in flight
    latency: float | None  #: the highest estimate of those in the set, as it is now


@dataclass(frozen=True, slots=True)
class One:
    """The same for one Subchannel."""

    authority: str
    requests: int
    failures: int
    inflight: int


class TargetTotals:
    """All Subchannels that one target had in this process, in whichever Mesh. Thread-safe."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._lock = threading.Lock()
        self._balancers: list[Balancer] = []
        self._members: set[Subchannel] = set()
        self._left: deque[tuple[float, Subchannel]] = deque()  #: when it left, oldest first
        self._requests = 0  #: of those that are no longer looked at
        self._failures = 0
        self._picks = 0  #: the most that was ever told

    def begin(self, balancer: Balancer) -> None:
        """A Mesh uses the target now."""
        with self._lock:
            self._balancers.append(balancer)

    def end(self, balancer: Balancer) -> None:
        """It does so no more. Once is enough."""
        with self._lock:
            if balancer in self._balancers:
                self._balancers.remove(balancer)

    @property
    def balancers(self) -> tuple[Balancer, ...]:
        with self._lock:
            return tuple(self._balancers)

    def joined(self, subchannels: Iterable[Subchannel]) -> None:
        """These were made."""
        with self._lock:
            self._members.update(subchannels)

    def left(self, subchannels: Iterable[Subchannel], now: float) -> None:
        """These are picked no more; requests in flight go on. What is not a member is passed over."""
        with self._lock:
            for subchannel in subchannels:
                if subchannel in self._members:
                    self._members.remove(subchannel)
                    self._left.append((now, subchannel))
            self._settle(now)

    def read(self, now: float) -> Sum:
        """The sum at ``now``. What one Subchannel counted is read at one moment, different ones one by one."""
        with self._lock:
            self._settle(now)
            members, left = list(self._members), [subchannel for _, subchannel in self._left]
            requests, failures = self._requests, self._failures
        inflight, draining, rank = 0, 0, -math.inf
        for subchannel in members:
            with subchannel.lock:
                requests += subchannel.requests
                failures += subchannel.failures
                inflight += subchannel.inflight
            if subchannel.rank > rank:
                rank = subchannel.rank
        for subchannel in left:
            with subchannel.lock:
                requests += subchannel.requests
                failures += subchannel.failures
                inflight += subchannel.inflight
                draining += subchannel.inflight > 0
        latency = math.exp(rank - now / DECAY) if rank > -math.inf else None
        with self._lock:
            # A pick that was taken back (``Subchannel.withdraw``) may have been seen.
            self._picks = picks = max(self._picks, requests + inflight)
        return Sum(picks, requests, failures, inflight, draining, latency)

    def each(self) -> list[One]:
        """The Subchannels that are in the set now, one by one."""
        with self._lock:
            members = list(self._members)
        found = []
        for one in members:
            with one.lock:
                found.append(One(one.endpoint.authority, one.requests, one.failures, one.inflight))
        return found

    def _settle(self, now: float) -> None:
        """Stop looking at those that left long ago. Amortised: each is looked at once per LATE."""
        while self._left and self._left[0][0] + LATE <= now:
            _, subchannel = self._left.popleft()
            with subchannel.lock:
                if subchannel.inflight == 0:
                    self._requests += subchannel.requests
                    self._failures += subchannel.failures
                    continue
            self._left.append((now, subchannel))


class Book:
    """The totals of every target of this process, by label."""

    def __init__(self) -> None:
        self.after_fork()
        rebuild_after_fork(self)

    def after_fork(self) -> None:
        """In a forked child: nothing has happened yet. What the parent did, the parent reports."""
        self._lock = threading.Lock()
        self._targets: dict[str, TargetTotals] = {}
        self._most: dict[tuple[Metric, tuple[str, ...]], float] = {}

    def target(self, text: str) -> TargetTotals:
        """Those of a target, by its text."""
        label = target_label(text)
        with self._lock:
            found = self._targets.get(label)
            if found is None:
                found = self._targets[label] = TargetTotals(label)
            return found

    @property
    def targets(self) -> Sequence[TargetTotals]:
        with self._lock:
            return tuple(self._targets.values())

    def never_less(self, metric: Metric, labels: tuple[str, ...], value: float) -> float:
        """The value, or the highest that was told before: for counters put together from parts that are not read at
        one moment, or that go with the Mesh they belong to."""
        with self._lock:
            most = self._most[metric, labels] = max(self._most.get((metric, labels), 0), value)
            return most


BOOK = Book()

_open_connections: dict[str, Callable[[], int]] = {}


def counts_connections(protocol: str, count: Callable[[], int]) -> None:
    """A client shell tells, when it is imported, how its open connections are counted. From any thread later."""
    _open_connections[protocol] = count


def open_connections() -> dict[str, int]:
    """Connections to endpoints that are open now, by protocol; shells that were never imported are absent."""
    return {protocol: count() for protocol, count in list(_open_connections.items())}
