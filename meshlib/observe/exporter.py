"""What an exporter is given and what it is: the contract of the entry-point group ``meshlib.exporters``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from meshlib.observe.catalogue import Reading

if TYPE_CHECKING:
    from threading import Lock

Stop = Callable[[], None]


class Read(Protocol):
    """Reads everything now, in any thread. ``endpoints``: also what is told per endpoint."""

    def __call__(self, *, endpoints: bool = False) -> Reading: ...


class Repeat(Protocol):
    """Have ``work`` called every two seconds on the control thread, in this process and in those that are forked from
    it, from when it first needs that thread; and once more when the thread or the process ends. Never by two threads at
    once, never while the process forks.

    ``work`` must be quick and must not block. What it raises is reported, and does not end it; the result does.
    """

    def __call__(self, name: str, work: Callable[[], None]) -> Stop: ...


@dataclass(frozen=True, slots=True)
class Source:
    """What the runtime gives an exporter. ``now``: monotonic seconds. ``generation``: grows with each fork."""

    read: Read
    repeat: Repeat
    now: Callable[[], float]
    generation: Callable[[], int]
    new_lock: Callable[[], Lock]


class ExporterBuilder(Protocol):
    """Found by name, from the built-ins or the entry points."""

    @property
    def name(self) -> str: ...

    def start(self, source: Source, **options: Any) -> Stop:
        """Begin to export, with what the caller of ``start_exporter`` gave. Raises ConfigError."""
        ...
