"""The roll-out as it stands in this process: a gate for each target, its counts, and the file that may change both.

Clients ask ``TargetRollout.gate``: None is the common case, in which every request is the mesh's and nothing is counted
here. A Rollout belongs to one Mesh. Its gates are closed until the first use in a process (after a fork, too) has
looked at the configuration file, so that no request is decided by what was read long ago; from then on the control
thread has the file looked at once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from meshlib.errors import ConfigError, MeshClosed, NotSynced
from meshlib.model.endpoint import EndpointSet
from meshlib.model.events import ConfigTaken, EntrySkipped, ModeChanged, SourceFailed
from meshlib.model.service import ROLLOUT_MODE, Service
from meshlib.model.target import Target, TargetDefaults
from meshlib.policies.rollout import Decision, Mode, Way, decide, following, in_share
from meshlib.runtime.clock import SYSTEM, Clock
from meshlib.runtime.config import Config
from meshlib.runtime.config.load import reload_config
from meshlib.runtime.config.rollout import annotated_mode, changes, wish_for, with_live_keys
from meshlib.runtime.file_watch import FileWatch
from meshlib.runtime.observed import addresses
from meshlib.runtime.observing import emit
from meshlib.runtime.totals import BOOK

if TYPE_CHECKING:
    from meshlib.runtime.handle import TargetHandle
    from meshlib.runtime.process import ProcessRuntime

#: Seconds between two looks at the file. A change counts once it has settled, which takes one look more, so it is in
#: force within two or three of the five seconds that are promised.
LOOK_EVERY = 1.0


Later = list[Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one target since the process began (a forked child begins anew), by the way they took.

    ``mesh``: those that endpoints were given by this process, each repetition on another endpoint included.
    ``observed_picks``: requests in mode observe that would have gone to a pod; ``observed_refusals``: those that would
    not, by reason: ``not_synced``, ``denied``, ``no_endpoints``, ``no_local_endpoints``, ``service_not_found``,
    ``unknown_port``, ``service_address`` (meshlib would have stood back), ``failed``. ``observed_reached``: where the
    bare way led, as far as the client can tell: ``endpoint`` (of the set), ``service`` (its own address),
    ``elsewhere``.
    """

    mesh: int
    bare_off: int
    bare_observe: int
    bare_percent: int
    observed_picks: int
    observed_refusals: Mapping[str, int]
    observed_reached: Mapping[str, int]


