"""Finding: one thing that doctor looked at."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """OK; NOTE: works, but worth knowing; LACK: something does not work, and ``fix`` says what to do."""

    OK = "ok"
    NOTE = "note"
    LACK = "lack"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``fix`` may hold several lines to paste."""

    area: str
    level: Level
    what: str
    fix: str = ""


def ok(area: str, what: str) -> Finding:
    return Finding(area, Level.OK, what)


def note(area: str, what: str, fix: str = "") -> Finding:
    return Finding(area, Level.NOTE, what, fix)


def lack(area: str, what: str, fix: str) -> Finding:
    return Finding(area, Level.LACK, what, fix)
