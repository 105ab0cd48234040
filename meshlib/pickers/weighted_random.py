"""weighted_random: each pick on its own, in proportion to weights, in constant time (alias method)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from meshlib.pickers.alias import AliasTable
from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.candidates import draw_excluding, weighted
from meshlib.pickers.settings import no_settings
from meshlib.pickers.subchannel import Subchannel


class WeightedRandom:
    """Draws in proportion to weights; keeps no state."""

    counts: ClassVar[bool] = False
    contract: ClassVar[ContractClass] = ContractClass.WEIGHTED
    __slots__ = ("_members", "_random", "_table", "subchannels")

    def __init__(self, subchannels: Sequence[Subchannel], context: PickerContext) -> None:
        self.subchannels = tuple(subchannels)
        self._members = weighted(subchannels)
        self._table = AliasTable([s.endpoint.weight for s in self._members]) if self._members else None
        self._random = context.random

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        table = self._table
        if table is None:
            return None
        if info.exclude:
            return draw_excluding(
                lambda: self._members[table.draw(self._random)], self._members, info.exclude, self._random
            )
        return self._members[table.draw(self._random)]


class WeightedRandomBuilder:
    name = "weighted_random"
    contract = ContractClass.WEIGHTED

    def parse_config(self, settings: Mapping[str, object], where: str) -> object:
        no_settings(settings, where)
        return None

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return WeightedRandom(subchannels, context)


BUILDER = WeightedRandomBuilder()
