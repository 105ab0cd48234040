"""``meshlib agent cleanup``: everything of ours leaves the kernel."""

from __future__ import annotations

from pathlib import Path

import click

from meshlib.agent.assembly import shapes
from meshlib.agent.backends.base import Backend, words
from meshlib.agent.backends.ipvs.sysctls import restore_sysctls
from meshlib.agent.engine.cleanup import Cleaned, clean, summary
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.engine.leftovers import entry
from meshlib.agent.objects import Operation
from meshlib.agent.state import LEDGER
from meshlib.cli.agent.options import settings, settings_options, state_option
from meshlib.cli.exits import NEGATIVE, OK, UNKNOWN, stop
from meshlib.cli.output import visible
from meshlib.errors import MeshError
from meshlib.runtime.clock import SYSTEM


@click.command("cleanup")
@settings_options
@state_option
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
def command(file: Path | None, flags: tuple[str, ...], state: Path, dry_run: bool) -> None:
    """Remove everything of ours from this node's kernel, in every mode, and nothing else; put kernel settings back.

    Connections that go through the rules end with them. Can be repeated. Exit codes: 0 nothing of ours is left;
    1 something would not go; 3 an agent is running here.
    """
    loaded = settings(file, flags)
    try:
        ledger = LedgerFile(state / LEDGER, read_only=dry_run)
    except (MeshError, OSError) as error:
        if isinstance(error, MeshError):
            stop(error)
        click.echo(f"error: the ledger in {state} cannot be opened: {error.strerror}", err=True)
        raise SystemExit(UNKNOWN) from None
    done: dict[str, Cleaned] = {}
    for mode, family, backend in shapes(loaded.settings, loaded.settings.families):
        where = f"{mode} IPv{family}"
        noted = entry(mode, family) in ledger.ledger.owned
        probe = backend.probe()
        if family not in probe.families:
            if noted:
                done[where] = Cleaned(error=f"its rules stay: {probe.reason}")
                _tell(where, backend, done[where], dry_run)
            continue
        found = clean(backend, family, ledger.ledger, ledger.write, SYSTEM.now(), dry_run)
        if noted and not (dry_run or found.failed or found.error):
            ledger.write(ledger.ledger.disown([entry(mode, family)]))
        done[f"{where} {len(done)}"] = found
        _tell(where, backend, found, dry_run)
    unsettled = {} if dry_run else _restore(ledger)
    ledger.close()
    removed, left = summary(done)
    click.echo(
        f"{'would remove' if dry_run else 'removed'} {removed} objects"
        + (f"; {left} problems" if left else "")
    )
    raise SystemExit(NEGATIVE if left or unsettled else OK)


def _restore(ledger: LedgerFile) -> dict[str, OSError]:
    """Puts the kernel settings back that `prepare` changed. Returns those that cannot be."""
    before = dict(ledger.ledger.sysctls)
    failed = restore_sysctls(before)
    for name, value in before.items():
        if name in failed:
            click.echo(visible(f"{name}: cannot be put back to {value}: {failed[name].strerror}"), err=True)
        else:
            ledger.write(ledger.ledger.restored_sysctl(name))
            click.echo(visible(f"{name}: {value} again"))
    return failed


def _tell(where: str, backend: Backend, found: Cleaned, dry_run: bool) -> None:
    if found.error:
        click.echo(visible(f"{where}: cannot be read: {found.error}"), err=True)
    for failure in found.failed:
        click.echo(
            visible(f"{where}: {_words(backend, failure.operation)} would not go: {failure.text}"), err=True
        )
    if dry_run:
        for operation in found.plan:
            click.echo(visible(f"{where}: {_words(backend, operation)}"))


def _words(backend: Backend, operation: Operation) -> str:
    return words(backend, operation.key, operation.value)
