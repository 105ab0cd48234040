"""``meshlib agent plan``: what an agent would change on this node, and why. Nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshlib.agent.backends.base import Backend, words
from meshlib.agent.engine.node import NodeEngine
from meshlib.agent.modes import Chosen
from meshlib.agent.objects import Operation, Verb
from meshlib.cli.agent.offline import filled_engine
from meshlib.cli.agent.options import settings, settings_options, source_options, state_option
from meshlib.cli.exits import NEGATIVE, OK, UNKNOWN, stop
from meshlib.cli.output import output_option, print_json, visible
from meshlib.errors import MeshError

_SIGNS = {Verb.ADD: "+", Verb.SET: "~", Verb.REMOVE: "-"}


@click.command("plan")
@settings_options
@state_option
@output_option
@source_options
def command(
    file: Path | None, flags: tuple[str, ...], state: Path, output: str, files: Path | None, timeout: float
) -> None:
    """Show what an agent would change on this node, and for which frontend. Writes nothing, and may run beside one.

    Exit codes: 0 nothing to change; 1 something; 3 the cluster or the kernel could not be read.
    """
    loaded = settings(file, flags)
    try:
        chosen, engine = filled_engine(loaded.settings, state, files, timeout)
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
