"""The contract between the engine and a backend.

A backend belongs to one thread: the engine calls it from its worker thread only; it keeps no thread, loop or clock of
its own. Times are monotonic seconds, passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from meshlib.agent.desired import Frontend, Hairpin, Place
from meshlib.agent.objects import Failed, ObjectKey, Objects, Plan


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a backend works here, found by trying (in a namespace of its own where that is permitted)."""

    usable: bool
    reason: str  #: why not, and what to do about it; where usable, versions of what was found
    families: tuple[int, ...] = (4, 6)
    complete: bool = True  #: False: parts of the specification are not there, and ``reason`` names them


class Backend(Protocol):
    """One way to program one family of a node."""

    @property
    def name(self) -> str:
        """ipvs, nftables, iptables or userspace."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its objects in the order in which they are added; removal goes the other way round."""
        ...

    def probe(self) -> Probe:
        """Try it out. Leaves nothing behind, raises nothing."""
        ...

    def fixed(self, place: Place) -> Objects:
        """What is there whatever the frontends are: tables, chains, the pod ranges. Pure."""
        ...

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """What one frontend needs. Pure, and independent of other frontends."""
        ...

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """What one local endpoint needs. Pure."""
        ...

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """The object by whose entry in the ledger this one is known to be ours (a destination by its service); None:
        the kernel object bears our mark (a table's name, a route's protocol number). Pure."""
        ...

    def dump(self, family: int) -> Objects:
        """What of ours (and, where ours cannot be told apart, of anybody) the kernel holds. Raises OSError."""
        ...

    def apply(self, plan: Plan, now: float) -> Sequence[Failed]:
        """Carry the plan out in order, as far as it goes; what failed comes back, the rest is done. Raises nothing
        that the kernel says; a lost answer (ENOBUFS) makes every operation without an answer a failed one."""
        ...

    def tick(self, now: float) -> float | None:
        """Work that waits for time (draining destinations). Returns when to be called next; None: nothing waits."""
        ...


@runtime_checkable
class Draining(Protocol):
    """A backend whose removed endpoints keep their connections for a while."""

    @property
    def draining(self) -> int:
        """How many wait."""
        ...


@runtime_checkable
class Cutting(Protocol):
    """A backend that can stop waiting for connections that lead nowhere."""

    def cut(self, addresses: Collection[str], now: float) -> None:
        """Nobody is at these addresses any more: what waits for them goes with the next ``tick``."""
        ...


@runtime_checkable
class Speaking(Protocol):
    """A backend whose objects need translating before people can read them."""

    def words(self, key: ObjectKey, value: Any) -> str:
        """One object in words, on one line. Pure."""
        ...


def words(backend: Backend, key: ObjectKey, value: Any) -> str:
    """One object in words, whatever the backend. Pure."""
    if isinstance(backend, Speaking):
        return backend.words(key, value)
    return f"{key.kind} {key.name}" + ("" if value is None else f" = {value}")
