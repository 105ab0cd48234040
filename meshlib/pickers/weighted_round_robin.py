"""weighted_round_robin: turns in proportion to weights, evenly spread (smooth), by a schedule made in advance.

The schedule holds one period: each endpoint appears ``weight`` times (after dividing all by their greatest common
divisor), the k-th time at ``(k + phase) / weight`` of the period, which is earliest-deadline-first with the deadlines
known beforehand. Endpoints of the same weight have evenly spread phases, so that together they are as regular as one.
Picking is then the same lock-free rotation as round_robin, whatever the number of endpoints.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from meshlib.pickers.base import ContractClass, Picker, PickerContext
from meshlib.pickers.candidates import weighted
from meshlib.pickers.round_robin import RotationPicker
from meshlib.pickers.settings import no_settings
from meshlib.pickers.subchannel import Subchannel

#: The longest period, in turns: 512 KiB of references and some 20 ms to build. Weights whose sum is larger are
#: scaled down to it: each is rounded to a 65,536th of the traffic, and never to nothing.
MAX_PERIOD = 65_536


def schedule(weights: Sequence[int]) -> list[int]:
    """One period as indices into ``weights`` (all positive). Exact when ``sum / gcd`` is at most MAX_PERIOD."""
    divisor = math.gcd(*weights)
    turns = [weight // divisor for weight in weights]
    total = sum(turns)
    if total > MAX_PERIOD:
        turns = [max(1, round(turn * MAX_PERIOD / total)) for turn in turns]
    if max(turns, default=0) <= 1:
        return list(range(len(turns)))
    alike = Counter(turns)
    met: Counter[int] = Counter()
    deadlines = []
    for i, turn in enumerate(turns):
        phase = (met[turn] + 0.5) / alike[turn]
        met[turn] += 1
        deadlines += [((k + phase) / turn, i) for k in range(turn)]
    deadlines.sort()
    return [i for _, i in deadlines]


class WeightedRoundRobin(RotationPicker):
    """Starts anywhere in the period, at random; goes on with its predecessor's turns when the schedule is the same."""

    contract: ClassVar[ContractClass] = ContractClass.WEIGHTED
    __slots__ = ()

    def __init__(self, subchannels: Sequence[Subchannel], context: PickerContext) -> None:
        members = weighted(subchannels)
        order = [members[i] for i in schedule([s.endpoint.weight for s in members])]
        super().__init__(subchannels, order, int(context.random() * len(order)))
        previous = context.previous
        if isinstance(previous, WeightedRoundRobin) and previous.order == self.order:
            self.turns = previous.turns


class WeightedRoundRobinBuilder:
    name = "weighted_round_robin"
    contract = ContractClass.WEIGHTED

    def parse_config(self, settings: Mapping[str, object], where: str) -> object:
        no_settings(settings, where)
        return None

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return WeightedRoundRobin(subchannels, context)


BUILDER = WeightedRoundRobinBuilder()
