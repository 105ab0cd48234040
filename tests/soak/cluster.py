"""A cluster that is never quiet, in a process of its own: an API server, two Services, and pods that come and go.

Every new pod has an address that no pod had before, as in a real cluster: what a client remembers of endpoints that
left would pile up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import random
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from meshlib.testing.fake_apiserver import FakeApiServer
from tests.components.process import free_port
from tests.soak.pods import GrpcPod, HttpPod, Mood

NAMESPACE = "shop"
#: Service name -> kind of its pods.
SERVICES: dict[str, Callable[[str, int], Any]] = {"orders": HttpPod, "quotes": GrpcPod}
#: Seconds until the control plane notices a pod that died: kubelets and controllers need about that on a quick day.
NOTICED_AFTER = 0.5
#: How long a pod is sick, seconds.
SICK_FOR = 2.0
#: Out of so many changes one is a storm: a third of the pods replaced at once.
RARELY = 60
#: Out of so many one ends all watches, and every second time the API server has forgotten its history by then. In two
#: minutes a client forgives such a trouble; one after the other would make it back off, with old news for its set.
SELDOM = 600


class Cluster:
    """``with Cluster(pods, pause)``: so many pods of each Service, something happens to one every ``pause`` seconds."""

    def __init__(self, pods: int, pause: float, seed: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(pods, pause, seed, theirs), daemon=True)
        self._process.start()
        theirs.close()  # else nobody would notice the end of the child
        self.api_server: str = self._ours.recv()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._ours.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._ours.close()

    def changes(self) -> int:
        """How many things have happened."""
        self._ours.send("changes")
        found: int = self._ours.recv()
        return found


class _Churn:
    def __init__(self, server: FakeApiServer, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.changes = 0
        self._port = free_port()  # one for all, and of this cluster: another soak may run beside this one
        self._addresses = (f"127.{a}.{b}.{c}" for a, b, c in itertools.product(range(1, 255), repeat=3))
        self.pods: dict[str, list[Any]] = {name: [] for name in SERVICES}
        self._leaving: set[Any] = set()  #: no longer published, still serving
        self._later: set[asyncio.Task[None]] = set()

    async def begin(self, pods: int) -> None:
        for service in SERVICES:
            self.server.service(NAMESPACE, service)
            for _ in range(pods):
                await self._add(service)
            self._publish(service)

    async def end(self) -> None:
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)
        for pod in [*self._leaving, *(pod for pods in self.pods.values() for pod in pods)]:
            await pod.stop()

    async def happen(self) -> None:
        """One thing."""
        self.changes += 1
        if self.changes % RARELY == 0:
            for service in SERVICES:
                for _ in range(len(self.pods[service]) // 3):
                    await self._replace(service)
                self._publish(service)
        elif self.changes % SELDOM == RARELY // 2:
            if self.changes % (2 * SELDOM) == RARELY // 2:
                self.server.compact()
            self.server.end_watches()
            self.server.requests.clear()
        else:
            service = self.random.choice(list(SERVICES))
            await self.random.choice((self._replaced, self._crash, self._sick))(service)

    async def _replaced(self, service: str) -> None:
        """A rolling update's step."""
        await self._replace(service)
        self._publish(service)

    async def _crash(self, service: str) -> None:
        """A pod dies; its successor is known when the death is noticed."""
        await self._take(service).stop()
        await self._add(service)
        self._after(NOTICED_AFTER, self._publish, service)

    async def _sick(self, service: str) -> None:
        pod = self.random.choice(self.pods[service])
        pod.mood = self.random.choice((Mood.SLOW, Mood.FAILING, Mood.RESETTING))
        self._after(SICK_FOR, setattr, pod, "mood", Mood.WELL)

    async def _replace(self, service: str) -> None:
        await self._add(service)
        gone = self._take(service)
        self._leaving.add(gone)
        self._after(NOTICED_AFTER, self._leave, gone)

    async def _leave(self, pod: Any) -> None:
        await pod.stop()
        self._leaving.discard(pod)

    async def _add(self, service: str) -> None:
        pod = SERVICES[service](next(self._addresses), self._port)
        await pod.start()
        self.pods[service].append(pod)

    def _take(self, service: str) -> Any:
        pods = self.pods[service]
        return pods.pop(self.random.randrange(len(pods)))

    def _publish(self, service: str) -> None:
        self.server.put(
            {
                "kind": "EndpointSlice",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {
                    "namespace": NAMESPACE,
                    "name": f"{service}-1",
                    "labels": {"kubernetes.io/service-name": service},
                },
                "addressType": "IPv4",
                "endpoints": [
                    {"addresses": [pod.host], "conditions": {"ready": True}} for pod in self.pods[service]
                ],
                "ports": [{"name": "http", "port": self._port, "protocol": "TCP"}],
            }
        )

    def _after(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> None:
        async def later() -> None:
            await asyncio.sleep(seconds)
            found = function(*arguments)
            if asyncio.iscoroutine(found):
                await found

        task = asyncio.get_running_loop().create_task(later())
        self._later.add(task)
        task.add_done_callback(self._later.discard)


def _run(pods: int, pause: float, seed: int, ours: Connection) -> None:
    async def main() -> None:
        server = FakeApiServer(("v1",))
        await server.start()
        churn = _Churn(server, seed)
        await churn.begin(pods)
        ours.send(server.url)
        asked = asyncio.get_running_loop().create_task(asyncio.to_thread(_answer, ours, churn))
        while not asked.done():
            await churn.happen()
            await asyncio.wait((asked,), timeout=pause)
        await churn.end()
        await server.close()

    asyncio.run(main())


def _answer(ours: Connection, churn: _Churn) -> None:
    """Until told to stop, or left."""
    with contextlib.suppress(EOFError):
        while ours.recv() is not None:
            ours.send(churn.changes)
