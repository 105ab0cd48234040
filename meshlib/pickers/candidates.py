"""What every policy does with its list first, and with the subchannels that a retry has used up."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from meshlib.pickers.subchannel import Subchannel

#: Draws before an exclusion is answered by looking at the whole list. A retry excludes a few of many, so that
#: one or two draws are enough; with half of the list excluded eight draws still fail only once in 256.
DRAWS = 8


def weighted(subchannels: Sequence[Subchannel]) -> tuple[Subchannel, ...]:
    """The subchannels that may be picked: weight 0 means never."""
    return tuple(s for s in subchannels if s.endpoint.weight > 0)


def weights_of(subchannels: Sequence[Subchannel]) -> tuple[int, ...] | None:
    """The weights, or None when they are all alike and so mean nothing."""
    weights = tuple(s.endpoint.weight for s in subchannels)
    return weights if weights and min(weights) != max(weights) else None


def draw_excluding(
    draw: Callable[[], Subchannel],
    subchannels: Sequence[Subchannel],
    exclude: Set[Subchannel],
    random: Callable[[], float],
) -> Subchannel | None:
    """A draw that is not excluded, keeping the proportions of ``draw``; None when nothing is left.

    Falls back to a uniform choice among what is left when nearly everything is excluded.
    """
    for _ in range(DRAWS):
        chosen = draw()
        if chosen not in exclude:
            return chosen
    left = [s for s in subchannels if s not in exclude]
    return left[int(random() * len(left))] if left else None
