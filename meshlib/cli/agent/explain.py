"""``meshlib agent explain``: what this node does with an address and port, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from meshlib.agent.explain import explain, parse_frontend
from meshlib.agent.ops.control import ControlRefused, ask
from meshlib.agent.state import CONTROL
from meshlib.cli.agent.offline import filled_engine
from meshlib.cli.agent.options import settings, settings_options, source_options, state_option
from meshlib.cli.exits import NEGATIVE, OK, UNKNOWN, stop
from meshlib.cli.output import output_option, print_json, print_table, visible
from meshlib.errors import MeshError


@click.command("explain")
@click.argument("frontend", metavar="ADDRESS:PORT")
@click.option("--protocol", type=click.Choice(["TCP", "UDP", "SCTP"], case_sensitive=False), default="TCP")
@settings_options
@state_option
@source_options
@output_option
def command(
    frontend: str,
    protocol: str,
    file: Path | None,
    flags: tuple[str, ...],
    state: Path,
    files: Path | None,
    timeout: float,
    output: str,
) -> None:
    """Say who serves ADDRESS:PORT on this node: the Service, its endpoints, masquerading and why; and whether the
    kernel holds what that needs. Asks the running agent; without one it reads the cluster by itself.

    Exit codes: 0 served, and the kernel agrees; 1 not served, or the kernel lacks something; 3 could not find out.
    """
    protocol = protocol.upper()
    try:
        asked = parse_frontend(frontend, protocol)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    found: Mapping[str, Any]
    try:
        found = asyncio.run(ask(state / CONTROL, "explain", frontend=frontend, protocol=protocol))
    except ControlRefused as error:
        if (state / CONTROL).exists():
            stop(error)
        try:
            _, engine = filled_engine(settings(file, flags).settings, state, files, timeout)
            found = explain(engine.families, asked)
        except MeshError as problem:
            stop(problem)
        except OSError as problem:
            click.echo(f"error: {visible(str(problem))}", err=True)
            raise SystemExit(UNKNOWN) from None
    if output == "json":
        print_json(found)
    else:
        _show(found)
    kernel = found.get("kernel", {})
    if "error" in kernel:
        raise SystemExit(UNKNOWN)
    well = found["served"] and not (kernel["missing"] or kernel["different"])
    raise SystemExit(OK if well else NEGATIVE)


def _show(found: Mapping[str, Any]) -> None:
    if not found["served"]:
        click.echo(visible(f"{found['asked']}: {found['why']}"))
        return
    rows = [
        ("service", f"{found['service']}, port {found['port'] or '(unnamed)'}"),
        ("reached by", found["through"]),
        ("everybody" if found["pods_and_node"] is None else "from outside", _route(found["everybody"])),
    ]
    if found["pods_and_node"] is not None:
        rows.append(("pods here, node", _route(found["pods_and_node"])))
    rows += [
        ("why", found["why"]),
        ("masquerade", f"{found['masquerade']}: {found['masquerade_why']}"),
    ]
    if found["affinity_seconds"]:
        rows.append(("affinity", f"a client keeps its endpoint for {found['affinity_seconds']} s"))
    if found["scheduler"]:
        rows.append(("scheduler", found["scheduler"]))
    if found["source_ranges"] is not None:
        rows.append(("only from", ", ".join(found["source_ranges"]) or "nowhere"))
    if found["held_back"]:
        rows.append(("held back", "its removal waits for a confirmation: `meshlib agent approve`"))
    print_table(visible(found["asked"]), ["", ""], rows)
    kernel = found["kernel"]
    if "error" in kernel:
        click.echo(visible(f"the kernel cannot be read: {kernel['error']}"))
        return
    click.echo(f"\nin the kernel ({kernel['mode']}):")
    for sign, part in (("  ", "objects"), ("- missing: ", "missing"), ("~ different: ", "different")):
        for line in kernel[part]:
            click.echo(visible(f"{sign}{line}"))
    for note in found["notes"]:
        click.echo(visible(f"note: {note}"))


def _route(route: Mapping[str, Any]) -> str:
    if route["action"] != "forward":
        return str(route["action"])
    shown = [
        f"{each['address']}:{each['port']}" + (f" x{each['weight']}" if each["weight"] != 1 else "")
        for each in route["endpoints"]
    ]
    return ", ".join(shown)
