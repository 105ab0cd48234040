"""round_robin: each in turn. Weights only decide who takes part (0: nobody's turn)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import ClassVar

from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.candidates import weighted
from meshlib.pickers.settings import no_settings
from meshlib.pickers.subchannel import Subchannel


class RotationPicker:
    """Goes round a fixed order without a lock: one shared counter, a position is the counter modulo the length.

    ``itertools.count`` advances in one step under the GIL. Without it two threads may at worst draw the same
    number and so the same endpoint once; ``itertools.cycle`` would not be safe there. The start is random, so
    that a fleet of clients that start together does not call the same endpoint; a successor goes on where its
    predecessor was.
    """

    counts: ClassVar[bool] = False
    contract: ClassVar[ContractClass] = ContractClass.UNIFORM
    __slots__ = ("_length", "_order", "_turns", "subchannels")

    def __init__(
        self, subchannels: Sequence[Subchannel], order: Sequence[Subchannel], context: PickerContext
    ) -> None:
        self.subchannels = tuple(subchannels)
        self._order = tuple(order)
        self._length = len(self._order)
        previous = context.previous
        if isinstance(previous, RotationPicker):
            self._turns: count[int] = previous._turns
        else:
            self._turns = count(int(context.random() * self._length))

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        try:
            chosen = self._order[next(self._turns) % self._length]
        except (
            ZeroDivisionError
        ):  # costs nothing until it happens; a test for emptiness would cost every pick
            return None
        if info.exclude and chosen in info.exclude:
            return self._after(info)
        return chosen

    def _after(self, info: PickInfo) -> Subchannel | None:
        """The next in order that is not excluded."""
        start = next(self._turns)
        for step in range(self._length):
            chosen = self._order[(start + step) % self._length]
            if chosen not in info.exclude:
                return chosen
        return None


class RoundRobin(RotationPicker):
    __slots__ = ()


class RoundRobinBuilder:
    name = "round_robin"
    contract = ContractClass.UNIFORM

    def parse_config(self, settings: Mapping[str, object], where: str) -> object:
        no_settings(settings, where)
        return None

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return RoundRobin(subchannels, weighted(subchannels), context)


BUILDER = RoundRobinBuilder()
