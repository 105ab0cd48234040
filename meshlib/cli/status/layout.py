"""Tables that keep to the width of the screen: one column gives way, the others are never cut or folded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshlib.cli.output import PIPE_WIDTH, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: The column that gives way keeps this many characters at least, however narrow the screen is.
LEAST = 12
_GAP = 2


def new_console() -> Console:
    """As wide as the terminal; without one, lines that are easy to search."""
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def say(console: Console, text: str = "", indent: str = "") -> None:
    """A line of text, folded between words where it is too long. Foreign characters are shown, not sent."""
    from rich.padding import Padding
    from rich.text import Text

    if not text:
        console.print()
        return
    console.print(Padding(Text(visible(text), overflow="fold"), (0, 0, 0, len(indent)), expand=False))


def make_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, gives_way: int, figures: Sequence[str]
) -> Table:
    """``gives_way``: the index of the column that is shortened in its middle; ``figures``: the columns to the right."""
    from rich.table import Table
    from rich.text import Text

    cells = [[visible(cell) for cell in row] for row in rows]
    others = sum(
        max([len(column), *(len(row[at]) for row in cells)])
        for at, column in enumerate(columns)
        if at != gives_way
    )
    room = max(LEAST, width - others - _GAP * (len(columns) - 1))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for column in columns:
        table.add_column(
            column, no_wrap=True, justify="right" if column in figures else "left", header_style="bold"
        )
    for row in cells:
        row[gives_way] = shortened(row[gives_way], room)
        table.add_row(*(Text(cell) for cell in row))
    return table


def shortened(text: str, room: int) -> str:
    """At most ``room`` characters; what tells names apart is often at both ends."""
    if len(text) <= room:
        return text
    tail = (room - 1) // 2
    return f"{text[: room - 1 - tail]}…{text[len(text) - tail :]}"
