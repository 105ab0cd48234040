"""peak_ewma: of two drawn at random mostly the one with the lower latency and fewer requests in flight. The
default policy.

"Mostly" is what differs from Finagle and Linkerd, where the lower one always wins: under one request after the
other, when nothing is in flight, the slowest of three equal endpoints would lose every draw and get nothing, and
the one that once took a millisecond longer would be left alone for seconds. Here the odds are the third power
of the ratio of latency x (requests in flight + 1): of two equals each gets half, one twice as slow or twice as
busy a ninth of their draws, one ten times as slow a thousandth.

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
from math import exp, floor, inf, log
from typing import cast

from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.candidates import DRAWS
from meshlib.pickers.subchannel import DECAY, Subchannel
from meshlib.pickers.two_choices import TwoChoicesPicker, parse_window

#: Where weights or ramps set the proportions, latencies within this factor of each other count as equal and
#: requests in flight decide: an estimate is a recent maximum, which alone differs that much between equals (the
#: maximum of more samples is higher, so that heavier members would look slower), and following it would undo
#: the weights.
ALIKE = 2.0
#: The power to which the ratio of two costs is raised to give the odds. With 2 an endpoint ten times as slow would
#: still get a hundredth of its draws; with 4 and more one request at a time leaves an endpoint alone that was twice
#: as slow once. (The code below writes the power out where it can.)
SHARPNESS = 3.0
#: Estimates further apart than by the factor exp(1.6), about five, are looked at more closely (``_latencies``): only
#: there can a faded estimate attract a herd. Latencies of equals rarely differ so much. Squared, as it is used.
FAR_APART = 1.6**2
#: From how many times the median of its peers on an endpoint is bad: then even the better one of two is not taken, but
#: drawn again. Two bad ones of four are both drawn by every sixth pick, and one of them would get it. When half of
#: all or more are as slow, the median is theirs and nobody is bad: there is no better place to go.
BAD = 8.0
#: How many peers the median is taken of, at random, when there are more: within a sixth of the true rank in 19
#: of 20 cases, and a few microseconds instead of milliseconds with 10,000 endpoints.
PEERS = 64
#: How long such a median is used, seconds: several round trips, and far less than what it describes needs to
#: fade.
MEDIAN_AGE = 0.1


class PeakEwma(TwoChoicesPicker):
    __slots__ = ("_limit", "_median")

    def __init__(self, subchannels: Sequence[Subchannel], window: float, context: PickerContext) -> None:
        super().__init__(subchannels, window, context)
        #: (median latency, when it was taken): one tuple, replaced as a whole by whoever finds it old.
        self._median: tuple[float, float] | None = None
        #: The rank from which an endpoint is bad, as it was when two far apart were last met: a store of one reference.
        self._limit = inf

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        if info.now < self._careful_until or info.exclude:
            return self._carefully(info)
        random, pairs, others, twice = self._draws
        drawn = random() * pairs
        k = floor(drawn)
        i = k // others
        chosen = twice[i]
        other = twice[i + 1 + k % others]
        worse = other.rank - chosen.rank
        if worse * worse < FAR_APART:  # neither for infinity nor for NaN, which stand for missing samples
            odds = exp(SHARPNESS * worse)
        elif chosen.ewma < 0.0 > other.ewma:  # nothing known: requests in flight alone decide
            odds = 0.0 if other.inflight < chosen.inflight else inf
        else:
            latency, its_latency = self._latencies(chosen, other, info.now)
            slower = its_latency / latency
            odds = slower * slower * slower
            self._limit = self._bad_from(info.now)
        load, its_load = chosen.inflight, other.inflight
        if load != its_load:
            busier = (its_load + 1) / (load + 1)
            odds *= busier * busier * busier
        # The fraction that the draw left is a random number of its own.
        if (drawn - k) * (1.0 + odds) < 1.0:
            chosen = other
        if chosen.rank > self._limit:
            chosen = self._instead(chosen, info)
        with chosen.lock:
            chosen.inflight += 1
        return chosen

    def _instead(self, bad: Subchannel, info: PickInfo) -> Subchannel:
        """Another draw, for as long as what was drawn is bad; the bad one when luck does not want it otherwise."""
        limit = self._limit = self._bad_from(info.now)
        members, random = self._members, self._random
        for _ in range(DRAWS):
            if bad.rank <= limit:
                break
            bad = members[floor(random() * len(members))]
        return bad

    def _unless_bad(self, one: int, info: PickInfo) -> int:
        limit = self._bad_from(info.now)
        for _ in range(DRAWS):
            if self._members[one].rank <= limit:
                break
            other = self._draw(info.now, info.exclude)
            one = one if other is None else other
        return one

    def _bad_from(self, now: float) -> float:
        """The rank from which an endpoint counts as bad; none does while nothing is known."""
        median = self._peers(now, 0.0)
        return log(BAD * median) + now / DECAY if median > 0.0 else inf

    def _better(self, one: int, than: int, now: float) -> bool:
        latency, its = self._latencies(self._members[one], self._members[than], now)
        if latency < its * ALIKE and its < latency * ALIKE:
            return self._load(one, now) < self._load(than, now)
        return latency * self._load(one, now) < its * self._load(than, now)

    def _latencies(self, one: Subchannel, other: Subchannel, now: float) -> tuple[float, float]:
        """The two estimates as they are now. Without samples: the peers' median; equal when both have none."""
        latency, its = self._latency(one, now), self._latency(other, now)
        if latency < 0.0:
            return (1.0, 1.0) if its < 0.0 else (self._peers(now, its), its)
        return latency, its if its >= 0.0 else self._peers(now, latency)

    def _latency(self, member: Subchannel, now: float) -> float:
        """The estimate as it is now; negative: no sample."""
        ewma = member.ewma
        age = now - member.ewma_at
        if age <= 0.0:
            return ewma
        faded = ewma * exp(-age / DECAY)
        if age > DECAY and member.inflight > 0:
            return max(faded, min(ewma, self._peers(now, ewma)))
        return faded

    def _peers(self, now: float, known: float) -> float:
        """The median latency of the members that have samples; ``known``, one of theirs, when no other is met."""
        median = self._median
        if median is not None and 0.0 <= now - median[1] < MEDIAN_AGE:
            return median[0]
        members, random = self._members, self._random
        if len(members) > PEERS:
            members = tuple(members[floor(random() * len(members))] for _ in range(PEERS))
        latencies = sorted(m.ewma * exp(min(0.0, m.ewma_at - now) / DECAY) for m in members if m.ewma >= 0.0)
        if not latencies:
            return known  # the caller's, and not to be remembered: the next one may know another, or none
        latency = latencies[(len(latencies) - 1) // 2]
        self._median = (latency, now)
        return latency


class PeakEwmaBuilder:
    name = "peak_ewma"
    contract = ContractClass.LOAD_AWARE

    def parse_config(self, settings: Mapping[str, object], where: str) -> float:
        return parse_window(settings, where)

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return PeakEwma(subchannels, cast(float, config), context)


BUILDER = PeakEwmaBuilder()
