"""Requests against a picker in virtual time: what share each endpoint gets, without waiting and without chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush

from meshlib.pickers.base import Picker, PickInfo
from meshlib.pickers.subchannel import Subchannel

#: Seconds until the answer, and whether it is a failure, of a request that starts now at an endpoint.
Answer = Callable[[Subchannel, float], tuple[float, bool]]


def simulate(
    picker: Picker,
    answer: Answer,
    random: Callable[[], float],
    *,
    rate: float,
    start: float,
    end: float,
    hash_key: Callable[[int], str | None] = lambda number: None,
) -> Counter[Subchannel]:
    """Send requests at random moments, ``rate`` a second on average, from ``start`` to ``end``; count them by endpoint.

    An open loop: a slow endpoint does not slow the callers down, so that its requests pile up as they would in service.
    Requests that are still out at ``end`` are ended at their time, and their samples taken. ``random`` gives floats in
    [0, 1). A pick of None is an AssertionError: simulate with endpoints that can be picked.
    """
    picked: Counter[Subchannel] = Counter()
    out: list[tuple[float, int, Subchannel, float, bool]] = []
    moments = _moments(random, rate, start, end)
    for number, now in enumerate(moments):
        while out and out[0][0] <= now:
            _complete(*heappop(out))
        chosen = picker.pick(PickInfo(now, hash_key(number)))
        assert chosen is not None, "nothing could be picked"
        if not picker.counts:
            chosen.begin()
        picked[chosen] += 1
        latency, failed = answer(chosen, now)
        heappush(out, (now + latency, number, chosen, latency, failed))
    while out:
        _complete(*heappop(out))
    return picked


def _complete(now: float, number: int, subchannel: Subchannel, latency: float, failed: bool) -> None:
    subchannel.observe(now, latency, failed)
    subchannel.end(failed)


def _moments(random: Callable[[], float], rate: float, start: float, end: float) -> list[float]:
    """Moments of a Poisson process by their number and places: uniform draws, sorted."""
    return sorted(start + random() * (end - start) for _ in range(round(rate * (end - start))))
