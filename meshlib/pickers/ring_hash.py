"""ring_hash: each endpoint owns the arcs before its many points on a ring of 64-bit hashes (Karger 1997; gRPC
A42, Envoy).

When one of n endpoints joins or leaves, only about 1/n of the keys move. The shares are uneven by about ``1 /
sqrt(points per endpoint)``: prefer ``maglev`` where even load matters more than few moves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import cast

from xxhash import xxh64_intdigest

from meshlib.pickers.base import ContractClass, Picker, PickerContext
from meshlib.pickers.bounded_loads import read_balance_factor
from meshlib.pickers.hashing import build_hash_picker
from meshlib.pickers.settings import Settings
from meshlib.pickers.subchannel import Subchannel

#: Points on the ring, at least (Envoy's and A42's default).
MIN_RING_SIZE = 1024
#: Points on the ring, at most. Envoy's default of 8,388,608 takes ten seconds to build in Python and A42's
#: 4,096 gives a thousand endpoints four points each; this takes some 60 ms.
MAX_RING_SIZE = 65_536
#: What either setting may be at most: half a second to build. Envoy and A42 allow 8,388,608, which here would let one
#: annotation of a Service, written by others, stop a client for a quarter of a minute.
RING_SIZE_LIMIT = 262_144


@dataclass(frozen=True, slots=True)
class RingHashConfig:
    min_ring_size: int = MIN_RING_SIZE
    max_ring_size: int = MAX_RING_SIZE
    hash_balance_factor: int = 0


class Ring:
    """Points in ascending order with their owners. A hash belongs to the first point that is not below it."""

    __slots__ = ("_owners", "_points", "_size")

    def __init__(self, members: Sequence[Subchannel], min_size: int, max_size: int) -> None:
        entries: list[tuple[int, int]] = []
        for index, points in enumerate(points_of([m.endpoint.weight for m in members], min_size, max_size)):
            authority = members[index].endpoint.authority.encode()
            entries += [(xxh64_intdigest(b"%s_%d" % (authority, i)), index) for i in range(points)]
        entries.sort()
        self._points = [point for point, _ in entries]
        self._owners = [members[index] for _, index in entries]
        self._size = len(entries)

    def owner(self, hashed: int, /) -> Subchannel:
        return self._owners[bisect_left(self._points, hashed) % self._size]

    def walk(self, hashed: int, /) -> Iterator[Subchannel]:
        start = bisect_left(self._points, hashed)
        seen: set[Subchannel] = set()
        for step in range(self._size):
            owner = self._owners[(start + step) % self._size]
            if owner not in seen:
                seen.add(owner)
                yield owner


def points_of(weights: Sequence[int], min_size: int, max_size: int) -> list[int]:
    """How many points each weight gets: A42's rule, except that every endpoint gets at least one.

    The lightest gets a whole number of points, as few as make the ring ``min_size`` long; the fractions of the
    others are carried on, so that the ring is as long as planned.
    """
    total = sum(weights)
    least = min(weights) / total
    scale = min(ceil(least * min_size) / least, max_size)
    points, current, target = [], 0, 0.0
    for weight in weights:
        target += scale * weight / total
        # Sums of fractions that should be whole are a hair off it.
        upto = max(current + 1, ceil(target - 1e-9))
        points.append(upto - current)
        current = upto
    return points


class RingHashBuilder:
    name = "ring_hash"
    contract = ContractClass.HASH

    def parse_config(self, settings: Mapping[str, object], where: str) -> RingHashConfig:
        reader = Settings(settings, where)
        least = reader.integer("min_ring_size", MIN_RING_SIZE, 1, RING_SIZE_LIMIT)
        most = reader.integer("max_ring_size", max(MAX_RING_SIZE, least), 1, RING_SIZE_LIMIT)
        factor = read_balance_factor(reader)
        reader.finish()
        if least > most:
            raise reader.bad("min_ring_size", f"at most max_ring_size ({most})")
        return RingHashConfig(least, most, factor)

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        chosen = cast(RingHashConfig, config)
        return build_hash_picker(
            subchannels,
            lambda members: Ring(members, chosen.min_ring_size, chosen.max_ring_size),
            chosen,
            chosen.hash_balance_factor,
            context,
        )


BUILDER = RingHashBuilder()
