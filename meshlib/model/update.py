"""Update: what resolvers publish. A Snapshot replaces, a Failure keeps the last good state, DoesNotExist empties."""

from __future__ import annotations

from dataclasses import dataclass

from meshlib.model.service import Service
from meshlib.model.slices import EndpointSlice


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All facts about one target's Service at one moment."""

    service: Service
    slices: tuple[EndpointSlice, ...]
    source: str  #: for people: ``kubernetes https://10.96.0.1 (v1)``, ``file shop.yaml``, ``dns``, ``static``
    version: str = ""  #: resourceVersion or content hash: comparable for equality only
    skipped: int = 0  #: entries refused or unreadable, counted since the start of the source


@dataclass(frozen=True, slots=True)
class Failure:
    """The source could not be asked or said nothing useful. The last good Snapshot stays in force.

    ``hopeless`` tells that waiting will not help soon (no RBAC, no credentials, refused): callers that wait
    for the first Snapshot go on to their fall-back at once instead of waiting out their bound.
    """

    error: Exception
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class DoesNotExist:
    """The source answered: there is no such Service or name (after the confirmations that its rules demand)."""

    reason: str


Update = Snapshot | Failure | DoesNotExist
