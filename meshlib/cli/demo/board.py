"""The board: every finished request of the demo, and the figures that can be read from them."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished request: when it ended (seconds since the start), who answered ("" when it failed), how long."""

    at: float
    kind: str  #: ``http`` or ``grpc``
    backend: str
    latency: float
    error: str = ""
    cancelled: bool = False  #: the server ended the call (gRPC CANCELLED), though it was there to take it


@dataclass(frozen=True, slots=True)
class Line:
    """What one backend did in a span of time. ``share`` is of all answered requests in it, 0 to 1."""

    backend: str
    count: int
    share: float
    p50: float
    p99: float


class Board:
    """Collects samples from the traffic threads. A demo makes some ten thousand; all are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: list[Sample] = []

    def add(self, sample: Sample) -> None:
        with self._lock:
            self._samples.append(sample)

    def samples(self, begin: float = 0.0, end: float = float("inf")) -> list[Sample]:
        """Those that ended in [begin, end)."""
        with self._lock:
            # Threads add in nearly, not exactly, the order of their clock readings.
            ordered = sorted(self._samples, key=attrgetter("at"))
        low = bisect.bisect_left(ordered, begin, key=attrgetter("at"))
        return ordered[low : bisect.bisect_left(ordered, end, key=attrgetter("at"))]

    def lines(self, backends: Sequence[str], begin: float, end: float) -> list[Line]:
        """One Line per backend, in the order given."""
        answered = [sample for sample in self.samples(begin, end) if sample.backend]
        result = []
        for backend in backends:
            latencies = sorted(sample.latency for sample in answered if sample.backend == backend)
            share = len(latencies) / len(answered) if answered else 0.0
            result.append(
                Line(backend, len(latencies), share, quantile(latencies, 0.5), quantile(latencies, 0.99))
            )
        return result


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """The nearest-rank quantile of sorted values; 0 for none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))] if ordered else 0.0
