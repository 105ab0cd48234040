"""Carries out what a reflector asks for: lists, watches, sleeps, on the control loop. Thin: the rules are elsewhere."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from meshlib.discovery.kubernetes.api import ApiServer, WatchStream
from meshlib.discovery.kubernetes.backoff import Backoff
from meshlib.discovery.kubernetes.faults import GATE_KINDS, Fault, FaultKind, from_error_event
from meshlib.discovery.kubernetes.lines import LineSplitter, LineTooLong
from meshlib.discovery.kubernetes.reflector import (
    Changed,
    Command,
    EventKind,
    Failing,
    Key,
    List,
    ListPage,
    Proven,
    Rediscover,
    Reflector,
    Restarted,
    Sleep,
    Watch,
    WatchEvent,
)
from meshlib.discovery.kubernetes.resources import Resource, decode
from meshlib.discovery.kubernetes.transport import RequestFailed
from meshlib.errors import DataError
from meshlib.model.envelope import object_meta, watch_from_json
from meshlib.model.wire import Json

T = TypeVar("T")

#: Seconds of decoding after which other tasks and threads get their turn. Below the 5 ms that a step may take (the
#: interpreter's own switch interval), because one object more may come on top.
SLICE_OF_WORK = 0.002

_OBJECT_EVENTS = {"ADDED": EventKind.ADDED, "MODIFIED": EventKind.MODIFIED, "DELETED": EventKind.DELETED}


def _expected(commands: Sequence[object]) -> bool:
    return any(isinstance(each, Restarted) and each.expected for each in commands)


class Listener(Protocol[T]):
    """Who is told; all on the control loop."""

    def changed(self, change: Changed[T]) -> None: ...

    def failing(self, fault: Fault, retry_in: float) -> None: ...

    def restarted(self, restart: Restarted) -> None: ...

    def proven(self) -> None: ...

    def skip(self, where: str, reason: str) -> None: ...


class ReflectorDriver(Generic[T]):
    """One reflector on one resource. ``find_resource`` is asked at the start, and after a 404 with what failed."""

    def __init__(
        self,
        api: ApiServer,
        reflector: Reflector[T],
        find_resource: Callable[[Resource[T] | None], Awaitable[Resource[T]]],
        listener: Listener[T],
    ) -> None:
        self.reflector = reflector
        self.resource: Resource[T] | None = None
        self.event_at: float | None = None  #: when the last list or watch event came
        self._api = api
        self._find_resource = find_resource
        self._listener = listener
        self._now = api.context.now
        self._sleep = api.context.sleep
        self._worked_since = -math.inf
        self._not_served = False

    async def run(self) -> None:
        """Runs until cancelled."""
        resource = await self._find()
        commands = self.reflector.start(self._now())
        while True:
            action = self._report(commands)
            if isinstance(action, Sleep):
                await self._sleep(action.seconds)
                commands = self.reflector.slept(self._now())
                continue
            if self._not_served:
                resource = await self._find()
            if isinstance(action, List):
                commands = await self._list(action, resource)
            else:
                commands = await self._watch(action, resource)

    async def _find(self) -> Resource[T]:
        backoff = Backoff()
        while True:
            try:
                self.resource = await self._find_resource(self.resource if self._not_served else None)
            except RequestFailed as failed:
                delay = backoff.next(self._now(), self._api.context.random())
                self._listener.failing(failed.fault, delay)
                await self._sleep(delay)
            else:
                self._not_served = False
                return self.resource

    def _report(self, commands: list[Command[T]]) -> List | Watch | Sleep:
        action = self._tell(commands)
        if action is None:
            raise RuntimeError("the reflector gave nothing to do")
        return action

    def _tell(self, commands: list[Command[T]]) -> List | Watch | Sleep | None:
        action: List | Watch | Sleep | None = None
        for command in commands:
            match command:
                case Changed():
                    self._listener.changed(command)
                case Failing():
                    self._listener.failing(command.fault, command.retry_in)
                case Restarted():
                    self._listener.restarted(command)
                case Proven():
                    self._listener.proven()
                case Rediscover():
                    self._not_served = True
                case _:
                    action = command
        return action

    async def _breathe(self) -> None:
        """Give way if this task has worked long enough."""
        now = self._now()
        if now - self._worked_since > SLICE_OF_WORK:
            await self._sleep(0)
            self._worked_since = self._now()

    async def _list(self, action: List, resource: Resource[T]) -> list[Command[T]]:
        params = {**resource.params}
        if action.limit:
            params["limit"] = str(action.limit)
        if action.continue_token:
            params["continue"] = action.continue_token
        elif action.resource_version:
            params["resourceVersion"] = action.resource_version
        what = f"LIST {resource.name}"
        try:
            envelope = await self._api.list(resource.path, params, resource.list_kind, action.timeout, what)
        except RequestFailed as failed:
            return self.reflector.list_failed(failed.fault, self._now())
        items: dict[Key, T | None] = {}
        self._worked_since = self._now()
        for raw in envelope.items:
            self._take(resource, raw, items)
            await self._breathe()
        self.event_at = self._now()
        page = ListPage(envelope.resource_version, items, envelope.continue_token)
        return self.reflector.listed(page, self._now())

    def _take(self, resource: Resource[T], raw: Json, items: dict[Key, T | None]) -> None:
        try:
            found = decode(resource, raw, check_kind=False)
        except DataError as error:
            self._skip(resource, str(error))
            return
        if found.unreadable:
            self._skip(resource, found.unreadable)
            items[found.key] = None
        elif found.item is not None:
            items[found.key] = found.item

    def _skip(self, resource: Resource[T], reason: str) -> None:
        self._listener.skip(resource.name, reason)

    async def _watch(self, action: Watch, resource: Resource[T]) -> list[Command[T]]:
        params = {
            **resource.params,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": action.resource_version,
            "timeoutSeconds": str(action.timeout_seconds),
        }
        what = f"WATCH {resource.name}"
        try:
            stream = await self._api.watch(resource.path, params, what)
        except RequestFailed as failed:
            return self.reflector.watch_ended(self._now(), failed.fault)
        self.reflector.watch_opened(self._now())
        try:
            return await self._follow(stream, resource, what)
        finally:
            await stream.close()

    async def _follow(self, stream: WatchStream, resource: Resource[T], what: str) -> list[Command[T]]:
        """Until the watch is over; the commands are what comes next."""
        reflector = self.reflector
        splitter = LineSplitter()
        reading: asyncio.Task[bytes] | None = None
        try:
            while True:
                if reading is None:
                    reading = asyncio.create_task(stream.chunk(), name=f"read {what}")
                # Not a time limit on the reading itself: that would break a connection that is only quiet.
                wait = reflector.wake_at - self._now()
                done, _ = await asyncio.wait({reading}, timeout=None if wait == math.inf else max(0.0, wait))
                if not done:
                    commands = reflector.tick(self._now())
                    if self._goes_on(commands, stream):
                        continue
                    stream.broken = not _expected(commands)
                    return commands
                finished, reading = reading, None
                try:
                    chunk = finished.result()
                except RequestFailed as failed:
                    stream.broken = True
                    return reflector.watch_ended(self._now(), failed.fault)
                if not chunk:
                    commands = reflector.watch_ended(self._now())
                    stream.broken = not _expected(commands)
                    return commands
                reflector.heard(self._now())
                self._worked_since = self._now()
                try:
                    for line in splitter.feed(chunk):
                        self._goes_on(self._line(line, resource, what), stream)
                        await self._breathe()
                except RequestFailed as failed:  # an ERROR event
                    stream.broken = failed.fault.kind in GATE_KINDS
                    return reflector.watch_ended(self._now(), failed.fault)
                except (LineTooLong, DataError) as error:
                    stream.broken = True
                    fault = Fault(FaultKind.BAD_DATA, f"{what}: {error}")
                    self._skip(resource, str(error))
                    return reflector.watch_ended(self._now(), fault)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def _goes_on(self, commands: list[Command[T]], stream: WatchStream) -> bool:
        """True if the watch stays; its commands are told then, otherwise they are left to the caller."""
        if any(isinstance(each, List | Watch | Sleep) for each in commands):
            return False
        if any(isinstance(each, Proven) for each in commands):
            stream.prove()
        self._tell(commands)
        return True

    def _line(self, line: bytes, resource: Resource[T], what: str) -> list[Command[T]]:
        """One line of the watch. Raises DataError if it is not an event at all, RequestFailed for an ERROR event."""
        now = self._now()
        event = watch_from_json(line)
        reflector = self.reflector
        if event.type == "ERROR":
            raise RequestFailed(from_error_event(event.object, what))
        self.event_at = now
        try:
            if event.type == "BOOKMARK":
                version = object_meta(event.object).resource_version
                if not version:
                    raise DataError(resource.name, "a bookmark has no resourceVersion")
                return reflector.received(WatchEvent(EventKind.BOOKMARK, version), now)
            kind = _OBJECT_EVENTS.get(event.type)
            if kind is None:
                raise DataError(resource.name, f"unknown watch event {event.type[:40]!r}")
            found = decode(resource, event.object, check_kind=True)
        except DataError as error:
            self._skip(resource, str(error))
            return reflector.skipped(now)
        if found.unreadable:
            self._skip(resource, found.unreadable)
        elif found.item is None:
            kind = EventKind.DELETED  # not, or no longer, one of those we want
        return reflector.received(WatchEvent(kind, found.resource_version, found.key, found.item), now)
