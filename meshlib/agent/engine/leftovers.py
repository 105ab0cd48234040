"""Leftovers: what another mode programmed on this node goes, once the chosen one has everything (make before break).

Endpoints of virtual servers go first, and keep their connections until these end or their time is over; then all the
rest goes, in the reverse of the order in which it came.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from meshlib.agent.backends.base import Backend
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.objects import Failed, ObjectKey, Operation, Verb
from meshlib.errors import MeshError

#: What a kernel answers that does not have a mode at all.
_LACKS = frozenset({errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})
#: Seconds until a removal that the kernel refused is tried again.
RETRY = 30.0


@dataclass(frozen=True, slots=True)
class Old:
    """A backend that is not the chosen one, for one family. ``kinds``: those of its kinds that only it has."""

    mode: str
    backend: Backend
    family: int
    kinds: tuple[str, ...]

    @property
    def entry(self) -> ObjectKey:
        return entry(self.mode, self.family)


def entry(mode: str, family: int) -> ObjectKey:
    """What the ledger holds while a mode's rules are here that programs alone can read (iptables): without it nobody
    would know that such a program is needed."""
    return ObjectKey("mode", (mode, family))


@dataclass(frozen=True, slots=True)
class Departed:
    """What one step removed, and what would not go."""

    mode: str
    family: int
    removed: int
    failed: tuple[Failed, ...] = ()
    error: str = ""  #: the kernel could not be read, or the ledger not be written


def others(chosen: str, kept: Collection[str], backends: Iterable[tuple[str, int, Backend]]) -> list[Old]:
    """The backends of other modes with the kinds that are not among the chosen one's (``kept``): two modes may share a
    table, which the chosen one has turned into its own already."""
    found = []
    for mode, family, backend in backends:
        kinds = tuple(kind for kind in backend.kinds if kind not in kept)
        if kinds:
            found.append(Old(mode if mode != chosen else f"{mode} before", backend, family, kinds))
    return found


class Leftovers:
    """Belongs to the worker's thread. ``record`` writes lines of the ledger; ``told`` hears what was done."""

    def __init__(
        self,
        olds: Iterable[Old],
        ledger: Ledger,
        record: Callable[[bytes], None],
        told: Callable[[Departed], None],
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        """``finished`` is called once, when nothing is left or can be done."""
        self._finished = finished
        self._ledger = ledger
        self._record = record
        self._told = told
        # One after the other within a family: what comes later may hold up what comes first.
        self._runs: dict[int, list[Iterator[float]]] = {}
        for old in olds:
            self._runs.setdefault(old.family, []).append(self._run(old))
        self._now = 0.0
        self.removed = 0  #: objects, so far

    def step(self, now: float) -> float | None:
        """Do what can be done. Returns when to be called next; None: nothing is left, or nothing more can be done."""
        self._now = now
        times: list[float] = []
        for runs in self._runs.values():
            while runs:
                at = next(runs[0], None)
                if at is not None:
                    times.append(at)
                    break
                runs.pop(0)
        if not times:
            self._finished()
        return min(times, default=None)

    def _run(self, old: Old) -> Iterator[float]:
        """Yields when it is to be continued."""
        noted = old.entry in self._ledger.owned
        if noted and not (probe := old.backend.probe()).usable:
            self._told(Departed(old.mode, old.family, 0, error=f"its rules stay: {probe.reason}"))
            return
        for members in (True, False):
            while (at := self._remove(old, members)) is not None:
                yield at
            while (ticked := old.backend.tick(self._now)) is not None:
                yield ticked
        if noted and not self._stays(old):
            problem = self._disown([old.entry])
            if problem:
                self._told(Departed(old.mode, old.family, 0, error=problem))

    def _remove(self, old: Old, members: bool) -> float | None:
        """Removes what is ours: members of other objects (endpoints), or the rest. Returns when to try again; None:
        there is nothing more to try."""
        backend = old.backend
        try:
            there = backend.dump(old.family)
        except (OSError, MeshError) as error:
            # A kernel without that mode says so here: there is nothing of it to be removed.
            if not members and getattr(error, "errno", None) not in _LACKS:
                self._told(Departed(old.mode, old.family, 0, error=str(error)))
            return None
        order = {kind: place for place, kind in enumerate(old.kinds)}
        keys = [key for key in there if key.kind in order and self._ours(backend, key)]
        keys = [key for key in keys if (backend.ledger_key(key) not in (None, key)) is members]
        keys.sort(key=lambda key: order[key.kind], reverse=True)
        if not keys:
            return None
        plan = tuple(Operation(Verb.REMOVE, key, there[key]) for key in keys)
        failed = tuple(backend.apply(plan, self._now))
        refused = {failure.operation.key for failure in failed}
        gone = [key for key in keys if key not in refused]
        problem = self._disown(key for key in gone if backend.ledger_key(key) == key)
        self.removed += len(gone)
        self._told(Departed(old.mode, old.family, len(gone), failed, problem))
        return self._now + RETRY if failed else None

    def _stays(self, old: Old) -> bool:
        """Whether something may be there still."""
        try:
            return any(key.kind in old.kinds for key in old.backend.dump(old.family))
        except (OSError, MeshError):
            return True

    def _disown(self, keys: Iterable[ObjectKey]) -> str:
        """What is wrong with the ledger; "" where nothing is."""
        try:
            self._record(self._ledger.disown(keys))
        except OSError as error:  # an entry too many is harmless
            return f"the ledger: {error}"
        return ""

    def _ours(self, backend: Backend, key: ObjectKey) -> bool:
        entry = backend.ledger_key(key)
        return entry is None or entry in self._ledger.owned
