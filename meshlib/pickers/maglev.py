"""maglev: a table in which every endpoint owns as nearly the same number of slots as possible (Eisenbud et al.,
NSDI 2016).

Shares are even to within one slot in a few hundred; when one of n endpoints leaves, its keys move and about as
many more (Envoy measures twice the disruption of a ring). A pick is one look into the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from xxhash import xxh64_intdigest

from meshlib.pickers.base import ContractClass, Picker, PickerContext
from meshlib.pickers.bounded_loads import read_balance_factor
from meshlib.pickers.hashing import build_hash_picker
from meshlib.pickers.settings import Settings
from meshlib.pickers.subchannel import Subchannel

#: Slots (the paper's and Envoy's default): a prime, and a hundred times as many as 655 endpoints.
TABLE_SIZE = 65_537
#: The paper's large table, half a second to build. Envoy allows 5,000,011, which here would let one annotation of a
#: Service, written by others, stop a client for seconds.
TABLE_SIZE_LIMIT = 655_373


@dataclass(frozen=True, slots=True)
class MaglevConfig:
    table_size: int = TABLE_SIZE
    hash_balance_factor: int = 0


class MaglevTable:
    """Slots with their owners; a hash belongs to slot ``hash % size``."""

    __slots__ = ("_members", "_size", "_slots")

    def __init__(self, members: Sequence[Subchannel], size: int) -> None:
        names = [member.endpoint.authority.encode() for member in members]
        slots = populate(names, [member.endpoint.weight for member in members], size)
        self._members = members
        self._slots = [members[index] for index in slots]
        self._size = size

    def owner(self, hashed: int, /) -> Subchannel:
        return self._slots[hashed % self._size]

    def walk(self, hashed: int, /) -> Iterator[Subchannel]:
        """Along the slots from the key's own (Envoy's walk); those for whom the table is too small come last."""
        seen: set[Subchannel] = set()
        start = hashed % self._size
        for step in range(self._size):
            owner = self._slots[(start + step) % self._size]
            if owner not in seen:
                seen.add(owner)
                yield owner
                if len(seen) == len(self._members):
                    return
        for member in self._members:
            if member not in seen:
                yield member


def populate(names: Sequence[bytes], weights: Sequence[int], size: int) -> list[int]:
    """The paper's Populate: in turn, each takes the first free slot of its own permutation of all slots.

    The permutation is ``offset + k x skip`` modulo the prime size. Weights as in Envoy: one of half the
    greatest weight has every second turn.
    """
    slots = [-1] * size
    positions = [xxh64_intdigest(name) % size for name in names]
    skips = [xxh64_intdigest(name, 1) % (size - 1) + 1 for name in names]
    heaviest = max(weights)
    due = [0] * len(names)
    free = size
    turn = 0
    while True:
        turn += 1
        for index, weight in enumerate(weights):
            if weight != heaviest:
                if turn * weight < due[index]:
                    continue
                due[index] += heaviest
            position, skip = positions[index], skips[index]
            while slots[position] >= 0:
                position += skip
                if position >= size:
                    position -= size
            slots[position] = index
            positions[index] = position
            free -= 1
            if not free:
                return slots


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


class MaglevBuilder:
    name = "maglev"
    contract = ContractClass.HASH

    def parse_config(self, settings: Mapping[str, object], where: str) -> MaglevConfig:
        reader = Settings(settings, where)
        size = reader.integer("table_size", TABLE_SIZE, 2, TABLE_SIZE_LIMIT)
        if not is_prime(size):
            raise reader.bad("table_size", f"a prime number (the default is {TABLE_SIZE})")
        factor = read_balance_factor(reader)
        reader.finish()
        return MaglevConfig(size, factor)

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        chosen = cast(MaglevConfig, config)
        return build_hash_picker(
            subchannels,
            lambda members: MaglevTable(members, chosen.table_size),
            chosen,
            chosen.hash_balance_factor,
            context,
        )


BUILDER = MaglevBuilder()
