"""Commands that ask the running agent through its control socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from meshlib.agent.ops.control import ask
from meshlib.agent.state import CONTROL
from meshlib.cli.agent.options import state_option
from meshlib.cli.exits import NEGATIVE, OK, stop
from meshlib.cli.output import output_option, print_json, print_table, visible
from meshlib.errors import MeshError


def _ask(state: Path, what: str) -> Mapping[str, Any]:
    try:
        return asyncio.run(ask(state / CONTROL, what))
    except MeshError as error:
        stop(error)


@click.command("status")
@state_option
@output_option
def status(state: Path, output: str) -> None:
    """Show what the running agent believes. Exit code 1 while something waits, failed or is held back."""
    found = _ask(state, "status")
    if output == "json":
        print_json(found)
    else:
        _show(found)
    families = found["families"].values()
    well = found["synced"] and not any(
        family["pending"] or family["failures"] or family["held_removals"] or family["error"]
        for family in families
    )
    raise SystemExit(OK if well else NEGATIVE)


def _show(found: Mapping[str, Any]) -> None:
    source = found["source"]
    facts = [
        ("mode", found["mode"]),
        ("node", found["node"] or "unknown: nothing is local"),
        ("source", str(source.get("source", "")) + (", stale" if source.get("stale") else "")),
        ("in sync", "yes" if found["synced"] else "not yet"),
        ("waiting", "nothing" if found["pending_seconds"] is None else f"{found['pending_seconds']} s"),
    ]
    facts += [(f"not {name}", why) for name, why in found["modes_tried"].items() if name != found["mode"]]
    if found["paused"]:
        facts.append(("paused", "yes: `meshlib agent resume`"))
    if source.get("problem"):
        facts.append(("problem", str(source["problem"])))
    print_table("meshlib agent", ["", ""], facts)
    rows = [
        (
            name,
            str(family["frontends"]),
            ", ".join(f"{count} {kind}" for kind, count in sorted(family["objects"].items())),
            str(family["pending"]),
            str(family["failures"]),
            str(family["draining"]),
            str(family["held_removals"]),
        )
        for name, family in found["families"].items()
    ]
    print_table("", ["family", "frontends", "objects", "pending", "failed", "draining", "held"], rows)
    for line in found["obstacles"]:
        click.echo(visible(f"in the way: {line}: `meshlib agent preflight`"))
    for name, family in found["families"].items():
        for line in (family["error"], *family["failed"], *family["notes"]):
            if line:
                click.echo(visible(f"{name}: {line}"))
        for line in family["foreign"]:
            click.echo(visible(f"{name}: somebody else's, left alone: {line}"))


@click.command("pause")
@state_option
def pause(state: Path) -> None:
    """Stop writing; the rules stay as they are, and changes are gathered."""
    _ask(state, "pause")
    click.echo("paused; `meshlib agent resume` goes on")


@click.command("resume")
@state_option
def resume(state: Path) -> None:
    """Go on writing after a pause."""
    _ask(state, "resume")
    click.echo("going on")


@click.command("approve")
@state_option
def approve(state: Path) -> None:
    """Let removals through that the guard holds back. Exit code 1 when none were."""
    if _ask(state, "approve")["approved"]:
        click.echo("approved: the removals are being carried out")
        raise SystemExit(OK)
    click.echo("nothing is held back")
    raise SystemExit(NEGATIVE)
