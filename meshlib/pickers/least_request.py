"""least_request: the less busy one of two drawn at random, by requests in flight from this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor
from typing import cast

from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.subchannel import Subchannel
from meshlib.pickers.two_choices import TwoChoicesPicker, parse_window


class LeastRequest(TwoChoicesPicker):
    __slots__ = ()

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        if info.now < self._careful_until or info.exclude:
            return self._carefully(info)
        random, pairs, others, twice = self._draws
        k = floor(random() * pairs)
        i = k // others
        chosen = twice[i]
        other = twice[i + 1 + k % others]
        if other.inflight < chosen.inflight:
            chosen = other
        with chosen.lock:
            chosen.inflight += 1
        return chosen

    def _better(self, one: int, than: int, now: float) -> bool:
        return self._load(one, now) < self._load(than, now)


class LeastRequestBuilder:
    name = "least_request"
    contract = ContractClass.LOAD_AWARE

    def parse_config(self, settings: Mapping[str, object], where: str) -> float:
        return parse_window(settings, where)

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return LeastRequest(subchannels, cast(float, config), context)


BUILDER = LeastRequestBuilder()
