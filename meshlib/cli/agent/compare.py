"""``meshlib agent compare``: kube-proxy's live rules on this node against ours. Reads only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from meshlib.agent.compare.ours import Ours, from_plain, ours
from meshlib.agent.compare.projection import Difference, Endpoints, difference
from meshlib.agent.engine.node import NodeEngine
from meshlib.agent.ops.control import ControlRefused, ask
from meshlib.agent.state import CONTROL
from meshlib.cli.agent import theirs
from meshlib.cli.agent.offline import filled_engine
from meshlib.cli.agent.options import settings, settings_options, source_options, state_option
from meshlib.cli.exits import NEGATIVE, OK, UNKNOWN, stop
from meshlib.cli.output import output_option, print_json, visible
from meshlib.errors import MeshError

#: Differences that are told one by one, of each kind.
SHOWN = 50


@click.command("compare")
@settings_options
@state_option
@source_options
@output_option
def command(
    file: Path | None, flags: tuple[str, ...], state: Path, files: Path | None, timeout: float, output: str
) -> None:
    """Compare what kube-proxy has programmed on this node (iptables or ipvs mode) with what meshlib serves or would
    serve, as a source outside the node sees it. Nothing is written; the running agent is asked, or the cluster is read.

    Exit codes: 0 the same; 1 different; 3 there is no kube-proxy, or something could not be read.
    """
    loaded = settings(file, flags)
    try:
        wanted = our_side(state, lambda: filled_engine(loaded.settings, state, files, timeout)[1])
        found = {family: compared(family, mine) for family, mine in wanted.items()}
    except MeshError as error:
        stop(error)
    except OSError as error:
        click.echo(f"error: {visible(str(error))}", err=True)
        raise SystemExit(UNKNOWN) from None
    if not any(by for by, _ in found.values()):
        click.echo("kube-proxy has nothing programmed here (looked for iptables and ipvs)", err=True)
        raise SystemExit(UNKNOWN)
    if output == "json":
        print_json({f"IPv{family}": _document(by, each) for family, (by, each) in found.items()})
    else:
        for family, (by, each) in found.items():
            if by:
                _show(family, by, each)
    raise SystemExit(NEGATIVE if any(each for by, each in found.values() if by) else OK)


def our_side(state: Path, engine: Callable[[], NodeEngine]) -> dict[int, Ours]:
    """From the running agent, else from an engine that reads the facts. Raises MeshError, OSError."""
    try:
        told = asyncio.run(ask(state / CONTROL, "frontends"))
    except ControlRefused:
        if (state / CONTROL).exists():
            raise
        return {family: ours(each.programmer) for family, each in engine().families.items()}
    return {int(family): from_plain(side) for family, side in told.items()}


def compared(family: int, mine: Ours) -> tuple[list[str], Difference]:
    """Through what theirs was found, and the difference. Raises OSError."""
    other = theirs.read(family, mine.node_addresses)
    return other.by, difference(other.rules, mine.rules, mine.node_ports)


def _endpoints(endpoints: Endpoints) -> str:
    return ", ".join(f"{address}:{port}" for address, port in sorted(endpoints)) or "nobody"


def _show(family: int, by: list[str], found: Difference) -> None:
    click.echo(f"IPv{family} ({', '.join(by)}): {found.same} frontends are the same")
    if found.elsewhere:
        click.echo(
            f"  kube-proxy serves node ports on {found.elsewhere} more addresses (node_port_addresses)"
        )
    lines = [f"  only kube-proxy: {key}" for key in found.only_theirs]
    lines += [f"  only meshlib:    {key}" for key in found.only_ours]
    lines += [
        f"  {key}: kube-proxy leads to {_endpoints(them)}; meshlib to {_endpoints(us)}"
        for key, them, us in found.other_endpoints
    ]
    for line in lines[:SHOWN]:
        click.echo(visible(line))
    if len(lines) > SHOWN:
        click.echo(f"  and {len(lines) - SHOWN} more")


def _document(by: list[str], found: Difference) -> dict[str, Any]:
    return {
        "by": by,
        "same": found.same,
        "elsewhere": found.elsewhere,
        "only_kube_proxy": [str(key) for key in found.only_theirs],
        "only_meshlib": [str(key) for key in found.only_ours],
        "other_endpoints": [
            {"frontend": str(key), "kube_proxy": sorted(them), "meshlib": sorted(us)}
            for key, them, us in found.other_endpoints
        ],
    }
