"""Power of two choices: draw two at random, take the better one (Mitzenmacher 1996; Envoy's and gRPC A48's
default).

Constant time whatever the number of endpoints; no endpoint gets more than twice its share however attractive it
looks, so that clients with the same stale view do not trample one endpoint. What "better" means is the
subclass's.

Two ways lead to a pick. The fast one, in the subclasses, draws two different members, all alike. The careful
one, here, also knows weights, ramps and exclusions: it draws each of the two in proportion to weight x ramp,
and both may be the same, because forcing them to differ would cancel the weights of a small set. The better one
of two equals is the first drawn, so that equals are picked exactly in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import ClassVar

from meshlib.pickers.alias import AliasTable
from meshlib.pickers.base import ContractClass, PickerContext, PickInfo
from meshlib.pickers.candidates import DRAWS, weighted, weights_of
from meshlib.pickers.ramp import MAX_WINDOW, WINDOW, ramp
from meshlib.pickers.settings import Settings
from meshlib.pickers.subchannel import Subchannel


class TwoChoicesPicker:
    """What the policies with two choices share. ``window``: of the slow start, seconds; 0 switches it off."""

    counts: ClassVar[bool] = True
    contract: ClassVar[ContractClass] = ContractClass.LOAD_AWARE
    __slots__ = (
        "_careful_until",
        "_draws",
        "_lighter",
        "_members",
        "_random",
        "_table",
        "_window",
        "subchannels",
    )

    def __init__(self, subchannels: Sequence[Subchannel], window: float, context: PickerContext) -> None:
        self.subchannels = tuple(subchannels)
        self._members = members = weighted(subchannels)
        self._random = context.random
        self._window = window
        size = len(members)
        #: (random, pairs, others, twice), for the fast way. A whole number k below ``pairs`` stands for two different
        #: members: i = k // others, and the one that follows k % others places behind it in ``twice``. One random
        #: number instead of two, and one attribute instead of four.
        self._draws = (self._random, size * (size - 1), size - 1, members + members)
        weights = weights_of(members)
        self._table = AliasTable(weights) if weights else None
        mean = sum(weights) / size if weights else 1.0
        #: By how much a request in flight counts less on a member that is heavier than the mean.
        self._lighter = tuple(mean / weight for weight in weights) if weights else None
        #: Until when (of the caller's clock) the fast way is not good enough.
        if weights or size < 2:
            self._careful_until = math.inf
        else:
            self._careful_until = max(s.joined_at for s in members) + window if window > 0 else -math.inf

    def _carefully(self, info: PickInfo) -> Subchannel | None:
        if not self._members:
            return None
        i = self._draw(info.now, info.exclude)
        if i is None:
            return None
        j = self._draw(info.now, info.exclude)
        if j is not None and j != i and self._better(j, i, info.now):
            i = j
        chosen = self._members[self._unless_bad(i, info)]
        with chosen.lock:
            chosen.inflight += 1
        return chosen

    def _draw(self, now: float, exclude: Set[Subchannel]) -> int | None:
        """An index in proportion to weight x ramp, by rejection; None when all are excluded."""
        members, random, table, window = self._members, self._random, self._table, self._window
        ramping: int | None = None
        for _ in range(DRAWS):
            i = table.draw(random) if table is not None else int(random() * len(members))
            member = members[i]
            if member in exclude:
                continue
            if now - member.joined_at < window and random() >= ramp(now, member.joined_at, window):
                ramping = i
                continue
            return i
        if ramping is not None:
            return ramping
        left = [i for i, member in enumerate(members) if member not in exclude]
        return left[int(random() * len(left))] if left else None

    def _unless_bad(self, one: int, info: PickInfo) -> int:
        """The choice, or another draw when the subclass finds it too bad to be taken."""
        return one

    def _better(self, one: int, than: int, now: float) -> bool:
        """Whether member ``one`` is strictly better than member ``than``: the subclass's idea of it."""
        raise NotImplementedError

    def _load(self, index: int, now: float) -> float:
        """Requests in flight, the coming one included, seen against the member's weight and ramp."""
        member = self._members[index]
        load = float(member.inflight)
        if self._lighter is not None:
            load *= self._lighter[index]
        if now - member.joined_at < self._window:
            load /= ramp(now, member.joined_at, self._window)
        return load + 1.0


def parse_window(settings: Mapping[str, object], where: str) -> float:
    """The settings of the policies with two choices: ``slow_start_window``, seconds."""
    reader = Settings(settings, where)
    window = reader.number("slow_start_window", WINDOW, 0.0, MAX_WINDOW)
    reader.finish()
    return window
