"""Virtual time over real loopback sockets: a loop whose clock jumps to the next timer when nothing else can happen.

Client and server run on the same loop, and the kernel delivers over loopback before a send returns, so an idle selector
means that everybody waits for time.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from meshlib.discovery.base import ResolverContext
from meshlib.discovery.kubernetes.resolver import KubernetesResolver
from meshlib.model.events import Event
from meshlib.model.slices import EndpointSlice
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure, Snapshot, Update

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0
        self.jumps = 0

    def select(self, timeout: float | None = None) -> Any:
        for _ in range(3):  # a connection that is being set up needs a moment of the kernel's
            ready = super().select(0)
            if ready or timeout == 0:
                return ready
        ready = super().select(0.0002)
        if ready:
            return ready
        if timeout is None:
            raise AssertionError("nothing can happen any more, and nobody waits for time")
        # A little more than asked for: a timer that fired a rounding error too early would be set again for no time
        # at all, for ever, in a world where time only passes by waiting.
        self.time += timeout + 1e-6
        self.jumps += 1
        if self.jumps > 3_000_000:
            raise AssertionError("a timer is set again and again")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-12  # timers never fire early

    def time(self) -> float:
        return self._virtual.time


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


class Client:
    """A resolver in virtual time and what it published per target."""

    def __init__(self, seed: int = 1, random_value: float | None = None, **settings: Any) -> None:
        self.events: list[Event] = []
        self.errors: list[BaseException] = []
        self.updates: dict[str, list[tuple[float, Update]]] = {}
        loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.context = ResolverContext(
            now=loop.time,
            wall=loop.time,
            random=random.Random(seed).random if random_value is None else lambda: random_value,
            sleep=asyncio.sleep,
            spawn=self._spawn,
            run_blocking=self._run_blocking,
            emit=self.events.append,
            settings={"environ": {}, **settings},
        )
        self.resolver = KubernetesResolver(self.context)
        self.subscriptions: dict[str, Any] = {}

    def _spawn(self, coroutine: Any, /, *, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    @staticmethod
    async def _run_blocking(function: Callable[..., Any], /, *args: Any) -> Any:
        return function(*args)

    def watch(self, text: str) -> None:
        updates = self.updates.setdefault(text, [])
        loop = asyncio.get_running_loop()
        self.subscriptions[text] = self.resolver.watch(
            Target.parse(text), lambda update: updates.append((loop.time(), update))
        )

    def last(self, text: str) -> Update | None:
        return self.updates[text][-1][1] if self.updates[text] else None

    def addresses(self, text: str) -> set[str] | None:
        """Of the state in force; None: nothing known, or no such Service."""
        for _, update in reversed(self.updates[text]):
            if isinstance(update, Snapshot):
                return addresses(update.slices)
            if isinstance(update, DoesNotExist):
                return None
        return None

    def history(self, text: str) -> list[set[str]]:
        return [addresses(u.slices) for _, u in self.updates[text] if isinstance(u, Snapshot)]

    def failures(self, text: str) -> list[Failure]:
        return [u for _, u in self.updates[text] if isinstance(u, Failure)]

    def describe(self, text: str) -> dict[str, Any]:
        return dict(self.subscriptions[text].describe())

    async def close(self) -> None:
        await self.resolver.close()
        assert not self.errors, self.errors


def addresses(slices: tuple[EndpointSlice, ...]) -> set[str]:
    return {each.address for one in slices for each in one.endpoints if each.ready}


async def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Let virtual time pass until the condition holds, looking every millisecond, later less often."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not condition():
        assert loop.time() < start + seconds, f"not within {seconds} s"
        await asyncio.sleep(0.001 if loop.time() < start + 0.3 else 0.1 if loop.time() < start + 30 else 1)


async def always(condition: Callable[[], object], seconds: float, step: float = 0.05) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        assert condition()
        await asyncio.sleep(step)


Scenario = Callable[..., Awaitable[None]]
