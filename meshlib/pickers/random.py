"""random: each pick on its own, all alike. Weights only decide who takes part (0: never drawn)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.candidates import draw_excluding, weighted
from meshlib.pickers.settings import no_settings
from meshlib.pickers.subchannel import Subchannel


class Random:
    """Draws uniformly; keeps no state."""

    counts: ClassVar[bool] = False
    contract: ClassVar[ContractClass] = ContractClass.UNIFORM
    __slots__ = ("_members", "_random", "subchannels")

    def __init__(self, subchannels: Sequence[Subchannel], context: PickerContext) -> None:
        self.subchannels = tuple(subchannels)
        self._members = weighted(subchannels)
        self._random = context.random

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        if not self._members:
            return None
        if info.exclude:
            return draw_excluding(self._draw, self._members, info.exclude, self._random)
        return self._members[int(self._random() * len(self._members))]

    def _draw(self) -> Subchannel:
        return self._members[int(self._random() * len(self._members))]


class RandomBuilder:
    name = "random"
    contract = ContractClass.UNIFORM

    def parse_config(self, settings: Mapping[str, object], where: str) -> object:
        no_settings(settings, where)
        return None

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return Random(subchannels, context)


BUILDER = RandomBuilder()
