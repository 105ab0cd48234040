"""Options that the agent's commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from meshlib.agent.load import Loaded, load_settings
from meshlib.agent.state import STATE_FOLDER
from meshlib.cli.exits import stop
from meshlib.errors import ConfigError

state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=STATE_FOLDER,
    show_default=True,
    help="Folder of the ledger and the control socket.",
)


def settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--config`` and ``--set``."""
    function = click.option(
        "--set",
        "flags",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting; wins over MESHLIB_AGENT_KEY and the file. Lists: with commas.",
    )(function)
    return click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A TOML file with settings.",
    )(function)


def settings(file: Path | None, flags: Sequence[str]) -> Loaded:
    """The settings; prints the error and exits 2 when they are wrong."""
    try:
        return load_settings(flags, os.environ, file or os.environ.get("MESHLIB_AGENT_CONFIG") or None)
    except ConfigError as error:
        stop(error)


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--files`` and ``--timeout``, for commands that read the facts themselves."""
    function = click.option(
        "--timeout", default=30.0, show_default=True, help="Seconds to wait for the source."
    )(function)
    return click.option(
        "--files",
        type=click.Path(path_type=Path, exists=True),
        help="Take Services and EndpointSlices from this file or folder instead of a cluster.",
    )(function)
