"""What the demo shows: a live table on a terminal, lines elsewhere, and the summary."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import click

from meshlib.cli.demo.board import Line
from meshlib.cli.demo.story import DEAD, JOINER, NOTICE, SLOW, Chapter, Summary
from meshlib.cli.output import make_table, print_table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

#: The plain form prints the state this often, seconds: enough to follow, little enough to read.
PLAIN_EVERY = 2.0
_BAR = 24


class Screen(Protocol):
    """``tell`` is called for each event, ``show`` all the time. ``extra``: backend -> (in flight, failures)."""

    def __enter__(self) -> Screen: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def tell(self, chapter: Chapter) -> None: ...
    def show(
        self, now: float, lines: list[Line], states: Mapping[str, str], extra: Mapping[str, tuple[int, int]]
    ) -> None: ...


class PlainScreen:
    """Lines for pipes, logs and screen readers."""

    def __init__(self) -> None:
        self._next = 0.0

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def tell(self, chapter: Chapter) -> None:
        click.echo(f"{chapter.at:5.1f} s  >>> {chapter.text}")

    def show(
        self, now: float, lines: list[Line], states: Mapping[str, str], extra: Mapping[str, tuple[int, int]]
    ) -> None:
        if now < self._next:
            return
        self._next = now + PLAIN_EVERY
        parts = [
            f"{line.backend} {line.share:4.0%} p50 {line.p50 * 1000:.0f} p99 {line.p99 * 1000:.0f} ms"
            for line in lines
            if line.count
        ]
        if parts:
            click.echo(f"{now:5.1f} s  " + "  |  ".join(parts))


class LiveScreen:
    """A table that is redrawn in place."""

    def __init__(self, seconds: float) -> None:
        from rich.live import Live

        self._seconds = seconds
        self._told: list[str] = []
        self._live: Live = Live(refresh_per_second=8, transient=True)

    def __enter__(self) -> LiveScreen:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, traceback)
        for text in self._told:
            click.echo(text)

    def tell(self, chapter: Chapter) -> None:
        self._told.append(f"{chapter.at:5.1f} s  {chapter.text}")

    def show(
        self, now: float, lines: list[Line], states: Mapping[str, str], extra: Mapping[str, tuple[int, int]]
    ) -> None:
        self._live.update(self._picture(now, lines, states, extra))

    def _picture(
        self, now: float, lines: list[Line], states: Mapping[str, str], extra: Mapping[str, tuple[int, int]]
    ) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        rows = [
            (
                line.backend,
                states.get(line.backend, ""),
                f"{line.share:4.0%} " + "█" * round(line.share * _BAR),
                str(extra.get(line.backend, (0, 0))[0]),
                f"{line.p50 * 1000:.0f} ms" if line.count else "",
                f"{line.p99 * 1000:.0f} ms" if line.count else "",
                str(extra.get(line.backend, (0, 0))[1]),
            )
            for line in lines
        ]
        columns = ("endpoint", "state", f"share{'':{_BAR}}", "in flight", "p50", "p99", "errors")
        head = Text(
            f"{now:.0f} of {self._seconds:.0f} s: httpx and gRPC over meshlib, the last 2 seconds", "bold"
        )
        return Group(head, make_table(columns, rows), *(Text(text, "dim") for text in self._told))


def print_summary(found: Summary) -> None:
    """The figures, each with what it should be compared with."""
    joiner = "never" if found.joiner_waited is None else f"{found.joiner_waited * 1000:.0f} ms"
    rows = [
        ("requests", f"{found.requests}", f"{found.http} httpx, {found.grpc} gRPC"),
        ("failed", f"{found.failed}", "should be 0"),
        (f"cut off by {DEAD} as it died", f"{found.cut}", "it had them; who resends may do a thing twice"),
        (f"share of {SLOW} while fast", f"{found.slow_share_before:.1%}", "fair is 25 %"),
        (f"share of {SLOW} while slow", f"{found.slow_share_after:.1%}", "rotation would keep it at 25 %"),
        (
            f"share of {SLOW}, fast again",
            f"{found.slow_share_recovered:.1%}",
            "trust returns within half a minute",
        ),
        (
            "p99 of all, before and while one is slow",
            f"{found.p99_before * 1000:.0f} and {found.p99_slow * 1000:.0f} ms",
            "rotation: the slow one's own",
        ),
        (
            f"{DEAD} still answered for",
            f"{found.dead_received_for * 1000:.0f} ms",
            f"the registry took {NOTICE:.0f} s",
        ),
        (f"{JOINER}'s first request after", joiner, "since the registry listed it"),
    ]
    print_table("\nsummary", ("", "measured", "compare"), rows)
    for error in found.errors:
        click.echo(f"failure: {error}")
