"""The ``file`` resolver: one poll per path, shared by all targets in it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import xxhash

from meshlib.discovery.base import Publish, ResolverContext
from meshlib.discovery.file.folder import Registry
from meshlib.discovery.file.poll import POLL, FolderPoll
from meshlib.discovery.outlet import Outlet
from meshlib.errors import ConfigError, DataError
from meshlib.model.service import Service, ServiceKey
from meshlib.model.slices import EndpointSlice
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure, Snapshot


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
    """One path: its subscriptions, and the poll that they share."""

    def __init__(self, context: ResolverContext, path: str, poll: float) -> None:
        self.path = path
        self.subscriptions: list[FileSubscription] = []
        self._context = context
        self._files = FolderPoll(context, path, poll, self._take)

    @property
    def task(self) -> asyncio.Task[Any]:
        return self._files.task

    def add(self, subscription: FileSubscription) -> None:
        self.subscriptions.append(subscription)
        if self._files.registry is not None:
            self._context.spawn(self._send_soon(subscription), name=f"file {subscription.key}")

    def remove(self, subscription: FileSubscription) -> None:
        self.subscriptions.remove(subscription)
        if not self.subscriptions:
            self.task.cancel()

    async def _send_soon(self, subscription: FileSubscription) -> None:
        # In a task of its own, so that the caller holds the Subscription before the first update reaches it.
        if self._files.registry is not None:
            subscription.outlet.show(*self._facts(subscription.key, self._files.registry))

    def _take(self, found: Registry) -> None:
        for subscription in tuple(self.subscriptions):
            subscription.outlet.show(*self._facts(subscription.key, found))

    def _facts(
        self, key: ServiceKey, found: Registry
    ) -> tuple[Snapshot | DoesNotExist | None, Failure | None]:
        failure = None
        problems = self._files.state.problems
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
            source=self._files.title,
            version=xxhash.xxh3_64_hexdigest(repr((service, slices)).encode()),
            skipped=skipped,
        )

    def describe(self, key: ServiceKey) -> Mapping[str, Any]:
        """For people: where it comes from, how old it is, what is wrong."""
        return {**self._files.describe(), "service": str(key)}


class FileResolver:
    """Implements discovery.base.Resolver. The setting ``poll`` (seconds) replaces POLL; raises ConfigError."""

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
