"""``meshlib agent preflight``: what this node offers and lacks, before anything is programmed."""

from __future__ import annotations

import os
from pathlib import Path

import click

from meshlib.cli.agent import checks
from meshlib.cli.agent.options import settings, settings_options, state_option
from meshlib.cli.doctor.findings import Finding, Level
from meshlib.cli.exits import NEGATIVE, OK
from meshlib.cli.output import output_option, print_json, print_table, visible

_MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.LACK: "LACKS"}


@click.command("preflight")
@settings_options
@state_option
@output_option
def command(file: Path | None, flags: tuple[str, ...], state: Path, output: str) -> None:
    """Check this node: rights, modes, kernel settings, ports, kube-proxy, firewalls, NetworkPolicy, who we are.

    Changes nothing; modes are tried out in a namespace of their own, or in rules that never take effect. Exit codes:
    0 an agent would work; 1 something lacks, with its fix.
    """
    options = settings(file, flags).settings
    findings: list[Finding] = [
        *checks.check_rights(options),
        *checks.check_modes(options),
        *checks.check_settings(options),
        *checks.check_ports(options),
        *checks.check_others(options),
        *checks.check_identity(options, os.environ),
        *checks.check_state(state),
    ]
    lacks = sum(finding.level is Level.LACK for finding in findings)
    if output == "json":
        print_json(
            {
                "lacks": lacks,
                "findings": [
                    {"area": each.area, "level": each.level.value, "what": each.what, "fix": each.fix}
                    for each in findings
                ],
            }
        )
    else:
        rows = [(each.area, _MARKS[each.level], each.what) for each in findings]
        print_table("this node", ("area", "", "what"), rows)
        for each in findings:
            if each.fix:
                click.echo(f"\n{each.area}: {visible(each.what)}\nfix:\n{visible(each.fix)}")
        click.echo(f"\n{lacks} of {len(findings)} things lack.")
    raise SystemExit(NEGATIVE if lacks else OK)
