"""Bounded loads for the hash policies: no member carries more than a set multiple of the mean load.

Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016): a key goes to its owner unless
that has ``ceil(c x mean)`` requests in flight already, the coming one counted in the mean; then to the next in
the key's own order that has room. There always is one, because the capacities of all add up to more than the
load.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import ceil
from typing import TYPE_CHECKING, ClassVar

from meshlib.pickers.base import NO_INFO, ContractClass, PickerContext, PickInfo
from meshlib.pickers.load_watch import LoadWatch
from meshlib.pickers.settings import Settings
from meshlib.pickers.subchannel import Subchannel

if TYPE_CHECKING:
    from meshlib.pickers.hashing import HashPicker

#: Per cent. Below 100 there would not be room for all requests (Envoy's ``hash_balance_factor`` has the same
#: minimum).
LEAST_FACTOR = 100
#: Per cent. At ten times the mean the bound no longer bounds anything; a larger figure is a typing error.
GREATEST_FACTOR = 1000


class LoadTotal(LoadWatch):
    """Requests in flight over all members, kept up to date one change at a time."""

    __slots__ = ("_seen", "total", "weight")

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        super().__init__(lock)
        self._seen: dict[Subchannel, int] = {}
        self.total = 0
        self.weight = 0

    def take(self, picker: HashPicker, hashed: int, factor: float, info: PickInfo) -> Subchannel | None:
        """The first in the key's order with room that is not excluded, already counted; None when all are excluded."""
        table = picker.table
        if table is None:
            return None
        with self._lock:
            self.catch_up()
            share = factor * (self.total + 1) / max(1, self.weight)
            chosen = first = None
            for member in table.walk(hashed):
                if member in info.exclude:
                    continue
                if first is None:
                    first = member
                if member.inflight < ceil(share * member.endpoint.weight):
                    chosen = member
                    break
            else:
                chosen = first  # those with room are excluded
            if chosen is not None:
                self._begin(chosen)
            return chosen

    def _add(self, member: Subchannel) -> None:
        self._seen[member] = 0
        self._update(member)

    def _remove(self, member: Subchannel) -> None:
        self.total -= self._seen.pop(member)

    def _update(self, member: Subchannel) -> None:
        seen = self._seen.get(member)
        if seen is not None:
            inflight = member.inflight
            self.total += inflight - seen
            self._seen[member] = inflight

    def _synced(self) -> None:
        self.weight = sum(self._weights.values())


class BoundedHashPicker:
    """A hash picker with bounded loads. Exact under threads: choosing and counting are one step under one lock."""

    counts: ClassVar[bool] = True
    contract: ClassVar[ContractClass] = ContractClass.HASH
    __slots__ = ("_factor", "_load", "subchannels", "unbounded")

    def __init__(
        self,
        unbounded: HashPicker,
        members: Sequence[Subchannel],
        balance_factor: int,
        context: PickerContext,
    ) -> None:
        self.subchannels = unbounded.subchannels
        self.unbounded = unbounded
        self._factor = balance_factor / 100
        previous = context.previous
        if isinstance(previous, BoundedHashPicker):
            self._load: LoadTotal = previous._load
        else:
            self._load = LoadTotal(context.new_lock())
        self._load.sync(members)

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        return self._load.take(self.unbounded, self.unbounded.hashed(info), self._factor, info)


def read_balance_factor(settings: Settings) -> int:
    """``hash_balance_factor``: per cent of the mean load that one endpoint may carry; 0 (the default): no bound."""
    factor = settings.integer("hash_balance_factor", 0, 0, GREATEST_FACTOR)
    if 0 < factor < LEAST_FACTOR:
        allowed = f"0 (no bound) or a whole number from {LEAST_FACTOR} to {GREATEST_FACTOR}"
        raise settings.bad("hash_balance_factor", allowed)
    return factor
