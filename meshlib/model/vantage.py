"""VantagePoint: from where we look. Path: through which door of the Service."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VantagePoint:
    """Own node and zone (empty: unknown) and the families this host can dial, preferred first."""

    node: str = ""
    zone: str = ""
    families: tuple[int, ...] = (4, 6)


class Path(enum.Enum):
    """Through which door of the Service traffic comes.

    INTERNAL: by name or clusterIP, from inside. EXTERNAL: node port, load balancer or external IP, from outside.
    SHORT_CIRCUIT: one of those external addresses, dialled from inside.
    """

    INTERNAL = "internal"
    EXTERNAL = "external"
    SHORT_CIRCUIT = "short-circuit"

    # Members are compared by identity, and looked up by the ten thousand: Enum's own hash is written in Python.
    __hash__ = object.__hash__
