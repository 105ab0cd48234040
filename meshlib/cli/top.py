"""The ``meshlib top`` command: what ``meshlib status`` shows, again and again, as requests per second."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from meshlib.cli.exits import NEGATIVE, UNKNOWN
from meshlib.cli.output import visible
from meshlib.cli.status.ask import Worker
from meshlib.cli.status.command import look, nobody
from meshlib.cli.status.layout import make_table, new_console
from meshlib.cli.status.rates import Line, Look, Picture, picture
from meshlib.cli.status.view import latency, print_leftovers

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Endpoints of each target that are asked for: more than a screen has lines, and cheap for the programs.
ENDPOINTS = 200
#: Lines of the screen that are not endpoints: the heads, and two to breathe.
_FRAME = 7
_FIGURES = ("WORKERS", "MEMBERS", "REQ/S", "FAIL/S", "NOW", "BARE/S", "LATENCY")


def draw(
    seen: Picture, workers: int, seconds: float, width: int, height: int, silent: int = 0
) -> RenderableType:
    """Both tables in ``width`` and ``height``; the busiest endpoints have the right to the room.

    ``silent``: how many workers did not answer.
    """
    from rich.console import Group
    from rich.text import Text

    clock = time.strftime("%H:%M:%S")
    head = Text(f"meshlib top  {clock}  {workers} workers, the last {seconds:.1f} s  (q ends)", "bold")
    missing = [Text(_without_answer(silent), "bold")] if silent else []
    columns = ("TARGET", "WAY", "WORKERS", "MEMBERS", "REQ/S", "FAIL/S", "NOW", "BARE/S")
    rows = [
        (
            line.name,
            ", ".join(sorted(line.ways)),
            str(line.workers),
            _range(line.members),
            _rate(line.requests),
            _rate(line.failures),
            str(line.in_flight),
            _rate(line.bare),
        )
        for line in seen.targets
    ]
    targets = make_table(columns, rows, width, 0, _FIGURES)
    shown = busiest(seen.endpoints, max(1, height - _FRAME - len(missing) - len(seen.targets)))
    heads = ("ENDPOINT", "STATE", "REQ/S", "FAIL/S", "NOW", "LATENCY", "TARGET")
    lines = [
        (
            line.name,
            ", ".join(sorted(line.ways)),
            _rate(line.requests),
            _rate(line.failures),
            str(line.in_flight),
            latency(line.latency),
            target,
        )
        for target, line in shown
    ]
    endpoints = make_table(heads, lines, width, heads.index("TARGET"), _FIGURES)
    more = len(seen.endpoints) - len(shown)
    tail = [Text(f"and {more} more endpoints", "dim")] if more else []
    return Group(head, *missing, Text(), targets, Text(), endpoints, *tail)


def busiest(lines: Sequence[tuple[str, Line]], room: int) -> list[tuple[str, Line]]:
    """Those that fail, then those with the most requests, in their own order: lines should not jump."""
    if len(lines) <= room:
        return list(lines)
    ranked = sorted(range(len(lines)), key=lambda at: _busy(lines[at][1]), reverse=True)
    return [lines[at] for at in sorted(ranked[:room])]


def _busy(line: Line) -> tuple[float, float, int]:
    return line.failures, line.requests, line.in_flight


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _range(numbers: set[int]) -> str:
    return str(min(numbers)) if len(numbers) == 1 else f"{min(numbers)}-{max(numbers)}"


def _without_answer(silent: int) -> str:
    return f"{silent} WITHOUT AN ANSWER (meshlib status)"


def _by_socket(workers: Sequence[Worker]) -> Look:
    return {str(worker.socket): worker.found for worker in workers}


def _take(pid: int | None) -> tuple[Look, int]:
    """Those that answer, and how many do not."""
    _, workers, silent = look(pid, ENDPOINTS, others=False)
    return _by_socket(workers), len(silent)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds for the key q, without its being echoed. Needs a terminal."""
    import termios
    import tty

    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    tty.setcbreak(keys)  # Ctrl-C still interrupts
    try:

        def pressed(seconds: float) -> bool:
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0:
                # Not through sys.stdin, which reads ahead and keeps a q from select. Nothing: the terminal has gone.
                if select.select([keys], [], [], left)[0] and set(os.read(keys, 64) or b"q") & set(b"qQ"):
                    return True
            return False

        yield pressed
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


def _live(pid: int | None, interval: float, first: Look) -> None:
    from rich.live import Live
    from rich.text import Text

    console = new_console()
    before, begun = first, time.monotonic()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        live.update(Text(f"{len(first)} workers; the first rates in {interval:g} s (q ends)"), refresh=True)
        while not pressed(interval):
            after, silent = _take(pid)
            now, seen = time.monotonic(), picture(before, after)
            drawn = draw(seen, len(after), now - begun, console.width, console.height, silent)
            live.update(drawn, refresh=True)
            before, begun = after, now


def _once(pid: int | None, interval: float, first: Look) -> None:
    time.sleep(interval)
    (after, silent), console = _take(pid), new_console()
    console.print(draw(picture(first, after), len(after), interval, console.width, sys.maxsize, silent))


@click.command(
    "top",
    epilog="Exit codes: 0 ended by q, by Ctrl-C or after one picture; 1 no running program was found; 3 none of those "
    "found answered.",
)
@click.option("--pid", type=click.IntRange(min=1), help="Only the process of this number.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 60),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
def command(pid: int | None, interval: float) -> None:
    """Show what the running programs of this machine or container do right now: requests and failures per second and
    requests in flight, by target and by endpoint. The head counts those that do not answer. q or Ctrl-C ends.

    Without a terminal it prints one picture: of the first interval.

    \b
    Examples:
      meshlib top
      kubectl exec -it deploy/web -- python -m meshlib top
      meshlib top --interval 10 > now.txt
    """
    try:
        found, workers, silent = look(pid, ENDPOINTS, others=False)
        if not workers and silent:
            print_leftovers(found, silent)
            raise SystemExit(UNKNOWN)
        if not workers:
            click.echo(visible(nobody(found, pid)), err=True)
            raise SystemExit(NEGATIVE)
        first = _by_socket(workers)
        if sys.stdin.isatty() and sys.stdout.isatty():
            _live(pid, interval, first)
        else:
            _once(pid, interval, first)
    except KeyboardInterrupt:
        return
