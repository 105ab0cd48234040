"""``meshlib run``: a program whose httpx clients and gRPC channels balance mesh targets, without a line of code."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import click

from meshlib.cli.exits import stop
from meshlib.clients.autostart import AUTOMATIC, disabled
from meshlib.errors import ConfigError
from meshlib.runtime.config import load_config

#: The folder whose ``sitecustomize`` starts us in the program's Python processes.
STARTUP = Path(__file__).parents[1] / "clients" / "startup"
#: The shell's codes for a command that is not there, and for one that cannot be executed.
NOT_FOUND, NOT_EXECUTABLE = 127, 126


def command_line(words: Sequence[str]) -> list[str]:
    """What to execute: ``-m module`` and ``script.py`` run on this Python, anything else is a program.

    ``python`` itself is this Python where no other is in PATH.
    """
    first = words[0]
    if first == "-m" or (first.endswith(".py") and not os.access(first, os.X_OK)):
        return [sys.executable, *words]
    if first in ("python", "python3") and shutil.which(first) is None:
        return [sys.executable, *words[1:]]
    return list(words)


def environment(
    environ: Mapping[str, str],
    *,
    only: str = "",
    config: str = "",
    strict: bool = False,
    kubeconfig: str = "",
    context: str = "",
) -> dict[str, str]:
    """The program's environment; children inherit it. Options of the command win over variables that are set."""
    made = dict(environ)
    made[AUTOMATIC] = only or "httpx,grpc"
    made["MESHLIB_RUN_PID"] = str(os.getpid())  # the program keeps our process id
    folders = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry != str(STARTUP)]
    made["PYTHONPATH"] = os.pathsep.join([str(STARTUP), *(entry for entry in folders if entry)])
    if config:
        made["MESHLIB_CONFIG"] = os.path.abspath(config)
    if strict:
        made["MESHLIB_STRICT"] = "1"
    if kubeconfig or context:
        tables = json.loads(environ.get("MESHLIB_DISCOVERY") or "{}")
        cluster = {"kubeconfig": os.path.abspath(kubeconfig) if kubeconfig else "", "context": context}
        tables["k8s"] = {**tables.get("k8s", {}), **{key: value for key, value in cluster.items() if value}}
        made["MESHLIB_DISCOVERY"] = json.dumps(tables)
    return made


def execute(words: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become the program: same process, so signals, exit code and file descriptors are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(words[0], list(words), dict(environ))  # noqa: S606 - running what the user named is the purpose
    except FileNotFoundError:
        click.echo(f"error: {words[0]}: no such program", err=True)
        raise SystemExit(NOT_FOUND) from None
    except OSError as error:
        click.echo(f"error: {words[0]}: {error.strerror}", err=True)
        raise SystemExit(NOT_EXECUTABLE) from None


@click.command(
    "run",
    epilog="Exit codes: the program's own; 2 wrong usage or configuration; 126 and 127 the program cannot be started.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--only", type=click.Choice(["httpx", "grpc"]), default=None, help="Balance only one of the two."
)
@click.option(
    "--config", default=None, type=click.Path(exists=True, dir_okay=False), help="Configuration file."
)
@click.option("--strict", is_flag=True, help="Every fall-back becomes an error.")
@click.option(
    "--kubeconfig", default="", help="Kubeconfig file; without it none is read, in a pod none is needed."
)
@click.option("--context", default="", help="Context of the kubeconfig.")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    only: str | None,
    config: str | None,
    strict: bool,
    kubeconfig: str,
    context: str,
    program: tuple[str, ...],
) -> None:
    """Run a program whose httpx clients and gRPC channels balance mesh targets, as after meshlib.install(): this
    process, its workers and every Python program that it starts with the same environment.

    MESHLIB_DISABLED=1 runs the program as it is.

    \b
    Examples:
      meshlib run -- python app.py
      meshlib run -- gunicorn -w 4 app:app
      meshlib run -- -m uvicorn app:app
      meshlib run --only httpx --strict -- python app.py
    """
    words = command_line(program[1:] if program[0] == "--" else program)
    if disabled():
        execute(words, os.environ)
    if context and not kubeconfig:
        raise click.UsageError("--context needs --kubeconfig")
    environ = environment(
        os.environ,
        only=only or "",
        config=config or "",
        strict=strict,
        kubeconfig=kubeconfig,
        context=context,
    )
    try:
        load_config(environ=environ)  # told here, once, instead of by every process of the program
    except ConfigError as error:
        stop(error)
    execute(words, environ)
