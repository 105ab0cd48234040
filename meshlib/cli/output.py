"""Printing: a table for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

#: Width of tables that go into a pipe or file, characters.
PIPE_WIDTH = 200

#: ``--output``, the same on every command that has it.
output_option = click.option(
    "--output",
    "-o",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or for programs (the keys of the JSON form are kept stable).",
)


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document; text that JSON has no form for (addresses, times) becomes a string."""
    click.echo(json.dumps(document, indent=2, default=str, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table below its title; nothing in a cell is taken as markup (names come from other tenants)."""
    from rich.console import Console

    click.echo(title)
    # Without a terminal there is no width to fit, and folded lines would be hard to search.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(make_table(columns, rows))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """The table itself, for those that show it another way."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", header_style="bold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def visible(text: str) -> str:
    """Foreign text for a terminal: control characters (escape sequences) are shown, not sent."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def age(seconds: float | None) -> str:
    """A duration for people: ``0.4 s``, ``12 s``, ``5 min``, ``3 h``."""
    if seconds is None:
        return "never"
    for limit, unit, size in ((10, "s", 1.0), (120, "s", 1.0), (7200, "min", 60.0)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if limit == 10 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"
