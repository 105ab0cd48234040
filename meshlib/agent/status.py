"""Status: what the running agent believes, as one immutable value that the worker makes and everybody may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshlib.agent.backends.base import Draining, words
from meshlib.agent.desired import HealthPort, Note
from meshlib.agent.engine.node import FamilyEngine, NodeEngine
from meshlib.agent.objects import Failed
from meshlib.model.service import ServiceKey

#: Failed operations that are told in full; the rest is a number. A kernel that refuses one usually refuses thousands.
SHOWN = 20


@dataclass(frozen=True, slots=True)
class FamilyStatus:
    """One family. Counts are of now."""

    frontends: int
    objects: Mapping[str, int]  #: wanted, by kind
    applied: Mapping[str, int]  #: believed to be in the kernel, by kind
    pending: int
    draining: int  #: removed endpoints that still have connections
    generation: int  #: how often the facts have changed
    in_kernel: int  #: the newest generation that was wholly in the kernel
    held: int  #: removals that wait for a confirmation
    foreign: tuple[str, ...]  #: wanted objects in whose place somebody else's stands
    failed: tuple[Failed, ...]
    failures: int
    error: str
    synced: bool
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """All families, and what health is judged by."""

    families: Mapping[int, FamilyStatus] = field(default_factory=dict)
    health_ports: Mapping[ServiceKey, HealthPort] = field(default_factory=dict)
    pending_since: float | None = None
    synced: bool = False
    leaving: bool = False
    paused: bool = False


def status_of(engine: NodeEngine) -> Status:
    """On the worker thread."""
    ports: dict[ServiceKey, HealthPort] = {}
    for family in engine.families.values():
        for key, port in family.health_ports.items():
            known = ports.get(key)
            # Both families serve one Service through one port; the endpoints are pods, counted in either.
            if known is None or port.local_endpoints > known.local_endpoints:
                ports[key] = port
    return Status(
        families={number: _family(family) for number, family in engine.families.items()},
        health_ports=ports,
        pending_since=engine.pending_since,
        synced=engine.synced,
        leaving=engine.node.leaving,
        paused=any(family.programmer.paused for family in engine.families.values()),
    )


def _family(family: FamilyEngine) -> FamilyStatus:
    programmer = family.programmer
    planner, backend = programmer.planner, programmer.backend
    return FamilyStatus(
        frontends=len(programmer.frontends),
        objects=planner.wanted.count_by_kind(),
        applied=planner.count_applied(),
        pending=planner.pending,
        draining=backend.draining if isinstance(backend, Draining) else 0,
        generation=family.taken,
        in_kernel=family.applied,
        held=len(programmer.held),
        foreign=tuple(sorted(words(backend, key, None) for key in planner.foreign)),
        failed=family.failed[:SHOWN],
        failures=len(family.failed),
        error=str(family.error) if family.error is not None else "",
        synced=family.synced,
        notes=tuple(sorted(family.notes)),
    )
