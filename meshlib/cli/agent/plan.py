"""``meshlib agent plan``: what an agent would change on this node, and why. Nothing is written."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import click

from meshlib.agent import assembly
from meshlib.agent.backends.base import Backend, words
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.engine.node import NodeEngine
from meshlib.agent.modes import Chosen, choose
from meshlib.agent.objects import Operation, Verb
from meshlib.cli.agent.options import settings, settings_options, state_option
from meshlib.cli.exits import NEGATIVE, OK, UNKNOWN, stop
from meshlib.cli.output import output_option, print_json, visible
from meshlib.discovery.file.cluster import FileCluster
from meshlib.discovery.kubernetes.cluster import KubernetesCluster
from meshlib.errors import DiscoveryError, MeshError
from meshlib.model.cluster import ClusterChange, Node
from meshlib.model.events import Event, SourceFailed

_SIGNS = {Verb.ADD: "+", Verb.SET: "~", Verb.REMOVE: "-"}


@click.command("plan")
@settings_options
@state_option
@output_option
@click.option(
    "--files",
    type=click.Path(path_type=Path, exists=True),
    help="Take Services and EndpointSlices from this file or folder instead of a cluster.",
)
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait for the source.")
def command(
    file: Path | None, flags: tuple[str, ...], state: Path, output: str, files: Path | None, timeout: float
) -> None:
    """Show what an agent would change on this node, and for which frontend. Writes nothing, and may run beside one.

    Exit codes: 0 nothing to change; 1 something; 3 the cluster or the kernel could not be read.
    """
    loaded = settings(file, flags)
    options = loaded.settings
    try:
        chosen = choose(options.mode, options.families, assembly.makers(options))
        engine = assembly.engine(
            options,
            chosen,
            LedgerFile(state / assembly.LEDGER, read_only=True),
            lambda step: None,
            lambda f, c: None,
        )
        asyncio.run(_fill(engine, assembly.kubernetes_settings(options, os.environ), options, files, timeout))
        plans = {}
        for family, each in engine.families.items():
            each.programmer.audit()
            plans[family] = each.programmer.preview()
    except MeshError as error:
        stop(error)
    except OSError as error:
        click.echo(f"error: {visible(str(error))}", err=True)
        raise SystemExit(UNKNOWN) from None
    if output == "json":
        print_json(_document(chosen, engine, plans))
    else:
        _show(chosen, engine, plans)
    raise SystemExit(NEGATIVE if any(plans.values()) else OK)


async def _fill(
    engine: NodeEngine, kubernetes: dict[str, Any], options: Any, files: Path | None, timeout: float
) -> None:
    """Wait for everything to be told once. Raises DiscoveryError with what the source said last."""
    known = asyncio.Event()
    said: list[str] = []

    def tell(change: ClusterChange) -> None:
        engine.tell(change)
        known.set()

    def emit(event: Event) -> None:
        if isinstance(event, SourceFailed):
            said.append(str(event.error))

    def crashed(name: str, error: BaseException) -> None:
        said.append(repr(error))

    context = assembly.context(kubernetes, emit, crashed)
    source: FileCluster | KubernetesCluster
    if files is not None:
        own = Node(options.node_name, options.zone, options.node_addresses, options.pod_cidrs)
        source = FileCluster(context, str(files), own, tell)
    else:
        source = KubernetesCluster(context, options.node_name, tell)
    source.start()
    try:
        async with asyncio.timeout(timeout):
            await known.wait()
    except TimeoutError:
        last = said[-1] if said else str(source.describe().get("problem") or "no answer")
        raise DiscoveryError(f"the cluster was not read within {timeout:g} s: {last}") from None
    finally:
        await source.close()
    engine.take()


def _words(backend: Backend, operation: Operation) -> str:
    why = f"   for {operation.why}" if operation.why is not None else ""
    return f"{_SIGNS[operation.verb]} {words(backend, operation.key, operation.value)}{why}"


def _show(chosen: Chosen, engine: NodeEngine, plans: dict[int, tuple[Operation, ...]]) -> None:
    click.echo(f"mode {chosen.mode}")
    for family, plan in plans.items():
        programmer = engine.families[family].programmer
        click.echo(f"IPv{family}: {len(programmer.frontends)} frontends, {len(plan)} changes")
        for operation in plan:
            click.echo(visible(f"  {_words(programmer.backend, operation)}"))
        for key in sorted(programmer.planner.foreign):
            said = words(programmer.backend, key, None)
            click.echo(visible(f"  ! {said} is somebody else's and would be left alone"))
        for note in sorted(engine.families[family].notes):
            click.echo(visible(f"  {note.service}: {note.text} ({note.reason})"))


def _document(chosen: Chosen, engine: NodeEngine, plans: dict[int, tuple[Operation, ...]]) -> dict[str, Any]:
    return {
        "mode": chosen.mode,
        "families": {
            f"IPv{family}": {
                "frontends": len(engine.families[family].programmer.frontends),
                "changes": [
                    {
                        "verb": operation.verb.value,
                        "kind": operation.key.kind,
                        "words": words(chosen.backends[family], operation.key, operation.value),
                        "why": None if operation.why is None else str(operation.why),
                    }
                    for operation in plan
                ],
                "notes": [
                    f"{note.service}: {note.text} ({note.reason})"
                    for note in sorted(engine.families[family].notes)
                ],
            }
            for family, plan in plans.items()
        },
    }
