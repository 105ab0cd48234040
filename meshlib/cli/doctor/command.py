"""The ``meshlib doctor`` command: asks everything, prints it, and says how to mend what lacks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from meshlib import __version__
from meshlib.cli.doctor.doubled import check_aliases, check_environment_balancing, check_source
from meshlib.cli.doctor.findings import Finding, Level
from meshlib.cli.doctor.libraries import check_environment, check_libraries, check_plugins
from meshlib.cli.doctor.place import check_config, check_dev_file, check_names, check_place
from meshlib.cli.doctor.together import Asked, examine_cluster
from meshlib.cli.doctor.versions import check_bounds, check_python
from meshlib.cli.exits import NEGATIVE, OK
from meshlib.cli.output import output_option, print_json, print_table, visible
from meshlib.cli.settings import command_config
from meshlib.runtime.config import Config, alias_targets, target_defaults
from meshlib.runtime.config.checks import MAX_CONNECTIONS
from meshlib.runtime.config.values import config_values
from meshlib.runtime.place import sidecar

_MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.LACK: "LACKS"}


def examine(config: Config, asked: Asked) -> list[Finding]:
    """Everything that doctor looks at, in the order of the report."""
    defaults = target_defaults(config)
    environ = os.environ
    parts: list[Iterable[Finding]] = [
        check_libraries(),
        check_python(),
        check_bounds(),
        check_plugins(),
        check_environment(environ),
        check_config(config),
        check_dev_file(environ, defaults),
        check_place(config, defaults, environ, sidecar(environ)),
        check_names(defaults, environ),
        check_environment_balancing(environ),
        check_aliases(alias_targets(config, defaults), defaults),
        check_source(asked.sources),
        asyncio.run(examine_cluster(config, defaults, environ, asked)),
    ]
    return [finding for part in parts for finding in part]


def report(config: Config, findings: list[Finding]) -> dict[str, Any]:
    """The JSON form; its keys are part of the interface."""
    return {
        "version": __version__,
        "lacks": sum(finding.level is Level.LACK for finding in findings),
        "findings": [
            {"area": finding.area, "level": finding.level.value, "what": finding.what, "fix": finding.fix}
            for finding in findings
        ],
        "configuration": [msgspec.to_builtins(row) for row in config_values(config)],
    }


@click.command(
    "doctor",
    epilog="Exit codes: 0 looked at everything; with --exit-code 1 if something lacks; 2 wrong usage or configuration. "
    "Notes never change the code.",
)
@output_option
@click.option("--exit-code", is_flag=True, help="Exit with 1 when something lacks.")
@click.option(
    "--namespace", "-n", "namespaces", multiple=True, help="Namespaces to be read (default: the pod's own)."
)
@click.option(
    "--target",
    "-t",
    "targets",
    multiple=True,
    metavar="TARGET",
    help="Discover it, and connect to a few of its endpoints. Repeat it for more.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, MAX_CONNECTIONS),
    default=1,
    show_default=True,
    help="Connections that one process will have to each endpoint, for the limits.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Python file or folder to be read for channels that balance for themselves.",
)
@click.option(
    "--kubeconfig", default="", help="Kubeconfig file (default: KUBECONFIG, in-cluster, ~/.kube/config)."
)
@click.option("--context", default="", help="Context of the kubeconfig.")
def command(
    output: str,
    exit_code: bool,
    namespaces: tuple[str, ...],
    targets: tuple[str, ...],
    connections: int,
    sources: tuple[Path, ...],
    kubeconfig: str,
    context: str,
) -> None:
    """Check what this environment offers - libraries, configuration, credentials, rights, clocks, DNS, node and zone,
    another mesh, the way to the pods, limits - and print the fix for each thing it lacks.

    \b
    Examples:
      meshlib doctor
      meshlib doctor -n shop -n stock
      meshlib doctor -o json --exit-code
      meshlib doctor --exit-code --target k8s:///orders.shop:http --connections 4
      kubectl exec deploy/web -- python -m meshlib doctor -n shop
    """
    config = command_config(kubeconfig=kubeconfig, context=context)
    for namespace in namespaces:
        command_config(namespace=namespace)  # exits when it is no name: it becomes part of a path
    findings = examine(config, Asked(namespaces, targets, connections, sources))
    found = report(config, findings)
    if output == "json":
        print_json(found)
    else:
        print_table(
            f"meshlib {__version__}",
            ("area", "", "what"),
            [(finding.area, _MARKS[finding.level], finding.what) for finding in findings],
        )
        print_table(
            "\nconfiguration",
            ("key", "value", "from"),
            [(row["key"], str(row["value"]), row["source"]) for row in found["configuration"]],
        )
        for finding in findings:
            if finding.fix:
                click.echo(f"\n{finding.area}: {visible(finding.what)}\nfix:\n{visible(finding.fix)}")
        click.echo(f"\n{found['lacks']} of {len(findings)} things lack.")
    raise SystemExit(NEGATIVE if exit_code and found["lacks"] else OK)
