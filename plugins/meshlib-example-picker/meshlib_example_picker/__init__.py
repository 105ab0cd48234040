"""shuffled: everybody once a round, in an order that is drawn anew for every few rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import cast

from meshlib.errors import ConfigError
from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.subchannel import Subchannel

#: Rounds in one order. One: no order lasts, so that no two clients can fall into step for longer than a round.
ROUNDS = 1


class Shuffled:
    """As even as ``round_robin``, without its fixed order of neighbours. May be used from any thread without locks."""

    #: It does not depend on requests in flight: whoever calls ``pick`` counts them.
    counts = False
    contract = ContractClass.UNIFORM

    def __init__(self, subchannels: Sequence[Subchannel], rounds: int, context: PickerContext) -> None:
        self.subchannels = tuple(subchannels)
        self._random = context.random
        self._turns = count()
        #: One tuple, replaced as a whole, so that no thread sees half of a shuffle.
        self._order = self._shuffled([s for s in subchannels if s.endpoint.weight > 0])
        self._lasts = rounds * len(self._order)

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        if not self._order:
            return None
        turn = next(self._turns)
        if turn % self._lasts == 0:
            self._order = self._shuffled(self._order)
        order = self._order
        for step in range(len(order)):
            chosen = order[(turn + step) % len(order)]
            if chosen not in info.exclude:
                return chosen
        return None

    def _shuffled(self, members: Sequence[Subchannel]) -> tuple[Subchannel, ...]:
        return tuple(sorted(members, key=lambda member: self._random()))


class ShuffledBuilder:
    """What the entry point names. ``rounds``: for how many rounds an order is kept, 1 to 1000."""

    name = "shuffled"
    contract = ContractClass.UNIFORM

    def parse_config(self, settings: Mapping[str, object], where: str) -> int:
        for key in settings:
            if key != "rounds":
                raise ConfigError(f"{where}{key}", "unknown setting", "known: rounds")
        rounds = settings.get("rounds", ROUNDS)
        if isinstance(rounds, bool) or not isinstance(rounds, int) or not 1 <= rounds <= 1000:
            raise ConfigError(f"{where}rounds", f"{rounds!r} is not a whole number from 1 to 1000")
        return rounds

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        return Shuffled(subchannels, cast(int, config), context)


BUILDER = ShuffledBuilder()
