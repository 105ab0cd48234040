"""``meshlib agent run``: the agent in the foreground, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import click

from meshlib.agent import assembly
from meshlib.agent.broker.privileges import confine_parser
from meshlib.agent.broker.start import ProgrammerProcess
from meshlib.agent.compile.compiler import DesiredChange
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.engine.node import Step
from meshlib.agent.load import Loaded
from meshlib.agent.modes import choose
from meshlib.agent.ops.control import ControlServer
from meshlib.agent.service import Agent, Source
from meshlib.cli.agent.options import settings, settings_options, state_option
from meshlib.cli.exits import UNKNOWN, stop
from meshlib.cli.output import visible
from meshlib.discovery.file.cluster import FileCluster
from meshlib.discovery.kubernetes.cluster import KubernetesCluster
from meshlib.errors import MeshError
from meshlib.model.cluster import Node
from meshlib.model.events import EntrySkipped, Event, SourceFailed, SourceRecovered
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.primitives import new_lock


def say(line: str) -> None:
    """One line of the log, on stderr."""
    click.echo(visible(line), err=True)


@click.command("run")
@settings_options
@state_option
@click.option(
    "--files",
    type=click.Path(path_type=Path, exists=True),
    help="Take Services and EndpointSlices from this file or folder instead of a cluster.",
)
def command(file: Path | None, flags: tuple[str, ...], state: Path, files: Path | None) -> None:
    """Program this node with the Services of the cluster, until SIGTERM or SIGINT.

    The rules stay when it ends: a restart or an upgrade cuts no connection. `meshlib agent cleanup` removes them.
    """
    loaded = settings(file, flags)
    try:
        asyncio.run(_run(loaded, state, files))
    except MeshError as error:
        stop(error)
    except OSError as error:
        click.echo(f"error: {visible(str(error))}", err=True)
        raise SystemExit(UNKNOWN) from None


async def _run(loaded: Loaded, state: Path, files: Path | None) -> None:
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
    confine_parser()

    def crashed(name: str, error: BaseException) -> None:
        crashes.append(error)
        stopping.set()

    try:
        chosen = await worker(
            lambda: choose(options.mode, options.families, assembly.makers(options, programmer.broker.socket))
        )
        for mode, probe in chosen.probes.items():
            say(f"mode {mode}: {'chosen' if mode == chosen.mode else 'not usable'}: {probe.reason}")
        engine = assembly.engine(options, chosen, ledger, _step, _change)
        agent = Agent(options, chosen, engine, worker, SYSTEM.now, say)
        context = assembly.context(assembly.kubernetes_settings(options, os.environ), _event, crashed)
        source: Source
        if files is not None:
            own = Node(options.node_name, options.zone, options.node_addresses, options.pod_cidrs)
            source = FileCluster(context, str(files), own, agent.tell)
        else:
            source = KubernetesCluster(context, options.node_name, agent.tell)
        agent.source = source
        control = ControlServer(state / assembly.CONTROL, agent.command)
        await control.start()
        try:
            await agent.run(stopping)
        finally:
            await control.close()
    finally:
        programmer.close()
        ledger.close()
    if crashes:
        raise crashes[0]


def _step(step: Step) -> None:
    written = step.written
    drift = written.drift
    parts = [f"{len(written.plan) - len(written.failed)} operations in {step.seconds * 1000:.1f} ms"]
    if drift is not None and drift.count:
        parts.append(
            f"audit: {len(drift.missing)} missing, {len(drift.different)} different, {len(drift.surplus)} surplus"
        )
    if drift is not None and drift.foreign:
        parts.append(f"{len(drift.foreign)} places are taken by somebody else")
    if written.failed:
        first = written.failed[0]
        parts.append(
            f"{len(written.failed)} failed, first: {first.operation.key.kind} {first.operation.key.name}: {first.text}"
        )
    if written.error is not None:
        parts.append(f"error: {written.error}")
    if written.plan or not written.ok or (drift is not None and drift.count):
        say(f"IPv{step.family}: " + "; ".join(parts))


def _change(family: int, change: DesiredChange) -> None:
    for note in change.notes_added:
        say(f"IPv{family}: {note.service}: {note.text} ({note.reason})")


def _event(event: Event) -> None:
    match event:
        case SourceFailed():
            say(f"{event.source}: {event.error}" + ("; the last good state stays" if event.stale else ""))
        case SourceRecovered():
            say(f"{event.source}: answers again")
        case EntrySkipped():
            say(f"{event.source}: skipped {event.where}: {event.reason}")
