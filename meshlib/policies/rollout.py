"""Staged roll-out: how much of a target's traffic meshlib carries, from what is configured and what its Service says.

Three modes, each doing less than the next: ``off`` < ``observe`` < ``on``. Whoever configures this process chooses one;
the Service, which other tenants write, may only lower it. With ``on``, ``percent`` says which share of the requests
goes the mesh's way, the rest goes the bare way, as all of them do with the other two.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

#: The golden ratio's fraction. Multiples of an irrational number, without their whole part, lie evenly in [0, 1)
#: (Weyl's equidistribution theorem), those of every n-th request too, and of all such numbers this one spreads the
#: first few best. So a share is kept from the first dozens of requests on, and a client that sends two kinds of
#: requests in turn sends the same share of each, which taking every n-th request would not give.
_STEP = 0.6180339887498949


class Mode(enum.Enum):
    """What meshlib does with the requests of a target, from less to more."""

    OFF = "off"  #: nothing: every request goes the bare way
    OBSERVE = "observe"  #: discovers, picks and counts; every request goes the bare way
    ON = "on"  #: the share ``percent`` of the requests goes the mesh's way

    @property
    def rank(self) -> int:
        """0 to 2; the lower one wins where two are asked for."""
        return _RANKS[self]


_RANKS = {mode: rank for rank, mode in enumerate(Mode)}


class Way(enum.Enum):
    """Which way one request takes, and why."""

    MESH = "mesh"
    BARE_OFF = "bare_off"
    BARE_OBSERVE = "bare_observe"
    BARE_PERCENT = "bare_percent"  #: not among the share


@dataclass(frozen=True, slots=True)
class Wish:
    """What is configured for one target, each with the place that says so.

    ``percent``: 0 to 100. ``allowed``: whether the allow-list has it; True where there is no list.
    """

    mode: Mode = Mode.ON
    percent: float = 100.0
    allowed: bool = True
    mode_source: str = "default"
    percent_source: str = "default"
    allowed_source: str = "default"


@dataclass(frozen=True, slots=True)
class Decision:
    """What holds for a target. ``source``: the place that decided; ``reason``: the same in words."""

    mode: Mode
    percent: float
    source: str
    reason: str

    @property
    def everything(self) -> bool:
        """Whether every request goes the mesh's way."""
        return self.mode is Mode.ON and self.percent >= 100.0

    def __str__(self) -> str:
        return f"on at {self.percent:g} %" if self.mode is Mode.ON else self.mode.value


def decide(wish: Wish, annotated: Mode | None = None, annotation: str = "") -> Decision:
    """The lowest of what is asked for. ``annotated``: what the Service says, in the place ``annotation``."""
    if not wish.allowed:
        return Decision(Mode.OFF, wish.percent, wish.allowed_source, "not in the list allow_targets")
    if annotated is not None and annotated.rank < wish.mode.rank:
        return Decision(annotated, wish.percent, annotation, f"the Service says {annotated.value}")
    if wish.mode is Mode.ON and wish.percent < 100.0:
        return Decision(wish.mode, wish.percent, wish.percent_source, f"percent is {wish.percent:g}")
    return Decision(wish.mode, wish.percent, wish.mode_source, f"mode is {wish.mode.value}")


def following(point: float) -> float:
    """The point in [0, 1) of the next request, from that of the one before. The first may be any."""
    return (point + _STEP) % 1.0


def in_share(point: float, percent: float) -> bool:
    """Whether the request with this point is among the share; nobody is of 0, everybody of 100."""
    return point < percent / 100.0
