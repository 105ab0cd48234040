"""Planner: the difference between what is wanted and what the kernel holds, as an ordered plan. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from meshlib.agent.desired import FrontendKey
from meshlib.agent.engine.wanted import Wanted
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Plan, Verb

_ABSENT: Any = object()
_name = attrgetter("name")


@dataclass(frozen=True, slots=True)
class Drift:
    """What an audit found that was not about to be written anyway: objects that were gone, had another value, or were
    ours and not wanted any more."""

    missing: tuple[ObjectKey, ...] = ()
    different: tuple[ObjectKey, ...] = ()
    surplus: tuple[ObjectKey, ...] = ()
    foreign: tuple[ObjectKey, ...] = ()  #: wanted, but somebody else's object stands there: left alone

    @property
    def count(self) -> int:
        """Objects that will be mended."""
        return len(self.missing) + len(self.different) + len(self.surplus)


class Planner:
    """What was applied last, what is wanted, and which objects wait to be brought there. Belongs to one thread.

    An object stays pending until it was applied: a failed operation is planned again, with whatever changed meanwhile.
    ``kinds`` gives the order of additions; removals go the other way, after all additions (make before break).
    """

    def __init__(
        self, kinds: Collection[str], owner: Callable[[ObjectKey], ObjectKey | None] = lambda key: None
    ) -> None:
        """``owner``: the object that another one belongs to (a destination to its virtual server), if any."""
        self.wanted = Wanted()
        self._owner = owner
        self.applied: dict[ObjectKey, Any] = {}
        self._kinds = tuple(kinds)
        self._pending: set[ObjectKey] = set()
        self._counts: Counter[str] = Counter()  # of applied, by kind
        self._foreign: set[ObjectKey] = set()

    def count_applied(self) -> dict[str, int]:
        """How many objects of each kind the kernel holds, as far as we know."""
        return {kind: count for kind, count in self._counts.items() if count}

    @property
    def pending(self) -> int:
        """Objects that wait."""
        return len(self._pending)

    @property
    def foreign(self) -> frozenset[ObjectKey]:
        """Wanted objects in whose place somebody else's stands."""
        return frozenset(self._foreign)

    def change(self, source: Any, old: Objects, new: Objects) -> None:
        """A source needs ``new`` instead of ``old``. Sources are tuples that are ordered among each other; one that
        holds a FrontendKey gives its operations that reason."""
        for key in self.wanted.change(source, old, new):
            self._judge(key)

    def plan(self) -> Plan:
        """The operations that lead from what is applied to what is wanted; empty when nothing is pending."""
        additions: list[Operation] = []
        removals: list[Operation] = []
        find, applied = self.wanted.find, self.applied
        add, change, remove = Verb  # looking them up by name takes longer than all the rest
        for key in self._in_order(self._pending):
            wanted = find(key)
            if wanted is None:
                removals.append(Operation(remove, key, applied.get(key, _ABSENT)))
            else:
                source, value = wanted
                verb = change if key in applied else add
                additions.append(Operation(verb, key, value, _why(source)))
        return (*additions, *reversed(removals))

    def done(self, plan: Plan, failed: Iterable[Failed] = ()) -> None:
        """The plan was carried out, except for what failed."""
        refused = {failure.operation.key for failure in failed}
        applied, counts, remove = self.applied, self._counts, Verb.REMOVE
        for verb, key, value, _ in plan:
            if refused and key in refused:
                continue
            before = len(applied)
            if verb is remove:
                applied.pop(key, None)
            else:
                applied[key] = value
            counts[key.kind] += len(applied) - before
            self._judge(key)
        # An emptied set keeps its room, and is walked through all of it: a full load would make every later plan slow.
        self._pending = set(self._pending)

    def audit(self, actual: Objects, ours: Callable[[ObjectKey], bool]) -> Drift:
        """The kernel was read: what it holds replaces what we believed. ``ours`` tells whether we made an object
        that is not wanted (any more), or that is wanted and was not known to be applied."""
        missing, different, surplus, foreign = [], [], [], []
        applied: dict[ObjectKey, Any] = {}
        waiting = self._pending
        self._foreign.clear()
        # Keys and values that are as wanted are kept as the objects that they are there: what was read goes.
        for key in self.wanted:
            have = actual.get(key, _ABSENT)
            if have is _ABSENT:
                missing.append(key)
            elif key not in self.applied and not ours(key):
                foreign.append(key)
                self._foreign.add(key)
            elif have == (value := self.wanted.value(key)):
                applied[key] = value
            else:
                applied[key] = have
                different.append(key)
        if self._foreign:
            # Neither is anything put into somebody else's, nor what is in there changed.
            for key in [key for key in self.wanted if self._theirs(key)]:
                applied.pop(key, None)
            missing = [key for key in missing if not self._theirs(key)]
            different = [key for key in different if not self._theirs(key)]
        for key, value in actual.items():
            if key not in self.wanted and (key in self.applied or ours(key)):
                applied[key] = value
                surplus.append(key)
        self.applied = applied
        self._counts = Counter(key.kind for key in applied)
        self._pending = {*missing, *different, *surplus}
        drifted = ([key for key in keys if key not in waiting] for keys in (missing, different, surplus))
        return Drift(*(tuple(self._in_order(keys)) for keys in (*drifted, foreign)))

    def adopt(self, actual: Mapping[ObjectKey, Any], keys: Iterable[ObjectKey]) -> None:
        """Somebody else's objects become ours (the operator said so)."""
        adopted = frozenset(keys)
        self._foreign -= adopted
        for key in adopted:
            self._counts[key.kind] += key not in self.applied
            self.applied[key] = actual[key]
        for key in self.wanted:
            if key in adopted or self._owner(key) in adopted:
                self._judge(key)

    def _judge(self, key: ObjectKey) -> None:
        """Whether an object waits."""
        wanted = self.wanted.find(key)
        if wanted is None:
            self._foreign.discard(key)
            settled = key not in self.applied
        else:
            settled = self.applied.get(key, _ABSENT) == wanted[1]
        if settled:
            self._pending.discard(key)
        elif not self._foreign or not self._theirs(key):
            self._pending.add(key)

    def _theirs(self, key: ObjectKey) -> bool:
        """Whether somebody else's object stands there, or what it would belong to is somebody else's."""
        return key in self._foreign or self._owner(key) in self._foreign

    def _in_order(self, keys: Iterable[ObjectKey]) -> list[ObjectKey]:
        """By kind, and within a kind by name: a plan must not depend on the order of events."""
        by_kind: dict[str, list[ObjectKey]] = {}
        for key in keys:
            by_kind.setdefault(key.kind, []).append(key)
        return [key for kind in self._kinds if kind in by_kind for key in sorted(by_kind[kind], key=_name)]


def _why(source: Any) -> FrontendKey | None:
    for part in source:
        if type(part) is FrontendKey:
            return part
    return None
