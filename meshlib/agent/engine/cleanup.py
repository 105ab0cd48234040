"""Cleaning up: everything that is ours leaves the kernel, and nothing else. Can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshlib.agent.backends.base import Backend
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.planner import Planner
from meshlib.agent.objects import Failed, ObjectKey, Plan
from meshlib.errors import MeshError


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What one backend's family had, and what would not go."""

    plan: Plan = ()
    failed: tuple[Failed, ...] = ()
    error: str = ""  #: the kernel could not be read


def clean(
    backend: Backend,
    family: int,
    ledger: Ledger,
    record: Callable[[bytes], None],
    now: float,
    dry_run: bool = False,
) -> Cleaned:
    """Remove the objects of one backend and family that bear our mark or stand in the ledger. Goes on after errors.

    ``record`` writes lines of the ledger; raises OSError when it cannot.
    """
    planner = Planner(backend.kinds)

    def ours(key: ObjectKey) -> bool:
        entry = backend.ledger_key(key)
        return entry is None or entry in ledger.owned

    try:
        planner.audit(backend.dump(family), ours)
    except (OSError, MeshError) as error:
        return Cleaned(error=str(error))
    plan = planner.plan()
    if dry_run or not plan:
        return Cleaned(plan)
    failed = tuple(backend.apply(plan, now))
    refused = {failure.operation.key for failure in failed}
    gone = [operation.key for operation in plan if operation.key not in refused]
    record(ledger.disown(key for key in gone if backend.ledger_key(key) == key))
    return Cleaned(plan, failed)


def summary(cleaned: Mapping[str, Cleaned]) -> tuple[int, int]:
    """How many objects went, and how many would not."""
    removed = sum(len(each.plan) - len(each.failed) for each in cleaned.values())
    return removed, sum(len(each.failed) + bool(each.error) for each in cleaned.values())
