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
    """INTERNAL: by name or clusterIP from inside. EXTERNAL: nodePort, LB VIP, externalIP. SHORT_CIRCUIT: the latter from inside."""

    INTERNAL = "internal"
    EXTERNAL = "external"
    SHORT_CIRCUIT = "short-circuit"
