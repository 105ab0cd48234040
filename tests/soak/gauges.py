"""What a process holds, sampled, and whether it stayed flat. Linux only: /proc says it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
#: The part of a run that is warm-up: caches fill, connections open, allocators reach their size.
WARM_UP = 0.2
#: How much more the last third of the rest may hold than its first third, by median: a share and an amount, whichever
#: is more. Memory: allocators keep pages, and how many depends on the storms. Threads: gRPC's own pool breathes by a
#: few. Descriptors: connections to the endpoints of the moment, which storms replace and idleness closes after 5 s, so
#: that the median of a few seconds differs by a third; ten minutes have 3,000 changes, and one leaked for each is
#: ten times the bound.
BOUNDS = {"memory": (0.10, 12 * MIB), "threads": (0.0, 4), "descriptors": (0.5, 150)}


@dataclass(frozen=True)
class Sample:
    """``memory``: resident bytes."""

    memory: int
    threads: int
    descriptors: int


def sample() -> Sample:
    """Of this process, now."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sample(resident, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))


@dataclass(frozen=True)
class Trend:
    """One gauge over a run: medians of the first and the last third after the warm-up, and the highest value."""

    name: str
    early: float
    late: float
    highest: float

    @property
    def bound(self) -> float:
        """The most that ``late`` may be."""
        share, amount = BOUNDS[self.name]
        return self.early + max(self.early * share, amount)

    @property
    def flat(self) -> bool:
        return self.late <= self.bound


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """Needs three samples or more; a trend means something from a hundred or so on."""
    kept = samples[int(len(samples) * WARM_UP) :]
    third = len(kept) // 3
    if third == 0:
        raise ValueError(f"{len(samples)} samples are too few to see a trend")
    found = []
    for name in BOUNDS:
        values = [getattr(one, name) for one in kept]
        early, late = statistics.median(values[:third]), statistics.median(values[-third:])
        found.append(Trend(name, early, late, max(values)))
    return found
