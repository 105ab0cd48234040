"""One reflector at work, with what people want to know about it: events when it fails and recovers, ages, counters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

from meshlib.discovery.kubernetes.api import ApiServer
from meshlib.discovery.kubernetes.driver import ReflectorDriver
from meshlib.discovery.kubernetes.faults import Fault
from meshlib.discovery.kubernetes.reflector import Changed, Key, Reflector, Restarted
from meshlib.discovery.kubernetes.resources import Resource
from meshlib.model.events import EntrySkipped, SourceFailed, SourceRecovered, WatchRestarted

T = TypeVar("T")

#: Seconds between two SourceFailed of one outage: an outage of hours must not fill the log.
REPEAT_FAILURE = 60.0
#: Different refused entries that are reported before the rest is only counted: names and addresses are a tenant's to
#: choose, so without a bound they could fill log and memory.
MAX_REPORTED = 200


class SkipReport:
    """Counts refused entries and reports each different one once."""

    def __init__(self, api: ApiServer) -> None:
        self.count = 0
        self._api = api
        self._seen: set[tuple[str, str]] = set()

    def skip(self, where: str, reason: str) -> None:
        self.count += 1
        key = (where, reason)
        if key in self._seen or len(self._seen) >= MAX_REPORTED:
            return
        self._seen.add(key)
        self._api.context.emit(EntrySkipped(f"kubernetes {self._api.server}", where, reason))


class Feed(Generic[T]):
    """Runs one reflector and keeps its story. The ``on_...`` are called on the control loop."""

    def __init__(
        self,
        api: ApiServer,
        reflector: Reflector[T],
        find_resource: Callable[[Resource[T] | None], Awaitable[Resource[T]]],
        skips: SkipReport,
        on_change: Callable[[Changed[T]], None],
        on_failure: Callable[[Fault], None],
        on_recovery: Callable[[], None],
        error_of: Callable[[Fault], Exception],
    ) -> None:
        self.reflector = reflector
        self.fault: Fault | None = None  #: why it fails now; None while it works
        self._api = api
        self._skips = skips
        self._on_change = on_change
        self._on_failure = on_failure
        self._on_recovery = on_recovery
        self._error_of = error_of
        self._failed_at: float | None = None  # when SourceFailed was last sent
        self._driver = ReflectorDriver(api, reflector, find_resource, self)
        self._task: asyncio.Task[Any] | None = None

    def start(self, name: str) -> None:
        self._task = self._api.context.spawn(self._driver.run(), name=f"k8s {name}")

    def cancel(self) -> asyncio.Task[Any] | None:
        """Begin to end; the returned task is over when open connections are closed."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    async def stop(self) -> None:
        """Ends at once; open connections are closed."""
        task = self.cancel()
        if task is not None:
            await asyncio.wait({task})

    @property
    def synced(self) -> bool:
        return self.reflector.synced

    @property
    def live(self) -> bool:
        """A watch is open, or nothing has gone wrong and it soon will be."""
        return self.fault is None and (self.reflector.watching or self._api.fault is None)

    @property
    def items(self) -> Mapping[Key, T]:
        return self.reflector.items

    @property
    def source(self) -> str:
        resource = self._driver.resource
        name = f" {resource.name} ({resource.version})" if resource is not None else ""
        return f"kubernetes {self._api.server}{name}"

    # -- what the driver tells -------------------------------------------------------------------------------------

    def changed(self, change: Changed[T]) -> None:
        self._on_change(change)

    def failing(self, fault: Fault, retry_in: float) -> None:
        new = self.fault is None or self.fault.kind is not fault.kind
        self.fault = fault
        now = self._api.context.now()
        if new or self._failed_at is None or now >= self._failed_at + REPEAT_FAILURE:
            self._failed_at = now
            self._api.context.emit(
                SourceFailed(self.source, self._error_of(fault), self.reflector.synced, retry_in)
            )
        if new:
            self._on_failure(fault)

    def restarted(self, restart: Restarted) -> None:
        self._api.context.emit(WatchRestarted(self.source, restart.relist, restart.reason))

    def proven(self) -> None:
        if self.fault is not None:
            self.fault = self._failed_at = None
            self._api.context.emit(SourceRecovered(self.source))
        # Also where nothing of ours failed: subscribers may have been told of the server's failure.
        self._on_recovery()

    def skip(self, where: str, reason: str) -> None:
        self.reflector.counters.skipped += 1
        self._skips.skip(where, reason)

    def describe(self) -> dict[str, Any]:
        """Ages are in seconds; None: never."""
        resource, reflector, now = self._driver.resource, self.reflector, self._api.context.now()
        counters = reflector.counters
        return {
            "resource": resource.name if resource is not None else "",
            "api_version": resource.version if resource is not None else "",
            "resource_version": reflector.resource_version,
            "synced": reflector.synced,
            "last_event_age": None if self._driver.event_at is None else now - self._driver.event_at,
            "problem": self.fault.message if self.fault is not None else "",
            "lists": counters.lists,
            "relists": counters.relists,
            "watches": counters.watches,
            "watch_restarts": counters.watch_restarts,
            "events": counters.events,
            "bookmarks": counters.bookmarks,
            "expired": counters.expired,
            "rewinds": counters.rewinds,
            "skipped": counters.skipped,
        }
