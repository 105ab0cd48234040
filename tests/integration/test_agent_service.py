"""The running agent on a kernel of dictionaries: facts in, rules, pages and commands out."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from meshlib.agent.backends.base import Probe
from meshlib.agent.compile.compiler import Compiler
from meshlib.agent.engine.ledger_file import AgentRunning, LedgerFile
from meshlib.agent.engine.node import FamilyEngine, NodeEngine
from meshlib.agent.engine.pace import Pace
from meshlib.agent.engine.programmer import Programmer
from meshlib.agent.modes import Chosen, NoBackend, choose
from meshlib.agent.objects import ObjectKey
from meshlib.agent.ops.control import ControlRefused, ControlServer, ask
from meshlib.agent.service import Agent
from meshlib.agent.settings import AgentSettings
from meshlib.model.cluster import ClusterChange, Node, ServiceFacts
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from tests.unit.agent.fake_kernel import FakeKernel

T = TypeVar("T")
NODE = Node("node-1", addresses=("192.0.2.1",), pod_ranges=("10.1.0.0/24",))


def facts(name: str, address: str, *pods: str) -> tuple[ServiceKey, ServiceFacts]:
    """A Service on port 80 with ready endpoints on port 8080."""
    key = ServiceKey("shop", name)
    service = Service(
        key=key,
        type=ServiceType.CLUSTER_IP,
        ports=(ServicePort("http", 80),),
        cluster_ips=(address,),
        ip_families=(4,),
    )
    endpoints = tuple(SliceEndpoint(address=pod, node="node-1") for pod in pods)
    slice_ = EndpointSlice(
        namespace="shop",
        name=f"{name}-1",
        service=key,
        family=4,
        ports=(SlicePort("http", 8080),),
        endpoints=endpoints,
    )
    return key, ServiceFacts(service, (slice_,))


def run(tmp_path: Path, kernel: FakeKernel, test: Callable[[Agent, str], Awaitable[None]]) -> None:
    """An agent with its pages on a port that the kernel chooses, as a fresh process on this ledger."""

    async def main() -> None:
        lock, loop = asyncio.Lock(), asyncio.get_running_loop()

        async def run_blocking(function: Callable[[], T]) -> T:
            async with lock:
                return await loop.run_in_executor(None, function)

        ledger = LedgerFile(tmp_path / "ledger")
        probe_server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = probe_server.sockets[0].getsockname()[1]
        probe_server.close()
        await probe_server.wait_closed()
        settings = AgentSettings(
            node_name="node-1", families=(4,), health_address="", metrics_address=f"127.0.0.1:{port}"
        )
        compiler = Compiler(settings, 4)
        programmer = Programmer(
            kernel, compiler.place, ledger.ledger, ledger.write, pace=Pace(min_interval=0.0)
        )
        engine = NodeEngine(
            {4: FamilyEngine(compiler, programmer)},
            time.monotonic,
            time.time,
            lambda step: None,
            lambda family, difference: None,
        )
        chosen = Chosen("fake", {4: kernel}, {"fake": kernel.probe()})
        agent = Agent(settings, chosen, engine, run_blocking, time.monotonic, lambda line: None)
        stop = asyncio.Event()
        running = asyncio.create_task(agent.run(stop))
        try:
            async with asyncio.timeout(20):
                await test(agent, f"http://127.0.0.1:{port}")
        finally:
            stop.set()
            await running
            ledger.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def serving(base: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=base) as client:
        while True:
            try:
                return await client.get("/readyz")
            except httpx.ConnectError:
                await asyncio.sleep(0.002)


@pytest.mark.acceptance(99, 102)
def test_from_facts_to_rules(tmp_path: Path) -> None:
    """Nothing is written before everything is known; then rules, pages, changes; a restart writes nothing."""
    kernel = FakeKernel()
    everything = dict([facts("orders", "10.96.0.1", "10.1.0.1", "10.1.0.2"), facts("empty", "10.96.0.2")])

    async def first(agent: Agent, base: str) -> None:
        assert (await serving(base)).status_code == 503
        agent.tell(ClusterChange(dict([facts("late", "10.96.0.9")]), NODE))  # not complete yet
        await asyncio.sleep(0.02)
        assert kernel.log == []
        agent.tell(ClusterChange(everything, NODE, complete=True, lists=1))
        await until(lambda: agent.status.synced)
        async with httpx.AsyncClient(base_url=base) as client:
            assert [(await client.get(page)).status_code for page in ("/readyz", "/livez", "/healthz")] == [
                200,
                200,
                200,
            ]
            assert (await client.get("/mode")).text == "fake"
            state = (await client.get("/state")).json()
            assert state["families"]["IPv4"]["frontends"] == 2
            assert state["families"]["IPv4"]["objects"]["destination"] == 2
            agent.tell(ClusterChange({}, dataclasses.replace(NODE, leaving=True), lists=1))
            await until(lambda: agent.status.leaving)
            pages = {page: (await client.get(page)).status_code for page in ("/livez", "/healthz")}
            assert pages == {"/livez": 200, "/healthz": 503}
            # The Node has another range of pods, and then the old one: what follows from it is written anew.
            for ranges in (("10.9.0.0/24",), NODE.pod_ranges):
                agent.tell(ClusterChange({}, dataclasses.replace(NODE, pod_ranges=ranges), lists=1))
                await until(lambda wanted=(4, ranges): kernel.state[ObjectKey("table", "t")] == wanted)

    run(tmp_path, kernel, first)
    made = len(kernel.log)
    assert made

    async def second(agent: Agent, base: str) -> None:
        agent.tell(ClusterChange(everything, NODE, complete=True, lists=1))
        await until(lambda: agent.status.synced)
        assert len(kernel.log) == made

    run(tmp_path, kernel, second)


def test_commands(tmp_path: Path) -> None:
    """Over the control socket: status, pause, resume, approve; what is no command is refused in words."""
    kernel = FakeKernel()
    many = dict(facts(f"s{n}", f"10.96.1.{n}", "10.1.0.1") for n in range(40))

    async def test(agent: Agent, base: str) -> None:
        path = tmp_path / "control.sock"
        server = ControlServer(path, agent.command)
        await server.start()
        assert path.stat().st_mode & 0o777 == 0o600
        agent.tell(ClusterChange(many, NODE, complete=True, lists=1))
        await until(lambda: agent.status.synced)
        assert (await ask(path, "pause")) == {"paused": True}
        made = len(kernel.log)
        agent.tell(ClusterChange({}, None, complete=True, lists=2))
        await asyncio.sleep(0.02)
        assert len(kernel.log) == made
        assert (await ask(path, "resume")) == {"paused": False}
        await until(lambda: not agent.status.paused)
        assert (await ask(path, "status"))["families"]["IPv4"]["held_removals"] == 40
        assert len([key for key in kernel.state if key.kind == "service"]) == 40
        assert (await ask(path, "approve")) == {"approved": True}
        await until(lambda: not [key for key in kernel.state if key.kind == "service"])
        with pytest.raises(ControlRefused, match="unknown command 'dance'"):
            await ask(path, "dance")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"[1]\n")
        assert b"not a command" in await reader.readline()
        writer.close()
        await server.close()
        with pytest.raises(ControlRefused, match="no agent is running"):
            await ask(path, "status")

    run(tmp_path, kernel, test)


def test_a_kernel_that_does_not_answer(tmp_path: Path) -> None:
    """While a write hangs nothing new reaches any figure: the agent is called dead all the same, and alive after it."""
    kernel = FakeKernel()
    answer = threading.Event()

    def hang(operation: object) -> int:
        answer.wait(20)
        return 0

    async def test(agent: Agent, base: str) -> None:
        await serving(base)
        kernel.fault = hang
        try:
            agent.tell(ClusterChange(dict([facts("orders", "10.96.0.1")]), NODE, complete=True, lists=1))
            async with httpx.AsyncClient(base_url=base) as client:
                while (await client.get("/livez")).status_code == 200:
                    agent.now = lambda: time.monotonic() + 200.0
                assert "does not answer" in (await client.get("/livez")).json()["reason"]
                answer.set()
                await until(lambda: agent.status.synced)
                assert (await client.get("/livez")).status_code == 200
        finally:
            answer.set()

    run(tmp_path, kernel, test)


def test_two_agents_refuse_each_other(tmp_path: Path) -> None:
    """The second one says who holds the ledger; when the first ends, the next may begin."""
    first = LedgerFile(tmp_path / "ledger")
    with pytest.raises(AgentRunning, match="another meshlib agent runs"):
        LedgerFile(tmp_path / "ledger")
    LedgerFile(tmp_path / "ledger", read_only=True).close()
    first.close()
    LedgerFile(tmp_path / "ledger").close()


class _Fails(FakeKernel):
    def probe(self) -> Probe:
        return Probe(False, "no such thing in this kernel", ())


@pytest.mark.acceptance(106, 107)
def test_modes() -> None:
    """auto takes the first that works and keeps the reasons of the others; an explicit mode never falls back; a
    family that the kernel lacks is left out."""
    makers: dict[str, Any] = {"ipvs": lambda family: _Fails(), "nftables": lambda family: FakeKernel()}
    chosen = choose("auto", (4, 6), makers)
    assert (chosen.mode, sorted(chosen.backends)) == ("nftables", [4, 6])
    assert chosen.probes["ipvs"].reason == "no such thing in this kernel"
    with pytest.raises(NoBackend, match=r"(?s)ipvs: no such thing.*never falls back"):
        choose("ipvs", (4,), makers)
    with pytest.raises(NoBackend, match=r"(?s)ipvs: no such.*nftables: this build.*iptables: this build"):
        choose("auto", (4,), {"ipvs": makers["ipvs"]})
    only_4 = {"nftables": lambda family: FakeKernel() if family == 4 else _Fails()}
    assert sorted(choose("auto", (4, 6), only_4).backends) == [4]
