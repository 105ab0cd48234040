"""What a pick costs, by policy and number of endpoints, beside ``next(itertools.cycle(...))`` in the same
process.

Everything is measured in rounds that go through all cases, so that a busy moment of the machine hits all of
them, and in processor time of this thread. With ``next(cycle)`` and a bare pick the loop around the calls is
part of the time of both; with whole requests, where the loop also makes the clock and the latencies, it is
measured apart and taken off.
"""

from __future__ import annotations

import gc
import itertools
import random
import threading
from collections.abc import Callable
from statistics import median
from time import thread_time
from typing import NamedTuple

from meshlib.pickers.base import PickerContext, PickInfo
from meshlib.pickers.builtin import BUILTIN
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.primitives import StripedLocks
from meshlib.runtime.registry import picker_builder
from meshlib.testing.contracts import subchannels

NAME = "Pick and done"
TARGETS = (
    "round_robin at most 5 x next(cycle); least_request and peak_ewma with done at most 0.8 µs; "
    "each at most 1.3 x from 10 to 10,000 endpoints"
)
HEADER = [
    "policy",
    "endpoints",
    "measured",
    "median ns",
    "min - max ns",
    "x next(cycle)",
    "x 10 endpoints",
    "build ms",
]
SIZES = (10, 100, 1_000, 10_000)
#: Keys that come back, as they do in service, for the hash policies.
KEYS = [f"user-{number}" for number in range(512)]
#: Latencies of the answers, seconds: exponential around 5 ms. New peaks, which cost a lock, are as rare as in
#: service.
_RANDOM = random.Random(1)
LATENCIES = [_RANDOM.expovariate(200) for _ in range(1024)]
#: Seconds of virtual time between two requests.
STEP = 1e-4


class Case(NamedTuple):
    """``time(n)`` gives the seconds that n calls take, loop included; ``loop`` the same without the calls."""

    policy: str
    size: int
    what: str
    time: Callable[[int], float]
    loop: Callable[[int], float]
    build_ms: float


def nothing(calls: int) -> float:
    return 0.0


def cycle_case() -> Case:
    cycle = itertools.cycle(range(10))

    def time(calls: int) -> float:
        start = thread_time()
        for _ in itertools.repeat(None, calls):
            next(cycle)
        return thread_time() - start

    return Case("next(cycle)", 10, "next", time, nothing, 0.0)


def picker_case(policy: str, size: int) -> Case:
    builder = picker_builder(policy)
    config = builder.parse_config({}, "")
    locks = StripedLocks()  # as the runtime makes them
    members = [Subchannel(member.endpoint, locks()) for member in subchannels(size)]
    context = PickerContext(random=random.Random(1).random, new_lock=threading.Lock)
    start = thread_time()
    picker = builder.build(members, config, context)
    build_ms = (thread_time() - start) * 1000
    for number, member in enumerate(members):
        member.observe(0.0, LATENCIES[number % 1024])
    info = PickInfo(1.0)
    pick = picker.pick

    infos = [PickInfo(1.0, key) for key in KEYS]

    def picks(calls: int) -> float:
        some = list(itertools.islice(itertools.cycle(infos), calls))
        start = thread_time()
        for one in some:
            pick(one)
        return thread_time() - start

    def requests(calls: int) -> float:
        now = info.now
        start = thread_time()
        for number in range(calls):
            info.now = now = now + STEP
            latency = LATENCIES[number & 1023]
            chosen = pick(info)
            chosen.finish(now, latency)  # type: ignore[union-attr]
        return thread_time() - start

    def requests_loop(calls: int) -> float:
        now = info.now
        start = thread_time()
        for number in range(calls):
            info.now = now = now + STEP
            latency = LATENCIES[number & 1023]  # noqa: F841 (what the other loop does too)
        info.now = now - calls * STEP
        return thread_time() - start

    if picker.counts:
        return Case(policy, size, "pick, finish", requests, requests_loop, build_ms)
    return Case(policy, size, "pick", picks, nothing, build_ms)


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """Measure every built-in policy at every size."""
    sizes = (SIZES[0], SIZES[-1]) if quick else SIZES
    rounds, calls = (5, 4_000) if quick else (15, 40_000)
    cases = [cycle_case(), *(picker_case(policy, size) for policy in BUILTIN for size in sizes)]
    taken: list[list[float]] = [[] for _ in cases]
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for case, times in zip(cases, taken, strict=True):
                # What the other cases left in the processor's caches says nothing about this one.
                case.time(3 * case.size)
                times.append((case.time(calls) - case.loop(calls)) / calls * 1e9)
    finally:
        gc.enable()
    middle = [median(times) for times in taken]
    smallest = {case.policy: m for case, m in zip(cases, middle, strict=True) if case.size == SIZES[0]}
    rows = [
        [
            case.policy,
            f"{case.size:,}",
            case.what,
            f"{m:.1f}",
            f"{min(times):.1f} - {max(times):.1f}",
            f"{m / middle[0]:.1f}",
            f"{m / smallest[case.policy]:.2f}",
            f"{case.build_ms:.1f}",
        ]
        for case, m, times in zip(cases, middle, taken, strict=True)
    ]
    return HEADER, rows


def main() -> None:
    header, rows = run(quick=False)
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"target: {TARGETS}")


if __name__ == "__main__":
    main()
