"""The ``file`` resolver: one poll per path, shared by all targets in it."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import xxhash

from meshlib.discovery.base import Publish, ResolverContext
from meshlib.discovery.file.folder import FolderState, Registry, registry, scan
from meshlib.discovery.outlet import Outlet
from meshlib.errors import ConfigError, DataError
from meshlib.model.address import RELAXED
from meshlib.model.events import EntrySkipped, SourceFailed, SourceRecovered
from meshlib.model.service import Service, ServiceKey
from meshlib.model.slices import EndpointSlice
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure, Snapshot

#: Seconds between two looks. A person who saves a file sees the effect at once; it costs one stat per file, and works
#: where change notifications do not (network file systems, ConfigMap volumes, every platform).
POLL = 0.25


class FileSubscription:
    """Implements discovery.base.Subscription for one ``file`` target."""

    def __init__(self, source: FileSource, target: Target, publish: Publish) -> None:
        self.key = ServiceKey(target.namespace or "default", target.name)
        self.outlet = Outlet(publish)
        self._source = source

    def close(self) -> None:
        """Stop publishing; idempotent. The last one to close ends the poll."""
        if not self.outlet.closed:
            self.outlet.closed = True
            self._source.remove(self)

    def describe(self) -> Mapping[str, Any]:
        return self._source.describe(self.key)


class FileSource:
    """One path: its state, its subscriptions, its poll."""

    def __init__(self, context: ResolverContext, path: str, poll: float) -> None:
        self.path = path
        self.subscriptions: list[FileSubscription] = []
        self._context = context
        self._poll = poll
        self._state = FolderState()
        self._registry: Registry | None = None
        self._told: tuple[str, ...] = ()
        self._skipped: frozenset[tuple[str, str]] = frozenset()
        self._loaded_at: float | None = None
        self._generation = 0
        self._faults = 0
        self.task = context.spawn(self._run(), name=f"file {path}")

    def add(self, subscription: FileSubscription) -> None:
        self.subscriptions.append(subscription)
        if self._registry is not None:
            self._context.spawn(self._send_soon(subscription), name=f"file {subscription.key}")

    def remove(self, subscription: FileSubscription) -> None:
        self.subscriptions.remove(subscription)
        if not self.subscriptions:
            self.task.cancel()

    async def _send_soon(self, subscription: FileSubscription) -> None:
        # In a task of its own, so that the caller holds the Subscription before the first update reaches it.
        if self._registry is not None:
            subscription.outlet.show(*self._facts(subscription.key, self._registry))

    async def _run(self) -> None:
        while True:
            try:
                state = await self._context.run_blocking(scan, self.path, self._state, RELAXED)
            except (
                Exception
            ) as error:  # whatever a hostile file makes a parser raise: the last good state stays
                problem = DataError(self.path, f"cannot be read: {error!r}")
                known = self._state.problem
                state = self._state if str(known) == str(problem) else replace(self._state, problem=problem)
            if self._registry is None or state is not self._state:
                self._take(state)
            await self._context.sleep(self._poll)

    def _take(self, state: FolderState) -> None:
        self._state = state
        self._registry = found = registry(state)
        self._generation += 1
        self._loaded_at = self._context.now()
        self._tell(found)
        for subscription in tuple(self.subscriptions):
            subscription.outlet.show(*self._facts(subscription.key, found))

    def _tell(self, found: Registry) -> None:
        source = f"file {self.path}"
        problems = self._state.problems
        told = tuple(str(problem) for problem in problems)
        for problem in problems:
            if str(problem) not in self._told:
                self._faults += 1
                stale = any(file.objects is not None for file in self._state.files.values())
                self._context.emit(SourceFailed(source, problem, stale, self._poll))
        if self._told and not told:
            self._context.emit(SourceRecovered(source))
        self._told = told
        for place, reason in found.skipped:
            if (place, reason) not in self._skipped:
                self._context.emit(EntrySkipped(source, place, reason))
        self._skipped = frozenset(found.skipped)

    def _facts(
        self, key: ServiceKey, found: Registry
    ) -> tuple[Snapshot | DoesNotExist | None, Failure | None]:
        failure = None
        problems = self._state.problems
        if problems:
            error = problems[0]
            if len(problems) > 1:
                error = DataError(error.where, f"{error.reason} (and {len(problems) - 1} more)")
            # Nobody but its author can mend a file: callers need not wait for it.
            failure = Failure(error, hopeless=True)
        service = found.services.get(key)
        if service is not None:
            return self._snapshot(service, found.slices.get(key, ()), len(found.skipped)), failure
        if failure is not None:
            return None, failure  # it may stand in what cannot be read
        known = ", ".join(str(other) for other in sorted(found.services)[:5]) or "none"
        return DoesNotExist(f"{self.path} has no Service {key}; it has: {known}"), None

    def _snapshot(self, service: Service, slices: tuple[EndpointSlice, ...], skipped: int) -> Snapshot:
        return Snapshot(
            service=service,
            slices=slices,
            source=f"file {os.path.basename(self.path) or self.path}",
            version=xxhash.xxh3_64_hexdigest(repr((service, slices)).encode()),
            skipped=skipped,
        )

    def describe(self, key: ServiceKey) -> Mapping[str, Any]:
        """For people: where it comes from, how old it is, what is wrong."""
        now = self._context.now()
        return {
            "source": f"file {self.path}",
            "files": len(self._state.files),
            "age": now - self._loaded_at if self._loaded_at is not None else 0.0,
            "generation": self._generation,
            "stale": bool(self._state.problems) and self._registry is not None,
            "faults": self._faults,
            "problems": [str(problem) for problem in self._state.problems],
            "skipped": [f"{place}: {reason}" for place, reason in sorted(self._skipped)],
            "service": str(key),
        }


class FileResolver:
    """Implements discovery.base.Resolver. The setting ``poll`` (seconds) replaces POLL; raises ConfigError.

    Manifests are written on this machine, so loopback and link-local addresses in them mean what they say.
    """

    def __init__(self, context: ResolverContext) -> None:
        self._context = context
        self._poll = _poll(context.settings)
        self._sources: dict[str, FileSource] = {}

    def watch(self, target: Target, publish: Publish) -> FileSubscription:
        source = self._sources.get(target.path)
        if source is None or not source.subscriptions:
            source = self._sources[target.path] = FileSource(self._context, target.path, self._poll)
        subscription = FileSubscription(source, target, publish)
        source.add(subscription)
        return subscription

    async def close(self) -> None:
        """Close all subscriptions; nothing is published afterwards."""
        tasks: list[asyncio.Task[Any]] = []
        for source in self._sources.values():
            tasks.append(source.task)
            source.task.cancel()
            for subscription in tuple(source.subscriptions):
                subscription.close()
        self._sources.clear()
        await asyncio.gather(*tasks, return_exceptions=True)


def _poll(settings: Mapping[str, Any]) -> float:
    for key in settings:
        if key != "poll":
            raise ConfigError(f"discovery.file.{key}", "unknown setting", "known: poll")
    value = settings.get("poll", POLL)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError("discovery.file.poll", f"{value!r} is not a number of seconds above 0")
    return float(value)


class FileBuilder:
    """Implements discovery.base.ResolverBuilder."""

    schemes: tuple[str, ...] = ("file",)

    def build(self, context: ResolverContext) -> FileResolver:
        return FileResolver(context)


BUILDER = FileBuilder()
