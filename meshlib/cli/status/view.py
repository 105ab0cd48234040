"""The tables of ``meshlib status``: everything about one worker, or several side by side."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from meshlib.cli.output import age, visible
from meshlib.cli.status.ask import Silent
from meshlib.cli.status.find import Found
from meshlib.cli.status.layout import make_table, say, shortened

if TYPE_CHECKING:
    from rich.console import Console

#: Endpoints of a target in a table; the JSON form has them all.
SHOWN = 20
#: Characters of an error, a reason or a command line: two lines of a terminal.
MAX_TEXT = 160
_DEFAULT = "default"
_SUMS = ("in_flight", "requests", "failures")
_FIGURES = ("PID", "UP", "TARGETS", "WORKERS", "MEMBERS", "NOW", "REQUESTS", "FAILED", "TROUBLE", "AGE")


def print_worker(console: Console, found: dict[str, Any]) -> None:
    """One worker in full: settings that somebody chose, every target with its endpoints, what happened last."""
    _print_process(console, found)
    for target in found["targets"]:
        say(console)
        _print_target(console, target)
    if not found["targets"]:
        say(console, "no target is in use")
    if found["recent"]:
        say(console)
        say(console, "lately")
        for event in found["recent"]:
            times = f" ({event['times']} times)" if event["times"] > 1 else ""
            say(console, f"{_clock(event['at'])}  {event['text']}{times}", "  ")
    if cut := found.get("cut"):
        say(console, cut)


def print_workers(console: Console, workers: Sequence[dict[str, Any]]) -> None:
    """Several workers: a line for each, then a line for each target and what it is believed to be."""
    programs = sorted({worker["program"] for worker in workers})
    say(console, f"{len(workers)} workers" + (f" of {_short(programs[0])}" if len(programs) == 1 else ""))
    _print_list(console, workers, with_programs=len(programs) > 1)
    groups = _by_belief(workers)
    say(console)
    console.print(
        make_table(
            ("TARGET", "WAY", "WORKERS", "MEMBERS", "NOW", "REQUESTS", "FAILED", "AGE"),
            [
                (
                    name,
                    taken,
                    str(len(targets)),
                    _range(target["members"] for target in targets),
                    *(str(sum(target[key] for target in targets)) for key in _SUMS),
                    age(min((t["age"] for t in targets if t["age"] is not None), default=None)),
                )
                for (name, taken, _), targets in groups.items()
            ],
            console.width,
            0,
            _FIGURES,
        )
    )
    for (name, taken, why), targets in groups.items():
        if why:
            say(console, f"{name}: {taken} in {len(targets)} of {len(workers)} workers: {_short(why)}")
    say(console)
    say(
        console,
        "NOW: requests in flight. Everything about one worker: --pid PID, about each: --all-workers",
    )


def _print_list(console: Console, workers: Sequence[dict[str, Any]], with_programs: bool) -> None:
    now = time.time()
    columns = ["PID", "UP", "MESHLIB", "TARGETS", "TROUBLE", "NOW", "REQUESTS", "FAILED"]
    rows = [
        [
            str(worker["pid"]),
            _up(worker, now),
            worker["versions"]["meshlib"],
            str(len(worker["targets"])),
            str(sum(is_in_trouble(target) for target in worker["targets"])),
            *(str(sum(target[key] for target in worker["targets"])) for key in _SUMS),
        ]
        for worker in workers
    ]
    if with_programs:
        columns.append("PROGRAM")
        for row, worker in zip(rows, workers, strict=True):
            row.append(worker["program"])
    console.print(make_table(columns, rows, console.width, len(columns) - 1, _FIGURES))


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
    """Whether the mesh has another way for calls than the pods, or what is known may be old."""
    return bool(target["started"]) and (target["way"] != "pods" or target["stale"])


def _print_process(console: Console, found: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    say(console, f"process {found['pid']}: {_short(found['program'])}")
    say(console, versions, "  ")
    say(
        console,
        f"in use for {_up(found, time.time())}, user {found['uid']}, child of {found['parent']}",
        "  ",
    )
    if found["sidecar"]:
        say(console, f"beside {found['sidecar']}", "  ")
    for mesh in found["meshes"]:
        chosen = [each for each in mesh["configuration"] if each["source"] != _DEFAULT]
        for each in chosen:
            say(console, f"{each['key']} = {_short(str(each['value']))} ({each['source']})", "  ")
        if not chosen:
            say(console, "every setting has its default", "  ")
        if mesh["problem"]:
            say(console, f"THE FILE IS NOT IN FORCE: {_short(mesh['problem'])}", "  ")
        for warning in mesh["warnings"]:
            say(console, f"ignored: {warning}", "  ")


def _print_target(console: Console, target: dict[str, Any]) -> None:
    name = shortened(visible(target["target"]), console.width - len(": calls take service-address"))
    rollout = target["rollout"]
    if not target["started"]:
        say(console, f"{name}: {_not_started(rollout)}")
        _print_rollout(console, rollout)
        return
    say(console, f"{name}: {_way(target)}")
    _print_rollout(console, rollout)
    if target["reason"]:
        say(console, f"because {_short(target['reason'])}", "  ")
    if target["source"]:
        stale = ", STALE" if target["stale"] else ""
        say(console, f"from {target['source']}, last change {age(target['age'])} ago{stale}", "  ")
    if picker := target["picker"]:
        say(console, f"picker {picker['name']} ({picker['source']})", "  ")
    if target["error"]:
        say(console, f"error: {_short(target['error'])}", "  ")
    if target["skipped"]:
        say(console, f"{target['skipped']} entries of the source were skipped", "  ")
    say(
        console,
        f"{target['members']} may receive traffic, {target['in_flight']} in flight, "
        f"{target['requests']} requests, {target['failures']} failed",
        "  ",
    )
    _print_endpoints(console, target)


def _print_rollout(console: Console, rollout: dict[str, Any]) -> None:
    """Nothing where all is as it is without a roll-out."""
    bare = sum(rollout["requests"].values()) - rollout["requests"]["mesh"]
    if not is_lowered(rollout) and not bare:
        return
    say(console, f"{stage(rollout)}: {_short(rollout['reason'])} ({rollout['source']})", "  ")
    ways = ", ".join(f"{count} {way}" for way, count in rollout["requests"].items() if count)
    if ways:
        say(console, f"requests: {ways}", "  ")
    if rollout["observed"] or rollout["refusals"]:
        refusals = "".join(f", {count} {reason}" for reason, count in sorted(rollout["refusals"].items()))
        say(console, f"observed: {rollout['observed']} would have gone to a pod{refusals}", "  ")
    if rollout["reached"]:
        reached = ", ".join(f"{count} {where}" for where, count in sorted(rollout["reached"].items()))
        say(console, f"the bare way led to: {reached}", "  ")


def is_lowered(rollout: dict[str, Any]) -> bool:
    """Whether some requests take the bare way."""
    return bool(rollout["mode"] != "on" or rollout["percent"] < 100)


def stage(rollout: dict[str, Any]) -> str:
    """How far the roll-out is, in a word."""
    return f"on at {rollout['percent']:g} %" if rollout["mode"] == "on" else str(rollout["mode"])


def way(target: dict[str, Any]) -> str:
    """What happens to requests, for a table: the way, and how far the roll-out is where it is under way."""
    rollout = target["rollout"]
    taken = target["way"] if target["started"] else "-"
    if not is_lowered(rollout):
        return taken
    if rollout["mode"] == "on":
        return f"{rollout['percent']:g} % {taken}"
    return str(rollout["mode"]) if taken in ("-", "pods") else f"{rollout['mode']} ({taken})"


def _way(target: dict[str, Any]) -> str:
    if target["rollout"]["mode"] == "on":
        return f"calls take {target['way']}"
    return f"calls take the bare way, and would take {target['way']}"


def _not_started(rollout: dict[str, Any]) -> str:
    return "not used yet" if rollout["mode"] == "on" else "calls take the bare way"


def _print_endpoints(console: Console, target: dict[str, Any]) -> None:
    shown = most_telling(target["endpoints"])
    members = [row for row in shown if row["state"] != "out"]
    columns = ("ENDPOINT", "STATE", "SHARE", "NOW", "REQUESTS", "FAILED", "LATENCY", "POD")
    rows = [
        (
            authority(row),
            row["state"],
            f"{row['share']:.0%}",
            str(row["in_flight"]),
            str(row["requests"]),
            str(row["failures"]),
            latency(row["latency"]),
            row["name"] or "-",
        )
        for row in members
    ]
    if rows:
        console.print(
            make_table(columns, rows, console.width, columns.index("POD"), (*_FIGURES, "SHARE", "LATENCY"))
        )
    for row in shown:
        if row["state"] == "out":
            say(console, f"out: {authority(row)} {row['name']}: {row['reason']}", "  ")
    hidden = len(target["endpoints"]) - len(shown) + target["left_out"]
    if hidden > 0:
        say(console, f"and {hidden} more: --json has them", "  ")


def most_telling(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows to show when there is no room for all: those that fail, then the busiest; in their own order."""
    ranked = sorted(
        range(len(rows)),
        key=lambda at: (-rows[at]["failures"], -rows[at]["in_flight"], -rows[at]["requests"], at),
    )
    return [rows[at] for at in sorted(ranked[:SHOWN])]


def authority(row: dict[str, Any]) -> str:
    address = str(row["address"])
    return f"[{address}]:{row['port']}" if ":" in address else f"{address}:{row['port']}"


def latency(seconds: float | None) -> str:
    """A latency for people: three digits are as many as it is good for."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def _by_belief(workers: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for worker in workers:
        for target in worker["targets"]:
            groups[target["target"], way(target), target["reason"] or target["error"]].append(target)
    return dict(sorted(groups.items()))


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def _up(worker: dict[str, Any], now: float) -> str:
    return age(max(0.0, now - worker["started"]) if worker["started"] is not None else None)


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"
