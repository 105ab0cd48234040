"""NodeEngine: what a source tells becomes what the kernel does, family by family.

``tell`` may be called from any thread; everything else belongs to one worker thread. It reads no clock of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce

from meshlib.agent.backends.base import Cutting
from meshlib.agent.compile.compiler import Compiler, DesiredChange
from meshlib.agent.desired import HealthPort, Note
from meshlib.agent.engine.garbage import undisturbed
from meshlib.agent.engine.leftovers import Leftovers
from meshlib.agent.engine.programmer import Programmer, Written
from meshlib.agent.engine.sweep import Sweep, Swept
from meshlib.agent.facts import Host
from meshlib.agent.objects import Failed
from meshlib.model.cluster import ClusterChange, Node
from meshlib.model.service import ServiceKey


@dataclass(frozen=True, slots=True)
class Step:
    """What one write of one family did. ``latencies``: seconds from the causes of the changes until they worked."""

    family: int
    written: Written
    seconds: float
    latencies: tuple[float, ...] = ()
    swept: Swept | None = None  #: stale flows, where they were looked for


@dataclass(slots=True)
class FamilyEngine:
    """One family: compiled and programmed on its own, so that the other goes on when this one fails."""

    compiler: Compiler
    programmer: Programmer
    sweep: Sweep = field(default_factory=Sweep)
    notes: set[Note] = field(default_factory=set)
    health_ports: dict[ServiceKey, HealthPort] = field(default_factory=dict)
    failed: tuple[Failed, ...] = ()  #: operations that the last write could not do
    error: Exception | None = None  #: why it did nothing
    synced: bool = False  #: everything that was wanted at some moment was in the kernel
    taken: int = 0  #: the generation of the facts that are compiled
    applied: int = 0  #: the newest generation of which everything is in the kernel
    _triggers: list[float] = field(default_factory=list)  # of changes that are not written yet
    _departed: set[str] = field(default_factory=set)  # addresses whose waiting connections lead nowhere

    def take(self, change: ClusterChange, host: Host | None, now: float) -> DesiredChange:
        """Compile, and hand the difference to the programmer."""
        difference = self.compiler.update(change, host)
        if host is not None:
            # What devices have is not ours any more, and what they had may be missing now.
            self.programmer.distrust()
        if difference.place is not None:
            self.programmer.move(difference.place)
            self.sweep.moved()
        self.programmer.change(
            {key: new for key, (_, new) in difference.frontends.items()},
            change.lists,
            now,
            difference.hairpins_added,
            difference.hairpins_removed,
        )
        for key, (_, port) in difference.health_ports.items():
            if port is None:
                self.health_ports.pop(key, None)
            else:
                self.health_ports[key] = port
        self.notes.difference_update(difference.notes_removed)
        self.notes.update(difference.notes_added)
        self._triggers += difference.triggers
        self.sweep.changed(difference.frontends)
        self._departed |= difference.departed
        self.taken += 1
        if not self.programmer.planner.pending and self.synced:
            self.applied = self.taken
        return difference

    def write(self, now: Callable[[], float], wall: Callable[[], float]) -> Step:
        """One write."""
        began = now()
        written = self.programmer.write(began)
        latencies: tuple[float, ...] = ()
        if written.ok and not self.programmer.paused:
            self.synced = True
            self.applied = self.taken
            latencies = tuple(max(0.0, wall() - at) for at in self._triggers)
            self._triggers.clear()
        seconds = now() - began
        self.failed, self.error = written.failed, written.error  # not the plan: that of a full load is large
        return Step(self.compiler.place.family, written, seconds, latencies, self._forget(now, written))

    def cut(self, now: float) -> None:
        """What has departed and is written as such is not waited for any more."""
        if self._departed and not self.programmer.planner.pending:
            backend = self.programmer.backend
            if isinstance(backend, Cutting):
                backend.cut(self._departed, now)
            self._departed.clear()

    @property
    def sweep_at(self) -> float | None:
        """When a failed sweep is to be repeated; None: none did, or the next write brings one."""
        waits = self.programmer.paused or self.programmer.planner.pending
        return None if waits else self.sweep.next()

    def sweep_again(self, now: Callable[[], float]) -> Step | None:
        """Repeats a sweep that failed, when it is time."""
        due = self.sweep_at
        if due is None or due > now():
            return None
        swept = self._forget(now, Written())
        return Step(self.compiler.place.family, Written(), 0.0, swept=swept) if swept is not None else None

    def _forget(self, now: Callable[[], float], written: Written) -> Swept | None:
        if written.error is not None or self.programmer.paused:
            return None
        return self.sweep.run(self.programmer.frontends, self.programmer.place, now)


class NodeEngine:
    """``now``: monotonic seconds; ``wall``: Unix seconds. ``on_step`` and ``on_change`` are called on the worker."""

    def __init__(
        self,
        families: Mapping[int, FamilyEngine],
        now: Callable[[], float],
        wall: Callable[[], float],
        on_step: Callable[[Step], None],
        on_change: Callable[[int, DesiredChange], None],
        leftovers: Leftovers | None = None,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        """``settled`` is called once, when every family was first brought to what was wanted."""
        self.leftovers = leftovers  #: what other modes left behind, until it is gone
        self.families = dict(families)
        self.node = Node()
        self._now, self._wall = now, wall
        self._on_step, self._on_change = on_step, on_change
        self._settled: Callable[[], None] | None = settled
        self._told: deque[ClusterChange | Host] = deque()
        self._known = False  # the source has told everything once
        self._lists = 0

    def tell(self, news: ClusterChange | Host) -> None:
        """From any thread. Wake the worker afterwards."""
        self._told.append(news)

    def step(self) -> float | None:
        """Do what is due. Returns when to be called next, or None: not before something is told.

        Nothing is written before the source has told everything once.
        """
        with undisturbed():
            return self._step()

    def _step(self) -> float | None:
        self.take()
        if not self._known:
            return None
        times: list[float] = []
        for engine in self.families.values():
            if engine.programmer.paused:
                continue
            due = engine.programmer.pace.next(self._now())
            if due is not None and due <= self._now():
                self._on_step(engine.write(self._now, self._wall))
                due = engine.programmer.pace.next(self._now())
            again = engine.sweep_again(self._now)
            if again is not None:
                self._on_step(again)
            engine.cut(self._now())
            ticked = engine.programmer.backend.tick(self._now())
            times += [at for at in (due, ticked, engine.sweep_at) if at is not None]
        if self._settled is not None and self.synced:
            self._settled()
            self._settled = None
        paused = any(engine.programmer.paused for engine in self.families.values())
        if self.leftovers is not None and self.synced and not paused:
            at = self.leftovers.step(self._now())
            if at is not None:
                times.append(at)
            else:
                if self.leftovers.removed:
                    # What stood in the way of an object of ours may be gone: addresses of a device, for one.
                    for engine in self.families.values():
                        engine.programmer.look_again(self._now())
                    times.append(self._now())
                self.leftovers = None
        return min(times, default=None)

    def pause(self, paused: bool) -> None:
        """Stop writing (rules stay, changes are gathered), or go on."""
        for engine in self.families.values():
            engine.programmer.paused = paused

    def approve(self) -> bool:
        """Let removals through that wait for a confirmation; whether there were any."""
        waited = [engine for engine in self.families.values() if engine.programmer.held]
        for engine in waited:
            programmer = engine.programmer
            programmer.guard.approve()
            programmer.change({}, 0, self._now())
        return bool(waited)

    @property
    def synced(self) -> bool:
        """Whether every family was once brought to what was wanted."""
        return self._known and all(engine.synced for engine in self.families.values())

    @property
    def pending_since(self) -> float | None:
        """When the oldest change came that is not in the kernel; None: everything is."""
        times = [engine.programmer.pace.wanted_since for engine in self.families.values()]
        return min((at for at in times if at is not None), default=None)

    def take(self) -> None:
        """Compile what was told; the programmers know afterwards what is wanted."""
        changes: list[ClusterChange] = []
        host: Host | None = None
        while self._told:
            news = self._told.popleft()
            if isinstance(news, Host):
                host = news
            else:
                changes.append(news)
        if not changes and host is None:
            return
        change = reduce(ClusterChange.then, changes) if changes else ClusterChange(lists=self._lists)
        self._known = self._known or change.complete
        self._lists = change.lists
        self.node = change.node or self.node
        for family, engine in self.families.items():
            difference = engine.take(change, host, self._now())
            if difference:
                self._on_change(family, difference)
