"""peak_ewma: of two drawn at random the one with the lower latency x (requests in flight + 1). The default
policy.

The latency is the Subchannel's peak-sensitive estimate (Finagle's and Linkerd's Peak EWMA), in which a failure
counts as five seconds (decision D6): an endpoint that fails at once is avoided like one that hangs. An estimate
fades with its age also when it is only read, so that an endpoint nobody dared to call is tried again: ten times
the latency of its peers is forgiven after 23 s, a failure among peers of 5 ms after 69 s. While such a trial is
on its way, the faded estimate is taken for no better than the median of the peers: one trial at a time, not a
herd.

An endpoint without samples is taken for the median of its peers; when none has samples, requests in flight
decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import cast

from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.subchannel import DECAY, Subchannel
from meshlib.pickers.two_choices import TwoChoicesPicker, parse_window

#: Where weights or ramps set the proportions, latencies within this factor of each other count as equal and
#: requests in flight decide: an estimate is a recent maximum, which alone differs that much between equals (the
#: maximum of more samples is higher, so that heavier members would look slower), and following it would undo
#: the weights.
ALIKE = 2.0
#: How many peers the median is taken of, at random, when there are more: within a sixth of the true rank in 19
#: of 20 cases, and a few microseconds instead of milliseconds with 10,000 endpoints.
PEERS = 64
#: How long such a median is used, seconds: several round trips, and far less than what it describes needs to
#: fade.
MEDIAN_AGE = 0.1


class PeakEwma(TwoChoicesPicker):
    __slots__ = ("_median",)

    def __init__(self, subchannels: Sequence[Subchannel], window: float, context: PickerContext) -> None:
        super().__init__(subchannels, window, context)
        #: (median latency, when it was taken): one tuple, replaced as a whole by whoever finds it old.
        self._median: tuple[float, float] | None = None

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        if info.now < self._careful_until or info.exclude:
            return self._carefully(info)
        others = self._others
        k = int(self._random() * self._pairs)
        i = k // others
        chosen = self._twice[i]
        other = self._twice[i + 1 + k % others]
        mine, its = chosen.ewma, other.ewma
        if mine > 0.0 < its and -DECAY < (newer := chosen.ewma_at - other.ewma_at) < DECAY:
            # Both fade alike from here on, so that only the difference of their ages matters: one exp instead
            # of two.
            if its * (other.inflight + 1) < mine * exp(newer / DECAY) * (chosen.inflight + 1):
                chosen = other
        elif self._latency(other, info.now) * (other.inflight + 1) < self._latency(chosen, info.now) * (
            chosen.inflight + 1
        ):
            chosen = other
        with chosen.lock:
            chosen.inflight += 1
        return chosen

    def _better(self, one: int, than: int, now: float) -> bool:
        latency, its = self._latency(self._members[one], now), self._latency(self._members[than], now)
        if latency < its * ALIKE and its < latency * ALIKE:
            return self._load(one) < self._load(than)
        return latency * self._load(one) < its * self._load(than)

    def _latency(self, member: Subchannel, now: float) -> float:
        """The estimate as it is now; that of the peers where there is none."""
        ewma = member.ewma
        if ewma < 0.0:
            return self._peers(now)
        age = now - member.ewma_at
        if age <= 0.0:
            return ewma
        faded = ewma * exp(-age / DECAY)
        if age > DECAY and member.inflight > 0:
            return max(faded, min(ewma, self._peers(now)))
        return faded

    def _peers(self, now: float) -> float:
        """The median latency of the members that have samples; 1.0, the same for all, when none has."""
        known = self._median
        if known is not None and 0.0 <= now - known[1] < MEDIAN_AGE:
            return known[0]
        members, random = self._members, self._random
        if len(members) > PEERS:
            members = tuple(members[int(random() * len(members))] for _ in range(PEERS))
        latencies = sorted(m.ewma * exp(-max(0.0, now - m.ewma_at) / DECAY) for m in members if m.ewma >= 0.0)
        if not latencies:
            return 1.0
        median = latencies[len(latencies) // 2]
        self._median = (median, now)
        return median


class PeakEwmaBuilder:
    name = "peak_ewma"
    contract = ContractClass.LOAD_AWARE

    def parse_config(self, settings: Mapping[str, object], where: str) -> float:
        return parse_window(settings, where)

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return PeakEwma(subchannels, cast(float, config), context)


BUILDER = PeakEwmaBuilder()
