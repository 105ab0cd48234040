"""The tables of ``meshlib status``: everything about one worker, or several side by side."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import click

from meshlib.cli.output import age, print_table, visible
from meshlib.cli.status.ask import Silent
from meshlib.cli.status.find import Found

#: Endpoints of a target in a table; the JSON form has them all.
SHOWN = 20
#: Characters of an error or a command line in a table's neighbourhood: two lines of a terminal.
MAX_TEXT = 160
_DEFAULT = "default"


def print_worker(found: dict[str, Any]) -> None:
    """One worker in full: settings that somebody chose, every target with its endpoints, what happened last."""
    _print_process(found)
    for target in found["targets"]:
        click.echo()
        _print_target(target)
    if not found["targets"]:
        click.echo("no target is in use")
    if found["recent"]:
        click.echo("\nlately")
        for event in found["recent"]:
            times = f" ({event['times']} times)" if event["times"] > 1 else ""
            click.echo(f"  {_clock(event['at'])}  {visible(event['text'])}{times}")
    if cut := found.get("cut"):
        click.echo(visible(cut))


def print_workers(workers: Sequence[dict[str, Any]]) -> None:
    """Several workers: a line for each, then a line for each target and what it is believed to be."""
    now = time.time()
    print_table(
        f"{len(workers)} workers: {_program(workers)}",
        ("PID", "UP", "MESHLIB", "TARGETS", "IN FLIGHT", "REQUESTS", "FAILED", "IN TROUBLE"),
        [
            (
                str(worker["pid"]),
                _up(worker, now),
                worker["versions"]["meshlib"],
                str(len(worker["targets"])),
                *(str(sum(target[key] for target in worker["targets"])) for key in _SUMS),
                str(sum(is_in_trouble(target) for target in worker["targets"])),
            )
            for worker in workers
        ],
    )
    click.echo()
    groups = _by_belief(workers)
    print_table(
        "targets",
        ("TARGET", "WAY", "WORKERS", "ENDPOINTS", "IN FLIGHT", "REQUESTS", "FAILED", "CHANGED"),
        [
            (
                name,
                way,
                str(len(targets)),
                _range(target["members"] for target in targets),
                *(str(sum(target[key] for target in targets)) for key in _SUMS),
                age(min((t["age"] for t in targets if t["age"] is not None), default=None)),
            )
            for (name, way, _), targets in groups.items()
        ],
    )
    for (name, way, why), targets in groups.items():
        if why:
            click.echo(f"{visible(name)}: {way} in {len(targets)} of {len(workers)} workers: {_short(why)}")
    click.echo("\neverything about one of them: --pid PID; about each: --all-workers")


def print_leftovers(found: Found, silent: Iterable[Silent]) -> None:
    """What else was found: sockets without an answer, of programs that are gone, and places not to be trusted."""
    for each in silent:
        click.echo(visible(f"no answer from process {each.socket.pid} ({each.socket}): {each.why}"), err=True)
    if found.stale:
        pids = ", ".join(str(socket.pid) for socket in found.stale)
        click.echo(f"removed the sockets of processes that are gone: {pids}", err=True)
    for line in found.ignored:
        click.echo(visible(f"ignored {line}"), err=True)


def is_in_trouble(target: dict[str, Any]) -> bool:
    """Whether calls take another way than the pods, or what is known may be old."""
    return bool(target["started"]) and (target["way"] != "pods" or target["stale"])


_SUMS = ("in_flight", "requests", "failures")


def _print_process(found: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    click.echo(f"process {found['pid']}: {_short(found['program'])}")
    click.echo(f"  {visible(versions)}")
    click.echo(f"  in use for {_up(found, time.time())}, user {found['uid']}, child of {found['parent']}")
    if found["sidecar"]:
        click.echo(f"  beside {visible(found['sidecar'])}")
    for mesh in found["meshes"]:
        chosen = [each for each in mesh["configuration"] if each["source"] != _DEFAULT]
        for each in chosen:
            click.echo(
                f"  {visible(each['key'])} = {_short(str(each['value']))}  ({visible(each['source'])})"
            )
        if not chosen:
            click.echo("  every setting has its default")
        for warning in mesh["warnings"]:
            click.echo(f"  ignored: {visible(warning)}")


def _print_target(target: dict[str, Any]) -> None:
    name = visible(target["target"])
    if not target["started"]:
        click.echo(f"{name}: not used yet")
        return
    stale = ", STALE" if target["stale"] else ""
    click.echo(f"{name}: calls take {target['way']}" + _because(target["reason"]))
    if target["source"]:
        click.echo(f"  from {visible(target['source'])}, last change {age(target['age'])} ago{stale}")
    if picker := target["picker"]:
        click.echo(f"  picker {visible(picker['name'])} ({visible(picker['source'])})")
    if target["error"]:
        click.echo(f"  error: {_short(target['error'])}")
    if target["skipped"]:
        click.echo(f"  {target['skipped']} entries of the source were skipped")
    rows = target["endpoints"]
    if rows:
        print_table(
            f"  {target['members']} may receive traffic, {target['in_flight']} in flight, "
            f"{target['requests']} requests, {target['failures']} failed",
            ("ENDPOINT", "STATE", "SHARE", "NOW", "REQUESTS", "FAILED", "LATENCY", "POD"),
            [endpoint_cells(row) for row in most_telling(rows)],
        )
    hidden = len(rows) - SHOWN + target["left_out"]
    if hidden > 0:
        click.echo(f"  and {hidden} more: --json has them")


def most_telling(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows to show when there is no room for all: those that fail, then the busiest; in their own order."""
    if len(rows) <= SHOWN:
        return list(rows)
    ranked = sorted(
        range(len(rows)),
        key=lambda at: (-rows[at]["failures"], -rows[at]["in_flight"], -rows[at]["requests"], at),
    )
    return [rows[at] for at in sorted(ranked[:SHOWN])]


def endpoint_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One endpoint for the table of endpoints."""
    out = row["state"] == "out"
    state = f"out: {row['reason']}" if out else row["state"]
    figures = (
        ("", "", "", "", "")
        if out
        else (
            f"{row['share']:.0%}",
            str(row["in_flight"]),
            str(row["requests"]),
            str(row["failures"]),
            latency(row["latency"]),
        )
    )
    return authority(row), state, *figures, row["name"]


def authority(row: dict[str, Any]) -> str:
    address = str(row["address"])
    return f"[{address}]:{row['port']}" if ":" in address else f"{address}:{row['port']}"


def latency(seconds: float | None) -> str:
    """A latency for people: three digits are as many as it is good for."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _by_belief(workers: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for worker in workers:
        for target in worker["targets"]:
            way = target["way"] if target["started"] else "not used"
            groups[target["target"], way, target["reason"] or target["error"]].append(target)
    return dict(sorted(groups.items()))


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def _program(workers: Sequence[dict[str, Any]]) -> str:
    programs = {worker["program"] for worker in workers}
    return _short(programs.pop()) if len(programs) == 1 else f"{len(programs)} programs"


def _up(worker: dict[str, Any], now: float) -> str:
    return age(max(0.0, now - worker["started"]) if worker["started"] is not None else None)


def _because(reason: str) -> str:
    return f" ({_short(reason)})" if reason else ""


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _short(text: str) -> str:
    line = visible(text.partition("\n")[0])
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 3] + "..."
