"""Whether a target was met, in the words of the tables: a missed one is marked as missed."""

from __future__ import annotations

from collections.abc import Sequence


def at_least(measured: float, target: float) -> str:
    return f"≥ {target:g}: {'met' if measured >= target else 'MISSED'}"


def less_than(measured: float, other: float, what: str) -> str:
    return f"{what}: {'met' if measured < other else 'MISSED'}"


def both(verdicts: Sequence[str]) -> str:
    """Several in one cell."""
    return "; ".join(verdict for verdict in verdicts if verdict)
