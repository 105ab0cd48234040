"""The agent's life in the foreground: what ``meshlib agent run`` does once the programmer's process is there."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshlib.agent import assembly, coexist
from meshlib.agent.backends.base import words
from meshlib.agent.broker.client import BrokerGone
from meshlib.agent.broker.privileges import confine_parser
from meshlib.agent.broker.start import ProgrammerProcess
from meshlib.agent.compile.compiler import DesiredChange
from meshlib.agent.engine.garbage import settle
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.engine.leftovers import Departed, entry
from meshlib.agent.engine.node import Step
from meshlib.agent.host import HostWatch
from meshlib.agent.load import Loaded
from meshlib.agent.modes import Chosen, choose
from meshlib.agent.objects import ObjectKey
from meshlib.agent.ops.control import ControlServer
from meshlib.agent.ops.log import Log
from meshlib.agent.ops.metrics_page import MetricsPage
from meshlib.agent.relays import Relays
from meshlib.agent.service import Agent, Source
from meshlib.agent.settings import AgentSettings
from meshlib.agent.state import CONTROL, LEDGER
from meshlib.agent.surroundings import obstacles
from meshlib.cli.output import visible
from meshlib.model.cluster import Node
from meshlib.runtime.clock import SYSTEM

if TYPE_CHECKING:
    from meshlib.agent.backends.iptables.helper import Helper


def serve(
    loaded: Loaded, state: Path, files: Path | None, as_json: bool, programmer: ProgrammerProcess
) -> None:
    """Until SIGTERM or SIGINT. ``files``: instead of a cluster. Raises MeshError, OSError."""
    log = Log(lambda line: click.echo(visible(line), err=True), SYSTEM.wall, as_json=as_json)
    asyncio.run(_run(loaded, state, files, log, programmer))


async def _run(
    loaded: Loaded, state: Path, files: Path | None, log: Log, programmer: ProgrammerProcess
) -> None:
    options = loaded.settings
    ledger = LedgerFile(state / LEDGER)
    worker = assembly.Worker()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    crashes: list[BaseException] = []
    noted = any(entry("iptables", family) in ledger.ledger.owned for family in options.families)
    needed = noted or options.mode == "auto" or _by_iptables(options.mode, options)
    iptables = _helper() if needed else None
    confine_parser()
    make = programmer.broker.socket
    relays = Relays(options, log.say)

    def crashed(name: str, error: BaseException) -> None:
        crashes.append(error)
        stopping.set()

    def programmer_ended() -> None:
        loop.remove_reader(programmer.ended)
        # This process may not start another one any more; whoever started it will.
        crashed("programmer", BrokerGone(errno.EPIPE, "the programmer's process has ended; its rules stay"))

    loop.add_reader(programmer.ended, programmer_ended)
    try:
        noticed = await worker(lambda: coexist.signs(assembly.connector(make)))
        coexist.check(options, noticed)
        for sign in noticed:
            log.say(f"kube-proxy is here as well: {sign}")
        ways = assembly.makers(options, make, relays, iptables)
        chosen = await worker(lambda: choose(options.mode, options.families, ways))
        for mode, probe in chosen.probes.items():
            log.say(f"mode {mode}: {'chosen' if mode == chosen.mode else 'not usable'}: {probe.reason}")
        if _by_iptables(chosen.mode, options):
            ledger.write(ledger.ledger.own(entry("iptables", family) for family in chosen.backends))
        agent = _agent(loaded, chosen, ledger, worker, make, log, iptables)
        context = assembly.context(assembly.kubernetes_settings(options, os.environ), log.event, crashed)
        source: Source
        if files is not None:
            own = Node(options.node_name, options.zone, options.node_addresses, options.pod_cidrs)
            from meshlib.discovery.file.cluster import FileCluster

            source = FileCluster(context, str(files), own, agent.tell)
        else:
            from meshlib.discovery.kubernetes.cluster import KubernetesCluster

            source = KubernetesCluster(context, options.node_name, agent.tell)
        agent.source = source
        agent.host = HostWatch(agent.tell, log.say)
        if chosen.mode != "userspace":
            agent.obstacles = lambda: obstacles(assembly.connector(make))
            for each in await worker(agent.obstacles):
                log.say(f"in the way: {each}; `meshlib agent preflight` has the rule that helps")
        control = ControlServer(state / CONTROL, agent.command)
        await control.start()
        try:
            await agent.run(stopping)
        finally:
            await control.close()
            await relays.close()
    finally:
        if iptables is not None:
            iptables.close()
        loop.remove_reader(programmer.ended)
        ledger.close()
    if crashes:
        raise crashes[0]


def _by_iptables(mode: str, options: AgentSettings) -> bool:
    """Whether the mode writes rules of iptables."""
    return mode == "iptables" or (mode == "ipvs" and options.companion == "iptables")


def _helper() -> Helper:
    from meshlib.agent.backends.iptables.helper import Helper

    return Helper()


def _agent(
    loaded: Loaded,
    chosen: Chosen,
    ledger: LedgerFile,
    worker: assembly.Worker,
    make: Any,
    log: Log,
    iptables: Helper | None,
) -> Agent:
    """The agent with everything that listens to it."""
    metrics: MetricsPage | None = None

    def step(done: Step) -> None:
        def say(key: ObjectKey, value: Any) -> str:
            return words(chosen.backends[done.family], key, value)

        log.step(done, say)
        if metrics is not None:
            metrics.step(done)

    def change(family: int, difference: DesiredChange) -> None:
        log.change(family, difference)
        log.held(family, len(engine.families[family].programmer.held))
        if metrics is not None:
            metrics.change(family, difference)

    def departed(what: Departed) -> None:
        log.departed(what)
        if metrics is not None:
            metrics.departed(what)

    options = loaded.settings

    def over() -> None:
        # Who may run programs is not kept for longer than it is needed.
        if iptables is not None and not _by_iptables(chosen.mode, options):
            iptables.close()

    def settled() -> None:
        engine.leftovers = assembly.leftovers(options, chosen, ledger, departed, make, iptables, over)
        settle()

    engine = assembly.engine(options, chosen, ledger, step, change, make, settled)
    agent = Agent(options, chosen, engine, worker, SYSTEM.now, log.say)
    try:
        from meshlib.agent.ops.metrics import Metrics
    except ImportError:
        log.say("no /metrics: prometheus_client is not installed (pip install 'meshlib-sdk[agent]')")
    else:
        agent.metrics = metrics = Metrics(chosen, lambda: agent.status, SYSTEM.wall)
    return agent
