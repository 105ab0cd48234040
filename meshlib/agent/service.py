"""Agent: a source, the engine on a worker thread, and the pages, run together on one asyncio loop."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from meshlib.agent.backends.base import words
from meshlib.agent.compare.ours import ours, to_plain
from meshlib.agent.desired import FrontendKey, HealthPort
from meshlib.agent.engine.node import NodeEngine
from meshlib.agent.explain import explain, parse_frontend
from meshlib.agent.facts import Host
from meshlib.agent.host import HostWatch
from meshlib.agent.modes import Chosen
from meshlib.agent.objects import Operation
from meshlib.agent.ops.control import ControlRefused
from meshlib.agent.ops.health import Answer, Vitals, healthz, livez, readyz
from meshlib.agent.ops.health_ports import EVERYWHERE, HealthPorts
from meshlib.agent.ops.metrics_page import MetricsPage
from meshlib.agent.ops.pages import Page, PageServer, json_page
from meshlib.agent.settings import AgentSettings
from meshlib.agent.status import Status, status_of
from meshlib.model.cluster import ClusterChange

T = TypeVar("T")

#: Seconds between two looks at the clock while nothing is due: the vitals that health is judged by must move on even
#: when the worker hangs in the kernel.
_NEVER = 3600.0


class Source(Protocol):
    """Where the facts come from: discovery.kubernetes.cluster or discovery.file.cluster."""

    def start(self) -> None: ...

    async def close(self) -> None: ...

    def describe(self) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class Agent:
    """Lives on one asyncio loop. ``run_blocking`` runs one function at a time in a worker thread."""

    settings: AgentSettings
    chosen: Chosen
    engine: NodeEngine
    run_blocking: Callable[[Callable[[], T]], Awaitable[T]]
    now: Callable[[], float]
    report: Callable[[str], None]  #: one line for people
    metrics: MetricsPage | None = None  #: None: there is no such page
    source: Source | None = None
    host: HostWatch | None = None
    #: What of other people's rules is in the way, read when somebody asks; on the worker.
    obstacles: Callable[[], list[str]] = list
    status: Status = dataclasses.field(default_factory=Status)
    _working_since: float | None = None
    _wake: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def tell(self, news: ClusterChange | Host) -> None:
        """What the source calls, on the loop."""
        self.engine.tell(news)
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``. Nothing is removed from the kernel at the end. Raises OSError where a page cannot listen."""
        ports = HealthPorts(lambda: livez(self._vitals()).ok, self._port_failed)
        servers: list[PageServer] = []
        watching: asyncio.Task[None] | None = None
        try:
            for address, site in (
                (self.settings.health_address, self._probes),
                (self.settings.metrics_address, self._pages),
            ):
                if address:
                    server = PageServer(site)
                    host, _, port = address.rpartition(":")
                    await server.start(host.removeprefix("[").removesuffix("]"), int(port))
                    servers.append(server)
            if self.host is not None:
                watching = asyncio.create_task(self.host.run(), name="addresses of the host")
            if self.source is not None:
                self.source.start()
            await self._work(stop, ports)
        finally:
            if watching is not None:
                watching.cancel()
            if self.source is not None:
                await self.source.close()
            await ports.close()
            for server in servers:
                await server.close()

    async def command(self, command: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the control socket asks. Raises ControlRefused."""
        match command:
            case "status":
                return {**self.describe(), "obstacles": await self.run_blocking(self.obstacles)}
            case "pause" | "resume":
                await self.run_blocking(lambda: self.engine.pause(command == "pause"))
                self._wake.set()
                return {"paused": command == "pause"}
            case "approve":
                waited = await self.run_blocking(self.engine.approve)
                self._wake.set()
                return {"approved": waited}
            case "explain":
                asked = _asked(arguments)
                return await self.run_blocking(lambda: explain(self.engine.families, asked))
            case "frontends":
                return await self.run_blocking(self._frontends)
            case _:
                raise ControlRefused(f"unknown command {command!r:.80}")

    def describe(self) -> dict[str, Any]:
        """For `/state` and `agent status`; its keys are part of the interface."""
        status = self.status
        return {
            "mode": self.chosen.mode,
            "modes_tried": {name: probe.reason for name, probe in self.chosen.probes.items()},
            "node": self.engine.node.name,
            "leaving": status.leaving,
            "paused": status.paused,
            "synced": status.synced,
            "pending_seconds": None
            if status.pending_since is None
            else round(self.now() - status.pending_since, 3),
            "source": dict(self.source.describe()) if self.source is not None else {},
            "health_ports": {str(key): port.port for key, port in status.health_ports.items()},
            "families": {
                f"IPv{number}": {
                    "frontends": family.frontends,
                    "objects": dict(family.objects),
                    "applied": dict(family.applied),
                    "draining": family.draining,
                    "generation": family.generation,
                    "generation_in_kernel": family.in_kernel,
                    "pending": family.pending,
                    "held_removals": family.held,
                    "foreign": list(family.foreign),
                    "failures": family.failures,
                    "failed": [
                        f"{failure.operation.verb.value} "
                        f"{self._words(number, failure.operation)}: {failure.text}"
                        for failure in family.failed
                    ],
                    "error": family.error,
                    "synced": family.synced,
                    "notes": [f"{note.service}: {note.text} ({note.reason})" for note in family.notes],
                }
                for number, family in status.families.items()
            },
        }

    def _frontends(self) -> Mapping[str, Any]:
        """What is served, and where it leads: for comparing. Node ports stand at the node's addresses."""
        families = self.engine.families
        return {str(number): to_plain(ours(family.programmer)) for number, family in families.items()}

    def _words(self, family: int, operation: Operation) -> str:
        return words(self.chosen.backends[family], operation.key, operation.value)

    async def _work(self, stop: asyncio.Event, ports: HealthPorts) -> None:
        stopping = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                self._working_since = self.now()
                due = await self.run_blocking(self._step)
                self._working_since = None
                await ports.want(self.status.health_ports, self._health_hosts())
                waking = asyncio.ensure_future(self._wake.wait())
                timeout = _NEVER if due is None else max(0.0, due - self.now())
                await asyncio.wait({stopping, waking}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                waking.cancel()
                self._wake.clear()
        finally:
            stopping.cancel()

    def _step(self) -> float | None:
        due = self.engine.step()
        self.status = status_of(self.engine)
        return due

    def _vitals(self) -> Vitals:
        status = self.status
        return Vitals(
            now=self.now(),
            sync_period=self.settings.sync_period,
            pending_since=status.pending_since,
            synced=status.synced,
            leaving=status.leaving,
            paused=status.paused,
            working_since=self._working_since,
        )

    def _probes(self, path: str) -> Page | None:
        judge = {"/healthz": healthz, "/livez": livez, "/readyz": readyz}.get(path)
        if judge is None:
            return None
        answer: Answer = judge(self._vitals())
        code = 200 if answer.ok else 503
        if self.metrics is not None:
            self.metrics.probe(path, code)
        return json_page(code, {"ok": answer.ok, "reason": answer.reason})

    def _pages(self, path: str) -> Page | None:
        match path:
            case "/state":
                return json_page(200, self.describe())
            case "/mode" | "/proxyMode":
                return Page(200, self.chosen.mode.encode(), headers=(("X-Meshlib-Mode", self.chosen.mode),))
            case "/configz":
                return json_page(200, dataclasses.asdict(self.settings))
            case "/metrics" if self.metrics is not None:
                return Page(200, self.metrics.page(), self.metrics.content_type)
            case _:
                return self._probes(path)

    def _health_hosts(self) -> tuple[str, ...]:
        """Load balancers ask on the addresses on which node ports are served; all of them where none is configured."""
        families = self.engine.families
        if self.settings.node_port_addresses:
            places = [engine.compiler.place for engine in families.values()]
            return tuple(address for place in places for address in place.node_addresses)
        return tuple(EVERYWHERE[number] for number in families)

    def _port_failed(self, port: HealthPort, host: str, error: OSError) -> None:
        self.report(f"health port {port.port} of {port.service} cannot be opened on {host}: {error}")


def _asked(arguments: Mapping[str, Any]) -> FrontendKey:
    protocol = str(arguments.get("protocol", "TCP"))
    try:
        return parse_frontend(str(arguments.get("frontend", "")), protocol)
    except ValueError as error:
        raise ControlRefused(str(error)) from None
