"""round_robin: each in turn. Weights only decide who takes part (0: nobody's turn)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, cycle
from typing import ClassVar

from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.candidates import weighted
from meshlib.pickers.settings import no_settings
from meshlib.pickers.subchannel import Subchannel

#: With the GIL ``next(itertools.cycle(...))`` is one step that no other thread can split.
_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


class Turns:
    """Goes round an order like ``itertools.cycle``, for interpreters without the GIL, where a shared cycle may crash.

    Two threads may at worst draw the same turn, and so the same endpoint once.
    """

    __slots__ = ("_numbers", "_order")

    def __init__(self, order: Sequence[Subchannel]) -> None:
        self._order = order
        self._numbers = count()

    def __iter__(self) -> Iterator[Subchannel]:
        return self

    def __next__(self) -> Subchannel:
        if not self._order:
            raise StopIteration
        return self._order[next(self._numbers) % len(self._order)]


class RotationPicker:
    """Goes round a fixed order without a lock. The start is given: see the builders."""

    counts: ClassVar[bool] = False
    contract: ClassVar[ContractClass] = ContractClass.UNIFORM
    __slots__ = ("order", "subchannels", "turns")

    def __init__(self, subchannels: Sequence[Subchannel], order: Sequence[Subchannel], start: int) -> None:
        self.subchannels = tuple(subchannels)
        self.order = tuple(order)
        rotated = self.order[start:] + self.order[:start]
        self.turns: Iterator[Subchannel] = cycle(rotated) if _GIL else Turns(rotated)

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        chosen = next(self.turns, None)
        if info.exclude and chosen in info.exclude:
            return self._after(info)
        return chosen

    def _after(self, info: PickInfo) -> Subchannel | None:
        """The next in turn that is not excluded."""
        for _ in self.order:
            chosen = next(self.turns)
            if chosen not in info.exclude:
                return chosen
        return next(
            (s for s in self.order if s not in info.exclude), None
        )  # other threads took the turns between


class RoundRobin(RotationPicker):
    """Starts at random, so that a fleet of clients that start together does not call one endpoint first.

    A successor goes on where its predecessor was, or an endpoint that is early in the list would be favoured by
    frequent updates.
    """

    __slots__ = ()

    def __init__(self, subchannels: Sequence[Subchannel], context: PickerContext) -> None:
        order = weighted(subchannels)
        previous = context.previous
        start = None
        if isinstance(previous, RoundRobin):
            up_next = next(previous.turns, None)
            start = next((i for i, member in enumerate(order) if member is up_next), None)
        super().__init__(subchannels, order, int(context.random() * len(order)) if start is None else start)


class RoundRobinBuilder:
    name = "round_robin"
    contract = ContractClass.UNIFORM

    def parse_config(self, settings: Mapping[str, object], where: str) -> object:
        no_settings(settings, where)
        return None

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return RoundRobin(subchannels, context)


BUILDER = RoundRobinBuilder()
