"""What the hash policies share: the hash of a key, the table that owns keys, and the picker over such a table.

Hashing is xxHash64 of the key and of ``ip:port``, as in Envoy and gRPC A42, so that all processes and all
languages that see the same endpoints agree. The pod's uid is not part of it: a replaced pod on the same address
keeps its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol

from xxhash import xxh64_intdigest

from meshlib.pickers.base import NO_INFO, ContractClass, Picker, PickerContext, PickInfo
from meshlib.pickers.bounded_loads import BoundedHashPicker
from meshlib.pickers.candidates import weighted
from meshlib.pickers.subchannel import Subchannel

#: One more than the largest hash.
SPACE = 2**64


class HashTable(Protocol):
    """An immutable assignment of all 64-bit hashes to members."""

    def owner(self, hashed: int, /) -> Subchannel:
        """The member that owns a hash. Never called when there are no members."""
        ...

    def walk(self, hashed: int, /) -> Iterator[Subchannel]:
        """All members once, the owner first, the order fixed by the hash alone."""
        ...


def key_hash(key: str | bytes) -> int:
    """xxHash64 of a key; text counts as its UTF-8 (lone surrogates, which come from undecodable bytes, as they are)."""
    return xxh64_intdigest(key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key)


class HashPicker:
    """The owner of the request's key; a random one for a request without key; the next in order when excluded."""

    counts: ClassVar[bool] = False
    contract: ClassVar[ContractClass] = ContractClass.HASH
    __slots__ = ("_random", "made_of", "subchannels", "table")

    def __init__(
        self,
        subchannels: Sequence[Subchannel],
        table: HashTable | None,
        made_of: object,
        random: Callable[[], float],
    ) -> None:
        self.subchannels = tuple(subchannels)
        self.table = table
        self.made_of = made_of
        self._random = random

    def pick(self, info: PickInfo = NO_INFO, /) -> Subchannel | None:
        table = self.table
        if table is None:
            return None
        hashed = self.hashed(info)
        chosen = table.owner(hashed)
        if info.exclude and chosen in info.exclude:
            return next((s for s in table.walk(hashed) if s not in info.exclude), None)
        return chosen

    def hashed(self, info: PickInfo) -> int:
        """The hash that stands for a request."""
        key = info.hash_key
        return key_hash(key) if key is not None else int(self._random() * SPACE)


def build_hash_picker(
    subchannels: Sequence[Subchannel],
    make_table: Callable[[Sequence[Subchannel]], HashTable],
    config: object,
    balance_factor: int,
    context: PickerContext,
) -> Picker:
    """A picker over a table; the predecessor's table is kept when nothing it depends on has changed.

    Members are put in the order of their address first, so that the order in which they were learnt does not
    matter. ``balance_factor``: per cent of the mean load that one member may carry; 0: no bound.
    """
    members = sorted(weighted(subchannels), key=lambda s: (s.endpoint.address, s.endpoint.port))
    made_of = (config, tuple((member, member.endpoint.weight) for member in members))
    previous = context.previous
    inner = previous.unbounded if isinstance(previous, BoundedHashPicker) else previous
    if isinstance(inner, HashPicker) and inner.made_of == made_of:
        table = inner.table
    else:
        table = make_table(members) if members else None
    picker = HashPicker(subchannels, table, made_of, context.random)
    return BoundedHashPicker(picker, members, balance_factor, context) if balance_factor else picker
