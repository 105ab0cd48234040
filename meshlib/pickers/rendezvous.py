"""rendezvous: every endpoint bids for the key, the highest bid wins (Thaler and Ravishankar, 1996).

Exactly the keys of an endpoint that leaves move, and they spread evenly over the others; shares are even. The
first pick of a key asks all endpoints (some 100 ns each); the winner is remembered for as long as the picker
lives, so that keys that come back cost the same with any number of endpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import log
from typing import cast

from xxhash import xxh64_intdigest

from meshlib.pickers.base import ContractClass, Picker, PickerContext
from meshlib.pickers.bounded_loads import read_balance_factor
from meshlib.pickers.candidates import weights_of
from meshlib.pickers.hashing import SPACE, build_hash_picker
from meshlib.pickers.settings import Settings
from meshlib.pickers.subchannel import Subchannel

#: Winners that are remembered, at most: about 7 MiB. When more keys than that are alive, all are forgotten at
#: once, which needs no order of use to be kept on every pick.
MEMORY = 65_536


@dataclass(frozen=True, slots=True)
class RendezvousConfig:
    hash_balance_factor: int = 0


class Rendezvous:
    """The bids; with unlike weights ``weight / -ln(u)``, which makes shares exact (Schindelhauer, Schomaker 2005)."""

    __slots__ = ("_members", "_seeds", "_weights", "_winners")

    def __init__(self, members: Sequence[Subchannel]) -> None:
        self._members = members
        self._seeds = [xxh64_intdigest(member.endpoint.authority.encode()) for member in members]
        self._weights = weights_of(members)
        self._winners: dict[int, Subchannel] = {}

    def owner(self, hashed: int, /) -> Subchannel:
        winner = self._winners.get(hashed)
        if winner is None:
            bids = self._bids(hashed)
            winner = self._members[bids.index(max(bids))]
            if len(self._winners) >= MEMORY:
                self._winners.clear()
            self._winners[hashed] = winner
        return winner

    def walk(self, hashed: int, /) -> Iterator[Subchannel]:
        owner = self.owner(hashed)
        yield owner
        bids = self._bids(hashed)
        for index in sorted(range(len(bids)), key=bids.__getitem__, reverse=True):
            if self._members[index] is not owner:
                yield self._members[index]

    def _bids(self, hashed: int) -> list[float]:
        draws = list(map(xxh64_intdigest, repeat(hashed.to_bytes(8, "big")), self._seeds))
        if self._weights is None:
            return cast("list[float]", draws)  # only compared: whole numbers are exact and need no conversion
        # Half a step above zero, where the logarithm has no value, and below one, where it is zero.
        return [
            weight / -log((draw + 0.5) / SPACE) for draw, weight in zip(draws, self._weights, strict=True)
        ]


class RendezvousBuilder:
    name = "rendezvous"
    contract = ContractClass.HASH

    def parse_config(self, settings: Mapping[str, object], where: str) -> RendezvousConfig:
        reader = Settings(settings, where)
        factor = read_balance_factor(reader)
        reader.finish()
        return RendezvousConfig(factor)

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        chosen = cast(RendezvousConfig, config)
        return build_hash_picker(subchannels, Rendezvous, chosen, chosen.hash_balance_factor, context)


BUILDER = RendezvousBuilder()
