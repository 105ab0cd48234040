"""Programmer: keeps one family of a node at what is wanted, through one backend.

One thread at a time. It reads no clock: times are monotonic seconds, passed in.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshlib.agent.backends.base import Backend
from meshlib.agent.desired import Frontend, FrontendKey, Hairpin, Place
from meshlib.agent.engine.guard import Guard
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.pace import Pace
from meshlib.agent.engine.planner import Drift, Planner
from meshlib.agent.netlink.messages import Malformed
from meshlib.agent.objects import Failed, ObjectKey, Operation, Plan, Verb

_NOTHING: Mapping[ObjectKey, Any] = {}
#: An addition that failed so has made nothing: not tried, or somebody else's object stands there. After any other
#: failure (a lost answer) it may have.
_NOT_MADE = frozenset({0, errno.EEXIST})


@dataclass(frozen=True, slots=True)
class Written:
    """What one write did."""

    plan: Plan = ()
    failed: tuple[Failed, ...] = ()
    drift: Drift | None = None  #: of the audit, where there was one
    error: Exception | None = (
        None  #: the kernel could not be read, or the ledger not be written: nothing was changed
    )

    @property
    def ok(self) -> bool:
        """Whether everything that was wanted is there."""
        return self.error is None and not self.failed


@dataclass(slots=True)
class Programmer:
    """``record`` writes lines of the ledger durably, before it returns; raises OSError."""

    backend: Backend
    place: Place
    ledger: Ledger
    record: Callable[[bytes], None]
    guard: Guard = field(default_factory=Guard)
    pace: Pace = field(default_factory=Pace)
    adopt: bool = False  #: somebody else's objects in the places of wanted ones become ours
    paused: bool = False  #: rules stay, nothing is written
    frontends: dict[FrontendKey, Frontend] = field(default_factory=dict)  #: programmed, or about to be
    held: dict[FrontendKey, Frontend | None] = field(
        default_factory=dict
    )  #: removals that the guard holds back
    planner: Planner = field(init=False)
    _hairpins: set[Hairpin] = field(default_factory=set)
    _serving: int = 0  #: frontends that have targets
    _adopted: set[ObjectKey] = field(default_factory=set)  #: not in the ledger yet
    _audited: bool = False

    def __post_init__(self) -> None:
        self.planner = Planner(self.backend.kinds, self.backend.ledger_key)
        self.planner.change((0,), _NOTHING, self.backend.fixed(self.place))

    def move(self, place: Place) -> None:
        """The node itself changed: its addresses, its pod ranges."""
        if place == self.place:
            return
        old, self.place = self.place, place
        self.planner.change((0,), self.backend.fixed(old), self.backend.fixed(place))
        for key, frontend in self.frontends.items():
            translate = self.backend.translate
            self.planner.change((1, key), translate(frontend, old), translate(frontend, place))
        turn = self.backend.translate_hairpin
        for hairpin in self._hairpins:
            self.planner.change((2, hairpin), turn(hairpin, old), turn(hairpin, place))

    def change(
        self,
        changes: Mapping[FrontendKey, Frontend | None],
        lists: int,
        now: float,
        hairpins_added: Collection[Hairpin] = (),
        hairpins_removed: Collection[Hairpin] = (),
    ) -> None:
        """What is different now (None: gone), and how many complete lists the source has read."""
        asked = {**self.held, **changes}
        losing = [key for key, new in asked.items() if self._loses(key, new)]
        self.held = {}
        if not self.guard.check(self._serving, len(losing), lists, now):
            self.held = {key: asked.pop(key) for key in losing}
        for key, new in asked.items():
            self._put(key, new)
        turn, place = self.backend.translate_hairpin, self.place
        for hairpin in hairpins_removed:
            self._hairpins.discard(hairpin)
            self.planner.change((2, hairpin), turn(hairpin, place), _NOTHING)
        for hairpin in hairpins_added:
            self._hairpins.add(hairpin)
            self.planner.change((2, hairpin), _NOTHING, turn(hairpin, place))
        if self.planner.pending or not self._audited:
            self.pace.want(now)

    def distrust(self) -> None:
        """Somebody may have changed the kernel: the next write reads it first."""
        self._audited = False

    def look_again(self, now: float) -> None:
        """The next write reads the kernel first, and is due: something was changed there that is not in a plan."""
        self._audited = False
        self.pace.want(now)

    def preview(self) -> Plan:
        """What the next write would do; nothing is changed. Read the kernel first (``audit``) for the whole truth."""
        return self.planner.plan()

    def audit(self) -> Drift:
        """Read the kernel. Raises OSError."""
        actual = self.backend.dump(self.place.family)
        drift = self.planner.audit(actual, self._ours)
        if self.adopt and drift.foreign:
            self.planner.adopt(actual, drift.foreign)
            self._adopted.update(drift.foreign)
        self._audited = True
        return drift

    def write(self, now: float) -> Written:
        """Bring the kernel to what is wanted; reads it first at the start, and when an audit is due."""
        if self.paused:
            return Written()
        auditing = not self._audited or self.pace.audit_due(now)
        self.pace.began(now)
        drift = None
        try:
            if auditing:
                drift = self.audit()
            plan = self.planner.plan()
            self.record(self.ledger.own([*self._ledger_keys(plan, Verb.ADD), *self._entries(self._adopted)]))
            self._adopted.clear()
        except (OSError, Malformed) as error:
            self.pace.failed(now)
            return Written(drift=drift, error=error)
        failed = tuple(self.backend.apply(plan, now)) if plan else ()
        self.planner.done(plan, failed)
        refused = {failure.operation.key for failure in failed}
        never_made = {
            failure.operation.key
            for failure in failed
            if failure.operation.verb is Verb.ADD and failure.errno in _NOT_MADE
        }
        if failed:
            self._audited = False  # what is there is not what we believe
            self.pace.failed(now)
        else:
            self.pace.succeeded(now, auditing)
        gone = [operation for operation in plan if operation.key not in refused]
        try:
            self.record(self.ledger.disown([*self._ledger_keys(gone, Verb.REMOVE), *never_made]))
        except OSError as error:  # an entry too many is harmless
            return Written(plan, failed, drift, error)
        return Written(plan, failed, drift)

    def _put(self, key: FrontendKey, new: Frontend | None) -> None:
        old = self.frontends.get(key)
        translate, place = self.backend.translate, self.place
        before = translate(old, place) if old is not None else _NOTHING
        after = translate(new, place) if new is not None else _NOTHING
        self.planner.change((1, key), before, after)
        self._serving += bool(new and new.route.targets) - bool(old and old.route.targets)
        if new is None:
            self.frontends.pop(key, None)
        else:
            self.frontends[key] = new

    def _loses(self, key: FrontendKey, new: Frontend | None) -> bool:
        """Whether a frontend that serves would stop serving."""
        old = self.frontends.get(key)
        return old is not None and bool(old.route.targets) and (new is None or not new.route.targets)

    def _ours(self, key: ObjectKey) -> bool:
        entry = self.backend.ledger_key(key)
        return entry is None or entry in self.ledger.owned

    def _ledger_keys(self, plan: Iterable[Operation], verb: Verb) -> list[ObjectKey]:
        """The entries of the ledger that these operations make or end: those of objects that are their own entry."""
        return self._entries(operation.key for operation in plan if operation.verb is verb)

    def _entries(self, keys: Iterable[ObjectKey]) -> list[ObjectKey]:
        """Those of the objects that are their own entry in the ledger."""
        return [key for key in keys if self.backend.ledger_key(key) == key]
