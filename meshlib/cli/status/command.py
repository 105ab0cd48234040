"""The ``meshlib status`` command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from meshlib.cli.exits import NEGATIVE, OK, UNKNOWN
from meshlib.cli.output import print_json, visible
from meshlib.cli.status.ask import Silent, Worker, ask_all
from meshlib.cli.status.find import Found, find
from meshlib.cli.status.layout import new_console
from meshlib.cli.status.view import print_leftovers, print_worker, print_workers
from meshlib.errors import ConfigError
from meshlib.runtime.config import load_config
from meshlib.runtime.report import MAX_ENDPOINTS
from meshlib.runtime.report_form import SCHEMA
from meshlib.runtime.status_place import AUTO


def look(pid: int | None, endpoints: int, *, others: bool = True) -> tuple[Found, list[Worker], list[Silent]]:
    """Find the running programs (with ``pid``: that one) and ask them for so many endpoints of each target; for the
    ``others``, too, which may not receive traffic."""
    found = find(_setting(), os.environ, os.geteuid())
    wanted = [socket for socket in found.sockets if pid in (None, socket.pid)]
    answers = ask_all(wanted, endpoints, others)
    workers = [answer for answer in answers if isinstance(answer, Worker)]
    return found, workers, [answer for answer in answers if isinstance(answer, Silent)]


def _setting() -> str:
    """``status_socket``. A file that somebody broke a minute ago must not keep us from looking at those that run."""
    try:
        return load_config().status_socket
    except ConfigError as error:
        click.echo(visible(f"configuration not read: {error}"), err=True)
        return os.environ.get("MESHLIB_STATUS_SOCKET") or AUTO


def nobody(found: Found, pid: int | None) -> str:
    """What to check when nobody was found."""
    uid = os.geteuid()
    who = f"process {pid}" if pid is not None else "running program"
    others = sorted({socket.pid for socket in found.sockets})
    lines = [
        f"no {who} answers to {'root' if uid == 0 else f'user {uid}'}.",
        *([f"These do: {', '.join(map(str, others))}."] if others else []),
        "Looked in",
        *(f"  {place}" for place in found.looked or ["no place: status_socket is off here"]),
        "Check that",
        "  - it uses meshlib: its socket is there from its first request to a target of the mesh on,",
        "    and never with MESHLIB_DISABLED=1",
        "  - this runs in its container (kubectl exec POD -c CONTAINER -- python -m meshlib status),",
        "    as its user or as root",
        "  - it and this command have the same status_socket (MESHLIB_STATUS_SOCKET), and not off",
    ]
    return "\n".join(lines)


def document(found: Found, workers: Sequence[Worker], silent: Sequence[Silent]) -> dict[str, Any]:
    """The JSON form; its keys are part of the interface (docs/status.md)."""
    return {
        "schema": SCHEMA,
        "workers": [{**worker.found, "socket": str(worker.socket)} for worker in workers],
        "silent": [
            {"pid": each.socket.pid, "uid": each.socket.uid, "socket": str(each.socket), "why": each.why}
            for each in silent
        ],
        "removed": [{"pid": socket.pid, "uid": socket.uid, "socket": str(socket)} for socket in found.stale],
    }


@click.command(
    "status",
    epilog="Exit codes: 0 every program that was found answered; 1 none was found; 2 wrong usage or configuration; "
    "3 one did not answer.",
)
@click.option("--pid", type=click.IntRange(min=1), help="Only the process of this number, in full.")
@click.option(
    "--all-workers", is_flag=True, help="Every process in full (default: in full if it is the only one)."
)
@click.option("--json", "as_json", is_flag=True, help="For programs: everything, with stable keys.")
@click.option(
    "--endpoints",
    type=click.IntRange(min=0),
    default=MAX_ENDPOINTS,
    show_default=True,
    help="Endpoints of each target that are asked for.",
)
def command(pid: int | None, all_workers: bool, as_json: bool, endpoints: int) -> None:
    """Show what the running programs of this machine or container believe: the way their calls take and why, the
    endpoints with their share of the requests, how old the data is, and the settings in force.

    It asks each over a local socket that only its user and root may use. It changes nothing, and no program begins
    anything because of it.

    \b
    Examples:
      meshlib status
      meshlib status --pid 4711
      meshlib status --json | jq '.workers[].targets[] | {target, way, requests}'
      kubectl exec deploy/web -- python -m meshlib status --all-workers
    """
    if pid is not None and all_workers:
        raise click.UsageError("--pid and --all-workers exclude each other")
    found, workers, silent = look(pid, endpoints)
    if as_json:
        print_json(document(found, workers, silent))
    else:
        console, reports = new_console(), [worker.found for worker in workers]
        if all_workers or len(reports) == 1:
            for index, report in enumerate(reports):
                if index:
                    click.echo()
                print_worker(console, report)
        elif reports:
            print_workers(console, reports)
        print_leftovers(found, silent)
    if not workers and not silent:
        click.echo(visible(nobody(found, pid)), err=True)
        raise SystemExit(NEGATIVE)
    raise SystemExit(UNKNOWN if silent else OK)
