"""The contract of a part of the ipvs backend: it owns some kinds of objects, and what is said to the kernel about them.

Address binding, servers, and the companion table are parts. Like a Backend, a part belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from meshlib.agent.backends.base import Probe
from meshlib.agent.desired import Frontend, Hairpin, Place
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation


class Part(Protocol):
    """See the methods of the same names in ``meshlib.agent.backends.base.Backend``."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its kinds, in the order of addition."""
        ...

    def fixed(self, place: Place) -> Objects:
        """Pure."""
        ...

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """Pure."""
        ...

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """Pure."""
        ...

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """Pure."""
        ...

    def dump(self, family: int) -> Objects:
        """Raises OSError."""
        ...

    def apply(self, plan: Sequence[Operation], now: float) -> Sequence[Failed]:
        """Operations of its kinds only, in order. Raises OSError where nothing can be said about any of them."""
        ...

    def close(self) -> None:
        """Give back what is open; what is in the kernel stays."""
        ...


class Companion(Part, Protocol):
    """The part that says what IPVS cannot: drop, masquerade, source ranges, the way past a Local policy."""

    def probe(self) -> Probe:
        """Whether it works here."""
        ...

    def tick(self, now: float) -> float | None:
        """Its work that waits for time; when to be called next."""
        ...
