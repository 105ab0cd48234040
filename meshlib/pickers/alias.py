"""Alias table: a draw in proportion to weights in constant time (Walker 1977, in Vose's linear-time form, 1991)."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class AliasTable:
    """Immutable. ``draw`` gives an index with probability weight / sum; weights must be positive."""

    __slots__ = ("_aliases", "_keep", "_size")

    def __init__(self, weights: Sequence[float]) -> None:
        size = len(weights)
        mean = sum(weights) / size
        share = [weight / mean for weight in weights]
        aliases = list(range(size))
        low = [i for i, s in enumerate(share) if s < 1.0]
        high = [i for i, s in enumerate(share) if s >= 1.0]
        while low and high:
            poor, rich = low.pop(), high[-1]
            aliases[poor] = rich
            share[rich] -= 1.0 - share[poor]
            if share[rich] < 1.0:
                low.append(high.pop())
        for i in (*low, *high):  # only rounding is left over
            share[i] = 1.0
        self._aliases = tuple(aliases)
        self._keep = tuple(share)
        self._size = size

    def draw(self, random: Callable[[], float]) -> int:
        """One index. A single random number gives both the column (its whole part) and the side (its fraction)."""
        x = random() * self._size
        column = int(x)
        return column if x - column < self._keep[column] else self._aliases[column]
