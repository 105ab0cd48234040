"""How often one process asks an API server that is dead or failing, five namespaces watched; the ``kubernetes``
informer in the same table. The servers are local: one answers 500 to everything, one closes all connections."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from typing import Any

from meshlib.discovery.base import ResolverContext
from meshlib.discovery.kubernetes.resolver import KubernetesResolver
from meshlib.model.target import Target
from meshlib.testing.fake_apiserver import Connection, FakeApiServer, Request, status

NAME = "API requests of one process in the first minute of an outage, 5 namespaces"
TARGETS = "meshlib: at most 8 requests in the first 60 s"

NAMESPACES = [f"ns{number}" for number in range(5)]


class _Counter:
    """Connections, and requests on them, of one server in a thread of its own; ``kind`` says how it fails."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.server = FakeApiServer()
        self.connections = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> _Counter:
        self.thread.start()
        self.call(self._prepare())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self.server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    async def _prepare(self) -> None:
        await self.server.start()
        for name in NAMESPACES:
            self.server.service(name, "orders")
            self.server.slice(name, "orders-1", "orders", ["10.0.0.1"])

    async def fail(self) -> None:
        async def react(request: Request, connection: Connection) -> bool:
            if self.kind == "closes every connection":
                connection.reset()
            else:
                await connection.answer(500, status(500))
            return True

        await self.server.refuse()
        self.server.react = react
        self.server.requests.clear()
        await self.server.start()


async def _meshlib(counter: _Counter, window: float) -> int:
    tasks: set[asyncio.Task[Any]] = set()

    def spawn(coroutine: Any, /, *, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def run_blocking(function: Any, /, *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    context = ResolverContext(
        now=time.monotonic,
        wall=time.time,
        random=random.Random().random,
        sleep=asyncio.sleep,
        spawn=spawn,
        run_blocking=run_blocking,
        settings={"api_server": counter.server.url, "environ": {}},
    )
    resolver = KubernetesResolver(context)
    known: set[str] = set()
    for name in NAMESPACES:
        resolver.watch(Target.parse(f"k8s:///orders.{name}:http"), lambda update, name=name: known.add(name))
    while len(known) < len(NAMESPACES):
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.5)
    await asyncio.to_thread(counter.call, counter.fail())
    await asyncio.sleep(window)
    count = len(counter.server.requests)
    await resolver.close()
    return count


def _informer(counter: _Counter, window: float) -> int:
    from kubernetes import client
    from kubernetes.informer import SharedInformer

    configuration = client.Configuration()
    configuration.host = counter.server.url
    api = client.ApiClient(configuration)
    discovery = client.DiscoveryV1Api(api)
    informers = [
        SharedInformer(list_func=discovery.list_namespaced_endpoint_slice, namespace=name)
        for name in NAMESPACES
    ]
    for each in informers:
        each.start()
    time.sleep(2)
    counter.call(counter.fail())
    time.sleep(window)
    count = len(counter.server.requests)
    for each in informers:
        each.stop()
    counter.call(counter.server.refuse())
    with contextlib.suppress(Exception):  # the package raises from its own threads' connections
        api.close()
    return count


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """``quick`` shortens the window of the informer to 5 s (it asks evenly), and ours to 20 s."""
    rows = []
    for kind in ("answers 500", "closes every connection"):
        window = 20.0 if quick else 60.0
        with _Counter(kind) as counter:
            ours = asyncio.run(_meshlib(counter, window))
        rows.append([f"meshlib, server {kind}", str(ours), f"{window:.0f} s", "8 in 60 s"])
        window = 5.0 if quick else 15.0
        with _Counter(kind) as counter:
            try:
                theirs = str(_informer(counter, window))
            except Exception as error:
                theirs = f"did not run: {type(error).__name__}"
        rows.append([f"kubernetes informer, server {kind}", theirs, f"{window:.0f} s", ""])
    return ["client", "requests", "window", "target"], rows


if __name__ == "__main__":
    for line in run(quick=True)[1]:
        print(line)
