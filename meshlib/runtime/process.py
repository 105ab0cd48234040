"""ProcessRuntime: what one process has once - the control thread and the resolvers - and its rebuilding after fork.

Meshes register as users; the first starts the control thread, the last one to leave stops it (decision D10). After a
fork the child forgets everything it inherited, keeps it referenced so that no finalizer disturbs the parent's peers,
and builds its own on next use.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from meshlib.discovery.base import Resolver, ResolverBuilder, ResolverContext
from meshlib.errors import NotSynced
from meshlib.model.address import AddressPolicy
from meshlib.model.events import RuntimeStarted, SourceFailed
from meshlib.runtime import place
from meshlib.runtime.clock import SYSTEM, Clock
from meshlib.runtime.control import ControlThread
from meshlib.runtime.observing import emit
from meshlib.runtime.watch import TargetWatch

#: Targets wait this long for the look at a mesh in the pod, seconds: half of the second that a first call waits at
#: most (decision D3), so that one frozen sidecar leaves the other half for discovery and DNS.
DETECT_BOUND = 0.5


class Generation:
    """Counts forks. Compared on the hot path instead of os.getpid(), which costs a system call."""

    current = 0


class LocalSocket(Protocol):
    """What is in the file system for as long as the process lives."""

    def take_away(self) -> None:
        """From any thread; more than once does no harm."""


class ProcessRuntime:
    """One control thread and its resolvers. Methods that say so must run on the control loop."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self.clock = clock
        self.generation = Generation.current
        self.control = ControlThread(self._crashed)
        self.mesh_present = ""  #: the sidecar or ambient mesh found in this pod, in words
        self.started_at = clock.wall()  #: Unix seconds
        self.status: LocalSocket | None = None  #: see ``status_socket.serve_status``
        self._detection: asyncio.Task[None] | None = None
        self._resolvers: dict[tuple[ResolverBuilder, str], Resolver] = {}

    def start(self) -> None:
        self.control.start()
        emit(RuntimeStarted(os.getpid()))
        for begin in tuple(_beginners):
            self.control.call(begin, self)

    def context(self, settings: Mapping[str, Any], policy: AddressPolicy) -> ResolverContext:
        return ResolverContext(
            now=self.clock.now,
            wall=self.clock.wall,
            random=self.clock.random,
            sleep=_sleep,
            spawn=self.control.spawn,
            run_blocking=self.control.run_blocking,
            emit=emit,
            address_policy=policy,
            settings=settings,
        )

    def resolver(
        self, builder: ResolverBuilder, settings: Mapping[str, Any], policy: AddressPolicy
    ) -> Resolver:
        """The shared resolver for a builder and settings (on the loop): equal settings share watches."""
        key = (builder, repr((sorted(settings.items(), key=str), policy)))
        found = self._resolvers.get(key)
        if found is None:
            found = self._resolvers[key] = builder.build(self.context(settings, policy))
            self.control.at_close(found.close)
        return found

    def start_watch(self, watch: TargetWatch, detect_mesh: bool) -> None:
        """Start feeding a target (on the loop), after looking once whether a mesh is in this pod already."""
        if detect_mesh and self._detection is None:
            self._detection = self.control.spawn(self._detect(), name="detect mesh")
        if not detect_mesh or self._detection is None or self._detection.done():
            watch.start()
        else:
            self.control.spawn(self._start_detected(watch, self._detection), name="wait for mesh")

    async def _detect(self) -> None:
        self.mesh_present = await self.control.run_blocking(place.sidecar, os.environ)

    async def _start_detected(self, watch: TargetWatch, detection: asyncio.Task[None]) -> None:
        """A finding that comes later than the bound is heeded from the next change of each target on."""
        await asyncio.wait((detection,), timeout=DETECT_BOUND)
        watch.start()

    def _crashed(self, where: str, error: BaseException) -> None:
        """A task of ours ended by an exception nobody expected: say so; the last good state stays in force."""
        failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
        emit(SourceFailed(source=where, error=failure, stale=True))


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


_lock = threading.Lock()
_runtime: ProcessRuntime | None = None
_users: weakref.WeakSet[Any] = weakref.WeakSet()
_survivors: weakref.WeakSet[Any] = weakref.WeakSet()
_graveyard: list[object] = []
_beginners: list[Callable[[ProcessRuntime], None]] = []  #: see ``at_start``


def enter(user: Any) -> ProcessRuntime:
    """Register a user (any weakly referable object) and return the running runtime, starting it if need be.

    Raises NotSynced when it cannot be started now; the next use tries again.
    """
    global _runtime
    with _lock:
        if _runtime is None or not _runtime.control.alive:
            runtime = _started()
            if _runtime is None:
                atexit.register(_at_exit)
            _runtime = runtime
        _users.add(user)
        return _runtime


def _started() -> ProcessRuntime:
    try:
        runtime = ProcessRuntime()
        runtime.start()
    except (OSError, RuntimeError) as error:  # no descriptors, no thread to be had
        raise NotSynced(f"the control thread cannot be started: {error}") from error
    return runtime


def leave(user: Any) -> None:
    """The user is done; the last one stops the control thread (bounded wait). None: only look whether any is left."""
    global _runtime
    with _lock:
        if user is not None:
            _users.discard(user)
        stopped = _runtime if not _users else None
        if stopped is not None:
            _runtime = None
            atexit.unregister(_at_exit)
    if stopped is not None:
        _stop(stopped)


def users() -> tuple[Any, ...]:
    """The Meshes that were used and are open."""
    with _lock:
        return tuple(_users)


def current() -> ProcessRuntime | None:
    """The runtime, if this process has one now. Starts nothing."""
    return _runtime


def abandon(watches: list[TargetWatch]) -> None:
    """A Mesh was collected without close(): close its watches, and stop if it was the last. Takes no lock here."""
    runtime = _runtime
    if runtime is not None:
        runtime.control.call(_close_abandoned, tuple(watches))


def _close_abandoned(watches: tuple[TargetWatch, ...]) -> None:
    for watch in watches:
        watch.close()
    leave(None)


def at_start(begin: Callable[[ProcessRuntime], None]) -> Callable[[], None]:
    """Have ``begin(runtime)`` called on the control loop whenever it starts, in forked children too, and now if it runs
    already. Returns the function that ends this. Any thread."""
    with _lock:
        _beginners.append(begin)
        if _runtime is not None and _runtime.control.alive:
            _runtime.control.call(begin, _runtime)

    def forget() -> None:
        with _lock:
            if begin in _beginners:
                _beginners.remove(begin)

    return forget


def rebuild_after_fork(survivor: Any) -> None:
    """Have ``survivor.after_fork()`` called in a forked child, before any other code of the child runs."""
    _survivors.add(survivor)


def _at_exit() -> None:
    runtime = _runtime
    if runtime is not None:
        _stop(runtime)


def _stop(runtime: ProcessRuntime) -> None:
    if runtime.status is not None:
        runtime.status.take_away()  # here, whatever becomes of the loop within its bound
    runtime.control.stop()


def _after_fork_in_child() -> None:
    """Must not fail and must take no lock that another thread of the parent may have held."""
    global _lock, _runtime, _users
    Generation.current += 1
    _lock = threading.Lock()
    inherited, _runtime = _runtime, None
    _graveyard.append((inherited, _users))
    _users = weakref.WeakSet()
    for survivor in list(_survivors):
        survivor.after_fork()
    if inherited is not None:
        inherited.control.abandon_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
