"""``meshlib agent run``: the agent in the foreground, until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import Any

import click

from meshlib.agent import assembly, coexist
from meshlib.agent.backends.base import words
from meshlib.agent.backends.iptables.helper import Helper
from meshlib.agent.backends.iptables.programs import Run
from meshlib.agent.broker.client import BrokerGone
from meshlib.agent.broker.privileges import confine_parser
from meshlib.agent.broker.start import ProgrammerProcess
from meshlib.agent.compile.compiler import DesiredChange
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.engine.leftovers import Departed
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
from meshlib.cli.agent.options import settings, settings_options, state_option
from meshlib.cli.exits import UNKNOWN, stop
from meshlib.cli.output import visible
from meshlib.discovery.file.cluster import FileCluster
from meshlib.discovery.kubernetes.cluster import KubernetesCluster
from meshlib.errors import MeshError
from meshlib.model.cluster import Node
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.primitives import new_lock


@click.command("run")
@settings_options
@state_option
@click.option(
    "--files",
    type=click.Path(path_type=Path, exists=True),
    help="Take Services and EndpointSlices from this file or folder instead of a cluster.",
)
@click.option(
    "--log",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines on stderr, one per change: for people, or JSON for programs.",
)
def command(file: Path | None, flags: tuple[str, ...], state: Path, files: Path | None, form: str) -> None:
    """Program this node with the Services of the cluster, until SIGTERM or SIGINT.

    The rules stay when it ends: a restart or an upgrade cuts no connection. `meshlib agent cleanup` removes them.
    """
    loaded = settings(file, flags)
    log = Log(lambda line: click.echo(visible(line), err=True), SYSTEM.wall, as_json=form == "json")
    try:
        asyncio.run(_run(loaded, state, files, log))
    except MeshError as error:
        stop(error)
    except OSError as error:
        click.echo(f"error: {visible(str(error))}", err=True)
        raise SystemExit(UNKNOWN) from None


async def _run(loaded: Loaded, state: Path, files: Path | None, log: Log) -> None:
    options = loaded.settings
    ledger = LedgerFile(state / assembly.LEDGER)
    worker = assembly.Worker()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    crashes: list[BaseException] = []
    # Before anything is read that somebody else wrote: afterwards this process may do nothing to the host.
    programmer = ProgrammerProcess(new_lock())
    iptables = Helper() if options.mode in ("auto", "iptables") else None
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
        agent = _agent(loaded, chosen, ledger, worker, make, log, iptables)
        context = assembly.context(assembly.kubernetes_settings(options, os.environ), log.event, crashed)
        source: Source
        if files is not None:
            own = Node(options.node_name, options.zone, options.node_addresses, options.pod_cidrs)
            source = FileCluster(context, str(files), own, agent.tell)
        else:
            source = KubernetesCluster(context, options.node_name, agent.tell)
        agent.source = source
        agent.host = HostWatch(agent.tell, log.say)
        control = ControlServer(state / assembly.CONTROL, agent.command)
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
        programmer.close()
        ledger.close()
    if crashes:
        raise crashes[0]


def _agent(
    loaded: Loaded,
    chosen: Chosen,
    ledger: LedgerFile,
    worker: assembly.Worker,
    make: Any,
    log: Log,
    run: Run | None,
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
        if metrics is not None:
            metrics.change(family, difference)

    def departed(what: Departed) -> None:
        log.departed(what)
        if metrics is not None:
            metrics.departed(what)

    options = loaded.settings
    engine = assembly.engine(options, chosen, ledger, step, change, make)
    engine.leftovers = assembly.leftovers(options, chosen, ledger, departed, make, run)
    agent = Agent(options, chosen, engine, worker, SYSTEM.now, log.say)
    try:
        from meshlib.agent.ops.metrics import Metrics
    except ImportError:
        log.say("no /metrics: prometheus_client is not installed (pip install 'meshlib-sdk[agent]')")
    else:
        agent.metrics = metrics = Metrics(chosen, lambda: agent.status, SYSTEM.wall)
    return agent
