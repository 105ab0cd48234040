"""A resolver on a real event loop, with what it published and told kept for the test."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from meshlib.discovery.base import Resolver, ResolverBuilder, ResolverContext, Subscription
from meshlib.model.eligibility import eligible
from meshlib.model.endpoint import Endpoint
from meshlib.model.events import Event
from meshlib.model.service import resolve_port
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Snapshot, Update
from meshlib.model.vantage import Path, VantagePoint

T = TypeVar("T")


class Watching:
    """One target being watched."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.updates: list[Update] = []
        self.subscription: Subscription
        self._changed = asyncio.Event()

    def publish(self, update: Update) -> None:
        self.updates.append(update)
        self._changed.set()

    @property
    def snapshot(self) -> Snapshot | None:
        """The set in force."""
        for update in reversed(self.updates):
            if isinstance(update, Snapshot):
                return update
            if isinstance(update, DoesNotExist):
                return None
        return None

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What the model makes of the set in force."""
        snapshot = self.snapshot
        if snapshot is None:
            return ()
        port = resolve_port(snapshot.service, self.target.port)
        return eligible(snapshot.service, port, snapshot.slices, VantagePoint(), Path.INTERNAL).endpoints

    def addresses(self) -> set[str]:
        return {endpoint.authority for endpoint in self.endpoints()}

    async def until(self, condition: Callable[[], Any], what: str, timeout: float = 20.0) -> None:
        """Wait for an update after which ``condition`` holds."""
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                try:
                    await asyncio.wait_for(self._changed.wait(), 0.05)
                except TimeoutError:
                    continue
        assert condition(), what

    async def until_addresses(self, *addresses: str, timeout: float = 20.0) -> None:
        try:
            await self.until(lambda: self.addresses() == set(addresses), "", timeout)
        except TimeoutError:
            raise AssertionError(
                f"waited for {addresses}, have {self.addresses()}; {self.updates[-3:]}"
            ) from None


class Running:
    """A resolver in use."""

    def __init__(self, resolver: Resolver, events: list[Event]) -> None:
        self.resolver = resolver
        self.events = events

    def watch(self, target: str) -> Watching:
        watching = Watching(Target.parse(target))
        watching.subscription = self.resolver.watch(watching.target, watching.publish)
        return watching

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]


def real_context(
    settings: Mapping[str, Any], events: list[Event], tasks: set[asyncio.Task[Any]]
) -> ResolverContext:
    loop = asyncio.get_running_loop()

    def spawn(coroutine: Coroutine[Any, Any, Any], /, *, name: str) -> asyncio.Task[Any]:
        task = loop.create_task(coroutine, name=name)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def run_blocking(function: Callable[..., T], /, *args: Any) -> T:
        return await loop.run_in_executor(None, function, *args)

    return ResolverContext(
        now=time.monotonic,
        wall=time.time,
        random=random.random,
        sleep=asyncio.sleep,
        spawn=spawn,
        run_blocking=run_blocking,
        emit=events.append,
        settings=settings,
    )


@asynccontextmanager
async def resolver(builder: ResolverBuilder, **settings: Any) -> AsyncIterator[Running]:
    """Build, use, close; no task may survive."""
    events: list[Event] = []
    tasks: set[asyncio.Task[Any]] = set()
    running = Running(builder.build(real_context(settings, events, tasks)), events)
    try:
        yield running
    finally:
        await running.resolver.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not tasks, f"tasks left behind: {tasks}"
