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
from typing import TYPE_CHECKING, Protocol

from meshlib.errors import ConfigError, MeshClosed, NotSynced
from meshlib.model.events import ConfigTaken, SourceFailed
from meshlib.model.target import Target, TargetDefaults
from meshlib.policies.rollout import Mode, decide
from meshlib.runtime.clock import SYSTEM, Clock
from meshlib.runtime.config import Config
from meshlib.runtime.config.load import reload_config
from meshlib.runtime.config.rollout import changes, wish_for, with_live_keys
from meshlib.runtime.file_watch import FileWatch
from meshlib.runtime.observing import emit
from meshlib.runtime.rollout_target import Counts, Later, TargetRollout

if TYPE_CHECKING:
    from meshlib.runtime.process import ProcessRuntime

__all__ = ["Counts", "Rollout", "TargetRollout"]

#: Seconds between two looks at the file. A change counts once it has settled, which takes one look more, so it is in
#: force within two or three of the five seconds that are promised.
LOOK_EVERY = 1.0


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
                self._file.again()  # it may have been for want of a descriptor
                if str(error) != self.problem:
                    self.problem = str(error)
                    emit(SourceFailed(f"configuration {self._read.at.shown}", error, stale=True))  # type: ignore[union-attr]
                return
            except BaseException:
                self._file.again()
                raise
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
        if self._file is not None:
            self._file.again()  # the parent may have been between the report and the reading
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
        try:
            await runtime.control.run_blocking(rollout.look)
        except (
            Exception
        ) as error:  # no thread to be had, say: the next look may work, and what is in force stays
            emit(SourceFailed("configuration", error, stale=True, retry_in=LOOK_EVERY))
        del rollout
