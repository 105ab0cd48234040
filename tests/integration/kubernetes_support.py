"""A resolver on a loop in a thread of its own, so that blocking tests can watch what it publishes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from meshlib.discovery.base import ResolverContext, Subscription
from meshlib.discovery.kubernetes.resolver import KubernetesResolver
from meshlib.model.address import AddressPolicy
from meshlib.model.events import Event
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure, Snapshot, Update
from tests.components.process import wait_for


class Seen:
    """Everything published for one target, with times."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, Update]] = []
        self.subscription: Subscription | None = None

    def publish(self, update: Update) -> None:
        self.updates.append((time.monotonic(), update))

    @property
    def last(self) -> Update | None:
        return self.updates[-1][1] if self.updates else None

    @property
    def snapshot(self) -> Snapshot | None:
        """The state in force: a Failure keeps the last good one."""
        for _, update in reversed(self.updates):
            if isinstance(update, Snapshot):
                return update
            if isinstance(update, DoesNotExist):
                return None
        return None

    @property
    def addresses(self) -> set[str]:
        """Ready ones of the state in force."""
        return ready(self.snapshot)

    def wait_addresses(self, expected: set[str], timeout: float = 15) -> None:
        wait_for(
            lambda: self.snapshot is not None and self.addresses == expected,
            timeout=timeout,
            what=f"addresses {sorted(expected)[:5]}... ({len(expected)}), last {self.last!r:.300}",
        )

    def wait_for(self, kind: type[Update], timeout: float = 15) -> Any:
        return wait_for(
            lambda: self.last if isinstance(self.last, kind) else None, timeout=timeout, what=kind.__name__
        )

    @property
    def failures(self) -> list[Failure]:
        return [update for _, update in self.updates if isinstance(update, Failure)]


def ready(snapshot: Snapshot | None) -> set[str]:
    slices = snapshot.slices if snapshot is not None else ()
    return {each.address for one in slices for each in one.endpoints if each.ready}


class MeshLoop:
    """Owns the thread, the loop and the resolver."""

    def __init__(self, policy: AddressPolicy | None = None, **settings: Any) -> None:
        self.events: list[Event] = []
        self.errors: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: self.errors.append(str(context)))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.context = ResolverContext(
            now=time.monotonic,
            wall=time.time,
            random=random.Random(7).random,
            sleep=asyncio.sleep,
            spawn=self._spawn,
            run_blocking=self._run_blocking,
            emit=self.events.append,
            address_policy=policy or AddressPolicy(),
            settings={"environ": {}, **settings},
        )
        self.resolver: KubernetesResolver = self.call(self._build)

    async def _build(self) -> KubernetesResolver:
        return KubernetesResolver(self.context)

    def _spawn(self, coroutine: Any, /, *, name: str) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.errors.append(f"{task.get_name()}: {task.exception()!r}")

    @staticmethod
    async def _run_blocking(function: Callable[..., Any], /, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, function, *args)

    def call(self, function: Callable[[], Any], timeout: float = 10) -> Any:
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result(timeout)

    def watch(self, text: str) -> Seen:
        seen = Seen()

        async def start() -> Subscription:
            return self.resolver.watch(Target.parse(text), seen.publish)

        seen.subscription = self.call(start)
        return seen

    def describe(self, seen: Seen) -> dict[str, Any]:
        async def ask() -> Any:
            assert seen.subscription is not None
            return dict(seen.subscription.describe())

        found: dict[str, Any] = self.call(ask)
        return found

    def unwatch(self, seen: Seen) -> None:
        async def end() -> None:
            assert seen.subscription is not None
            seen.subscription.close()

        self.call(end)

    def close(self) -> None:
        async def end() -> None:
            await self.resolver.close()
            await self._loop.shutdown_default_executor()

        self.call(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextlib.contextmanager
def mesh(**settings: Any) -> Iterator[MeshLoop]:
    """A resolver that is closed at the end; unexpected exceptions of its tasks fail the test."""
    loop = MeshLoop(**settings)
    try:
        yield loop
    finally:
        loop.close()
    assert not loop.errors, loop.errors


def account_files(folder: Path, ca_file: Path, token: str, namespace: str = "default") -> Path:
    """The files of a service account as kubelet writes them."""
    folder.mkdir(exist_ok=True)
    (folder / "ca.crt").write_bytes(ca_file.read_bytes())
    (folder / "token").write_text(token)
    (folder / "namespace").write_text(namespace)
    return folder


def client_context(ca_file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file))
