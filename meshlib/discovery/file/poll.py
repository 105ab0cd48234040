"""One path that is looked at again and again: the manifests in force, and a word about what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from meshlib.discovery.base import ResolverContext
from meshlib.discovery.file.folder import FolderState, Registry, registry, scan
from meshlib.errors import DataError
from meshlib.model.address import RELAXED
from meshlib.model.events import EntrySkipped, SourceFailed, SourceRecovered

#: Seconds between two looks. A person who saves a file sees the effect at once; it costs one stat per file, and works
#: where change notifications do not (network file systems, ConfigMap volumes, every platform).
POLL = 0.25


class FolderPoll:
    """Lives on the control loop, where ``taken`` is called with each new state, and ``looked`` after each look.

    Manifests are written on this machine, so loopback and link-local addresses in them mean what they say.
    """

    def __init__(
        self,
        context: ResolverContext,
        path: str,
        poll: float,
        taken: Callable[[Registry], None],
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.state = FolderState()
        self.registry: Registry | None = None  #: None: not yet looked at
        self.looks = 0  #: how often the files have been looked at
        self._context = context
        self._poll = poll
        self._taken = taken
        self._looked = looked
        self._told: tuple[str, ...] = ()
        self._skipped: frozenset[tuple[str, str]] = frozenset()
        self._loaded_at: float | None = None
        self._generation = 0
        self._faults = 0
        self.task = context.spawn(self._run(), name=f"file {path}")

    @property
    def title(self) -> str:
        return f"file {os.path.basename(self.path) or self.path}"

    async def _run(self) -> None:
        while True:
            try:
                state = await self._context.run_blocking(scan, self.path, self.state, RELAXED)
            except (
                Exception
            ) as error:  # whatever a hostile file makes a parser raise: the last good state stays
                problem = DataError(self.path, f"cannot be read: {error!r}")
                known = self.state.problem
                state = self.state if str(known) == str(problem) else replace(self.state, problem=problem)
            self.looks += 1
            if self.registry is None or state is not self.state:
                self._take(state)
            self._looked()
            await self._context.sleep(self._poll)

    def _take(self, state: FolderState) -> None:
        self.state = state
        self.registry = found = registry(state)
        self._generation += 1
        self._loaded_at = self._context.now()
        self._tell(found)
        self._taken(found)

    def _tell(self, found: Registry) -> None:
        source = f"file {self.path}"
        problems = self.state.problems
        told = tuple(str(problem) for problem in problems)
        for problem in problems:
            if str(problem) not in self._told:
                self._faults += 1
                stale = any(file.objects is not None for file in self.state.files.values())
                self._context.emit(SourceFailed(source, problem, stale, self._poll))
        if self._told and not told:
            self._context.emit(SourceRecovered(source))
        self._told = told
        for place, reason in found.skipped:
            if (place, reason) not in self._skipped:
                self._context.emit(EntrySkipped(source, place, reason))
        self._skipped = frozenset(found.skipped)

    def describe(self) -> Mapping[str, Any]:
        """For people: where it comes from, how old it is, what is wrong."""
        now = self._context.now()
        return {
            "source": f"file {self.path}",
            "files": len(self.state.files),
            "age": now - self._loaded_at if self._loaded_at is not None else 0.0,
            "generation": self._generation,
            "stale": bool(self.state.problems) and self.registry is not None,
            "faults": self._faults,
            "problems": [str(problem) for problem in self.state.problems],
            "skipped": [f"{place}: {reason}" for place, reason in sorted(self._skipped)],
        }
