"""``meshlib agent run``: the agent in the foreground, until it is told to stop.

The programmer's process is the first thing that is started: it loads its modules while this one loads the agent's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from meshlib.agent.broker.start import ProgrammerProcess
from meshlib.cli.agent.options import settings, settings_options, state_option
from meshlib.cli.exits import UNKNOWN, stop
from meshlib.cli.output import visible
from meshlib.errors import MeshError
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
    try:
        # Before anything is read that somebody else wrote: afterwards this process may do nothing to the host.
        programmer = ProgrammerProcess(new_lock())
        try:
            # Without httpx's own command line: with its tables and colours it takes longer to load than all of httpx.
            sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
            from meshlib.cli.agent.foreground import serve

            serve(loaded, state, files, form == "json", programmer)
        finally:
            programmer.close()
    except MeshError as error:
        stop(error)
    except OSError as error:
        click.echo(f"error: {visible(str(error))}", err=True)
        raise SystemExit(UNKNOWN) from None
