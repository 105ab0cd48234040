"""Subchannel: what is remembered about one endpoint between two pickers (decision D4).

Pickers are thrown away at every change; in-flight counts, latency and the ramp of a joiner live here. A
Subchannel is created by the runtime (which injects the lock), one per (target, ip, port, pod uid), and
referenced by pickers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from math import log

from meshlib.model.endpoint import Endpoint

#: Latency memory, seconds: an estimate that no sample confirms falls to 1/e in this time (Finagle's, Linkerd's
#: and go-zero's default; decision D6).
DECAY = 10.0
#: A failure counts as at least this latency, seconds, so that an endpoint that fails fast does not look fast
#: (decision D6; Linkerd's load biaser uses the same figure).
FAILURE_PENALTY = 5.0
#: The least latency that is believed, seconds: a clock that did not advance would otherwise make an endpoint
#: free of cost whatever its in-flight count. Below any real answer, loopback included.
LEAST_LATENCY = 1e-6

#: A sample so little above the faded estimate (as a logarithm: five per cent) leaves it as it is, so that an
#: endpoint that always takes the same time does not cost a lock for every request. Half a second's fading, and
#: less than latencies vary.
TOLERANCE = 0.05

Watcher = Callable[["Subchannel"], None]


class _Touched:
    """The fields that every pick and its end touch, so that they lie together.

    With 10,000 endpoints most of what a pick costs is waiting for memory, and slots of a base class come first.
    """

    __slots__ = ("inflight", "lock", "on_load", "rank", "requests")


class Subchannel(_Touched):
    """In-flight count and latency of one endpoint. All methods may be called from any thread.

    ``begin``/``end`` bracket a request (its body included); ``observe`` takes a latency sample when its headers
    came. ``now`` and latencies are seconds of one monotonic clock.

    ``ewma`` is the latency estimate as it was at ``ewma_at``; it fades from there (see ``observe``). ``rank``
    is both in one number that does not change with time, ``ln(ewma) + ewma_at / DECAY``: of two endpoints the
    one with the lower rank has the lower estimate at any later time, by the factor ``exp`` of the difference.
    Readers take no lock.
    """

    __slots__ = ("__weakref__", "endpoint", "ewma", "ewma_at", "failures", "joined_at", "removed", "target")

    def __init__(
        self,
        endpoint: Endpoint,
        lock: AbstractContextManager[object],
        joined_at: float = -math.inf,
        target: str = "",
    ) -> None:
        self.endpoint = endpoint
        self.target = target  #: whose endpoint it is, as metrics call it
        self.lock = lock
        #: When it joined a set that already had members; -inf: it was there from the start, no ramp.
        self.joined_at = joined_at
        self.inflight = 0
        self.requests = 0  #: ended requests
        self.failures = 0
        self.ewma = -1.0  #: peak-sensitive latency estimate in seconds; negative: no sample yet
        self.ewma_at = math.inf
        self.rank = -math.inf  #: no sample yet
        self.removed = False  #: left the set: no new requests, transports close when idle
        self.on_load: Watcher | None = (
            None  #: told (under no lock) when inflight fell; for pickers that index by load
        )

    def begin(self) -> None:
        with self.lock:
            self.inflight += 1

    def end(self, failed: bool = False) -> None:
        with self.lock:
            self.inflight -= 1
            self.requests += 1
            if failed:
                self.failures += 1
        if self.on_load is not None:
            self._tell()

    def withdraw(self) -> None:
        """Undo ``begin``: the request is not made after all, and says nothing about the endpoint."""
        with self.lock:
            self.inflight -= 1
        if self.on_load is not None:
            self._tell()

    def finish(self, now: float, latency: float, failed: bool = False) -> None:
        """``observe`` and ``end`` in one, for requests whose answer comes as a whole."""
        if failed and latency < FAILURE_PENALTY:
            latency = FAILURE_PENALTY
        elif latency < LEAST_LATENCY:
            latency = LEAST_LATENCY
        rank = log(latency) + now / DECAY
        with self.lock:
            self.inflight -= 1
            self.requests += 1
            if failed:
                self.failures += 1
            if rank > self.rank + TOLERANCE:
                self.ewma_at = now
                self.ewma = latency
                self.rank = rank
        if self.on_load is not None:
            self._tell()

    def _tell(self) -> None:
        watcher = self.on_load  # once more: it may have been taken away meanwhile
        if watcher is not None:
            watcher(self)

    def observe(self, now: float, latency: float, failed: bool = False) -> None:
        """Feed one latency sample: the estimate is the sample, or what is left of the higher one before.

        This is Finagle's Peak EWMA, whose estimate fades with every look at it and jumps to each sample above:
        bad news is believed at once, good news as fast as the memory of the bad fades (``DECAY``), and an
        endpoint that was slow is as good as new when a probe after a long rest comes back fast.
        """
        if failed and latency < FAILURE_PENALTY:
            latency = FAILURE_PENALTY
        elif latency < LEAST_LATENCY:
            latency = LEAST_LATENCY
        # Most samples are below the fading peak and change nothing: the lock is only taken for those that do.
        rank = log(latency) + now / DECAY
        if rank > self.rank + TOLERANCE:
            with self.lock:
                if rank > self.rank:  # once more: another thread may have been faster
                    self.ewma_at = now
                    self.ewma = latency
                    self.rank = rank

    def __repr__(self) -> str:
        latency = f"{self.ewma * 1000:.1f}ms" if self.ewma >= 0 else "no sample"
        return f"<Subchannel {self.endpoint.authority} inflight={self.inflight} {latency}>"