class TargetRollout:
    """One target of one Mesh. Any thread.

    ``gate``: None when every request is the mesh's; else this object, whose ``way`` decides and counts.
    """

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_annotations",
        "_handles",
        "_lock",
        "_owner",
        "_point",
        "_reached",
        "_refusals",
        "_service",
        "_told",
        "_ways",
        "decision",
        "gate",
        "target",
    )

    def __init__(self, target: Target, owner: Rollout) -> None:
        self.target = target
        self.gate: TargetRollout | None = self
        self.decision = Decision(Mode.ON, 100.0, "default", "")
        self._owner = owner
        self._annotations: Mapping[str, str] = {}
        self._service = ""
        self._told: set[str] = set()
        self._addresses: tuple[EndpointSet | None, frozenset[tuple[str, int]]] = (None, frozenset())
        self._handles: weakref.WeakSet[TargetHandle] = weakref.WeakSet()
        self._begin_counts()

    def _begin_counts(self) -> None:
        self._lock = threading.Lock()
        self._point = self._owner.clock.random()
        self._ways: Counter[Way] = Counter()
        self._refusals: Counter[str] = Counter()  #: "": a pick
        self._reached: Counter[str] = Counter()

    # -- for clients ---------------------------------------------------------------------------------------------

    def way(self) -> Way:
        """Decide and count one request. Never blocks on anything but a short lock, never raises."""
        self._owner.begin()
        decision = self.decision
        if decision.mode is Mode.ON:
            if decision.everything:
                return Way.MESH
            with self._lock:
                point = self._point = following(self._point)
                if in_share(point, decision.percent):
                    return Way.MESH
                self._ways[Way.BARE_PERCENT] += 1
            return Way.BARE_PERCENT
        if decision.source.startswith(_SERVICE):
            self._keep_watching()
        way = Way.BARE_OFF if decision.mode is Mode.OFF else Way.BARE_OBSERVE
        with self._lock:
            self._ways[way] += 1
        return way

    @property
    def serves(self) -> bool:
        """Whether every request is the mesh's now; decides and counts nothing."""
        self._owner.begin()
        return self.decision.everything

    @property
    def lowered(self) -> bool:
        """Whether no request is the mesh's: the mode is below on."""
        return self.decision.mode is not Mode.ON

    def observed(self, refusal: str) -> None:
        """Count what a pick would have come to: "" for a pod, else why not."""
        with self._lock:
            self._refusals[refusal] += 1

    def reached(self, where: str) -> None:
        """Count where the bare way led."""
        with self._lock:
            self._reached[where] += 1

    def addresses_of(self, members: EndpointSet) -> frozenset[tuple[str, int]]:
        """Address and port of each, remembered until there is another set."""
        known, found = self._addresses
        if known is not members:
            found = addresses(members)
            self._addresses = members, found
        return found

    # -- for status pages and metrics ----------------------------------------------------------------------------

    def counts(self) -> Counts:
        carried = BOOK.target(str(self.target)).read(self._owner.clock.now())
        with self._lock:
            ways, refusals, reached = self._ways.copy(), self._refusals.copy(), self._reached.copy()
        picks = refusals.pop("", 0)
        return Counts(
            mesh=carried.requests + carried.inflight,
            bare_off=ways[Way.BARE_OFF],
            bare_observe=ways[Way.BARE_OBSERVE],
            bare_percent=ways[Way.BARE_PERCENT],
            observed_picks=picks,
            observed_refusals=dict(refusals),
            observed_reached=dict(reached),
        )

    # -- inside --------------------------------------------------------------------------------------------------

    def used_by(self, handle: TargetHandle) -> None:
        self._handles.add(handle)

    def annotated(self, service: Service | None) -> None:
        """What discovery says about the Service; None: there is none. On the control thread."""
        annotations = dict(service.annotations) if service is not None else {}
        text, known = annotations.get(ROLLOUT_MODE), self._annotations.get(ROLLOUT_MODE)
        if text == known:
            return
        before = self.decision
        self._annotations = annotations
        self._service = str(service.key) if service is not None else self._service
        self._owner.decide_again(self)
        if self.decision != before:
            emit(ModeChanged(str(self.target), str(self.decision), self.decision.reason))

    def decide(self, config: Config, defaults: TargetDefaults, looked: bool, later: Later) -> None:
        """Decide anew, under the owner's lock. ``looked``: at the file, in this process. ``later`` gets what is to be
        done without that lock."""
        wish = wish_for(config, self.target, defaults)
        mode, ignored = annotated_mode(self._annotations, wish)
        if ignored and ignored not in self._told:
            self._told.add(ignored)
            skipped = EntrySkipped(f"{_SERVICE}{self._service}", f"annotation {ROLLOUT_MODE}", ignored)
            later.append(lambda: emit(skipped))
        before = self.decision
        self.decision = decide(wish, mode, f"{_SERVICE}{self._service}: annotation {ROLLOUT_MODE}")
        self.gate = None if looked and self.decision.everything else self
        if before.mode is Mode.ON and self.lowered:
            later.extend(handle.release for handle in list(self._handles))
        elif self.decision.everything and not before.everything:
            later.extend(handle.leave_service_address for handle in list(self._handles))

    def _keep_watching(self) -> None:
        """An annotation holds it back, so discovery must go on: it tells when that ends (in a forked child, say)."""
        for handle in list(self._handles):
            if handle.live is None:
                with contextlib.suppress(NotSynced):
                    handle.try_start()

    def close_gate(self) -> None:
        self.gate = self

    def after_fork(self) -> None:
        """In a forked child: nothing was counted yet."""
        self.gate = self
        self._begin_counts()

    def __repr__(self) -> str:
        return f"<TargetRollout {self.target} {self.decision}: {self.decision.reason}>"


#: How the sources that are annotations begin.
_SERVICE = "Service "


class Owner(Protocol):
    """The part of a Mesh that is needed here."""

    config: Config
    defaults: TargetDefaults

    def enter_runtime(self) -> None: ...


