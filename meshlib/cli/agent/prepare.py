"""``meshlib agent prepare``: the privileged step before the agent: modules and kernel settings, then it ends."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import click

from meshlib.agent.backends.ipvs.sysctls import kernel_version, set_sysctls
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.preparation import lacking, missing_modules, needed
from meshlib.agent.state import LEDGER
from meshlib.cli.agent.options import settings, settings_options, state_option
from meshlib.cli.exits import NEGATIVE, OK, UNKNOWN, stop
from meshlib.cli.output import visible
from meshlib.errors import MeshError

#: Seconds that loading one module may take.
_PATIENCE = 30.0


@click.command("prepare")
@settings_options
@state_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
def command(file: Path | None, flags: tuple[str, ...], state: Path, dry_run: bool) -> None:
    """Load the kernel modules and set the kernel settings that the agent needs, once per boot, and end.

    Needs root. The previous value of each setting is noted in the ledger, and `meshlib agent cleanup` puts it back.
    A module that cannot be loaded is told, and is no failure: the mode that needs it will say so.

    Exit codes: 0 all settings are as they should be; 1 some could not be set; 3 the ledger could not be written.
    """
    options = settings(file, flags).settings
    wanted = needed(options, kernel_version(platform.release()), os.cpu_count() or 1)
    for name in missing_modules(wanted.modules, platform.release()):
        _load(name, dry_run)
    # Asked only now: the settings of ip_vs and connection tracking exist once their modules are loaded.
    there = lacking(wanted)
    absent = sorted(name for name, actual in there.items() if not actual)
    todo = {name: wanted.sysctls[name] for name, actual in there.items() if actual}
    for name in absent:
        click.echo(f"{name}: this kernel does not have it (its module is not loaded, or the family is off)")
    for name, value in todo.items():
        click.echo(f"{name}: {there[name]} -> {value}")
    if dry_run or not todo:
        raise SystemExit(OK)
    try:
        ledger = LedgerFile(state / LEDGER)
    except (MeshError, OSError) as error:
        if isinstance(error, MeshError):
            stop(error)
        click.echo(f"error: the ledger in {state} cannot be written: {error.strerror}", err=True)
        raise SystemExit(UNKNOWN) from None
    try:
        failed = set_sysctls(todo, lambda name, before: ledger.write(ledger.ledger.note_sysctl(name, before)))
    finally:
        ledger.close()
    for name, problem in failed.items():
        click.echo(visible(f"{name}: cannot be set: {problem.strerror}"), err=True)
    raise SystemExit(NEGATIVE if failed else OK)


def _load(name: str, dry_run: bool) -> None:
    program = shutil.which("modprobe")
    if dry_run or program is None:
        click.echo(
            f"module {name}: " + ("would be loaded" if program else "not loaded: there is no modprobe here")
        )
        return
    done = subprocess.run(  # noqa: S603 names of our own list
        [program, name], capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    if done.returncode == 0:
        click.echo(f"module {name}: loaded")
    else:
        # Some kernels have it built in and do not tell.
        click.echo(visible(f"module {name}: built in or absent ({done.stderr.strip() or done.returncode})"))
