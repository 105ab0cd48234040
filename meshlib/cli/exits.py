"""Exit codes of every command, the same everywhere; part of the interface."""

from __future__ import annotations

from typing import NoReturn

import click

from meshlib.cli.output import visible
from meshlib.errors import ConfigError, MeshError, TargetError

OK = 0
#: The question was answered, and the answer is bad: no endpoints, something lacks, requests failed.
NEGATIVE = 1
#: Wrong usage, target or configuration. click's own code for usage errors.
USAGE = 2
#: The question could not be answered in time: the control plane was not reachable or not allowed.
UNKNOWN = 3

EPILOG = "Exit codes: 0 yes; 1 the answer is no; 2 wrong usage or configuration; 3 could not find out."


def stop(error: MeshError) -> NoReturn:
    """Print an error of ours, without a traceback, and exit with the code it means."""
    click.echo(f"error: {visible(str(error))}", err=True)
    raise SystemExit(USAGE if isinstance(error, (TargetError, ConfigError)) else UNKNOWN)