class Rollout:
    """The roll-out of one Mesh, whose ``config`` it gives the live keys as they are now. ``problem``: why the file on
    disk is not in force; empty: it is."""

    def __init__(self, mesh: Owner, clock: Clock = SYSTEM) -> None:
        config = mesh.config
        self.problem = ""
        self.clock = clock
        self._mesh = weakref.ref(mesh)  # the control thread keeps us, and must not keep a dropped Mesh
        self._config = config
        self._read = config  #: the last good reading of the file, whole
        self._file = FileWatch(config.at.absolute, clock.now, clock.wall) if config.at is not None else None
        self._targets: dict[Target, TargetRollout] = {}
        self._runtime: ProcessRuntime | None = None
        self._new_locks()

    def _new_locks(self) -> None:
        self._lock = threading.Lock()  #: guards decisions
        self._looking = threading.Lock()

    def target(self, target: Target) -> TargetRollout:
        """The same object for equal targets, made on first use."""
        found = self._targets.get(target)
        if found is None:
            made = TargetRollout(target, self)
            with self._lock:
                found = self._targets.setdefault(target, made)
                if found is made:
                    self._decide(made, [])
        return found

    @property
    def targets(self) -> tuple[TargetRollout, ...]:
        """All that were asked about so far."""
        return tuple(self._targets.copy().values())

    def may_ask(self, candidates: tuple[Target, ...]) -> bool:
        """Whether it is of use to know which of these a short name means: for one at least, the mode is not off."""
        defaults = self._defaults()
        return any(decide(wish_for(self._config, one, defaults)).mode is not Mode.OFF for one in candidates)

    def begin(self) -> None:
        """Enter the runtime and look at the file, if this process did not yet. Never raises: without a control thread
        what is known stays in force, and the next request tries again."""
        runtime, mesh = self._runtime, self._mesh()
        if (runtime is None or not runtime.control.alive) and mesh is not None:
            with contextlib.suppress(NotSynced, MeshClosed):
                mesh.enter_runtime()

    def attach(self, runtime: ProcessRuntime) -> None:
        """The Mesh entered this runtime: look at the file now, in the caller's thread, and from now on in its own."""
        if self._runtime is runtime:
            return
        self.look()
        later: Later = []
        with self._lock:
            if self._runtime is runtime:
                return
            self._runtime = runtime
            self._decide_all(later)
        _do(later)
        if self._file is not None:
            runtime.control.call(_watch, weakref.ref(self), runtime)

    def look(self) -> None:
        """Take in the file if it changed. Reads and parses; any thread, one at a time."""
        with self._looking:
            if self._file is None or not self._file.changed():
                return
            try:
                read = reload_config(self._read)
            except ConfigError as error:
                self.problem = str(error)
                emit(SourceFailed(f"configuration {self._read.at.shown}", error, stale=True))  # type: ignore[union-attr]
                return
            self._take(read)

    def decide_again(self, target: TargetRollout) -> None:
        """One target's annotation changed."""
        later: Later = []
        with self._lock:
            self._decide(target, later)
        _do(later)

    def begin_anew(self) -> None:
        """The Mesh left the runtime: close the gates until it enters one again."""
        self._runtime = None
        for target in self.targets:
            target.close_gate()

    def after_fork(self) -> None:
        """In a forked child: new locks, nothing counted, and the file is to be looked at again."""
        self._new_locks()
        self._runtime = None
        for target in self.targets:
            target.after_fork()

    def _take(self, read: Config) -> None:
        live, others = changes(self._read, read)
        without_effect = tuple(key for key in read.shadowed if key not in self._read.shadowed)
        recovered = bool(self.problem)
        later: Later = []
        with self._lock:
            self._read, self.problem = read, ""
            self._config = with_live_keys(self._config, read)
            if (mesh := self._mesh()) is not None:
                mesh.config = self._config
            self._decide_all(later)
        if live or others or without_effect or recovered:
            emit(ConfigTaken(read.file or "no file", live, others, without_effect))
        _do(later)

    def _decide_all(self, later: Later) -> None:
        for target in self.targets:
            self._decide(target, later)

    def _decide(self, target: TargetRollout, later: Later) -> None:
        target.decide(self._config, self._defaults(), self._runtime is not None, later)

    def _defaults(self) -> TargetDefaults:
        mesh = self._mesh()
        return mesh.defaults if mesh is not None else TargetDefaults()


def _do(later: Later) -> None:
    for work in later:
        work()


def _watch(reference: weakref.ref[Rollout], runtime: ProcessRuntime) -> None:
    runtime.control.spawn(_look_again_and_again(reference, runtime), name="configuration")


async def _look_again_and_again(reference: weakref.ref[Rollout], runtime: ProcessRuntime) -> None:
    """On the control loop; the looks themselves in a helper thread, for a file system may hang. Keeps no Mesh alive."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        rollout = reference()
        if rollout is None or rollout._runtime is not runtime:
            return
        await runtime.control.run_blocking(rollout.look)
        del rollout
