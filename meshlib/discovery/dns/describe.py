"""Where a DNS set comes from and how old it is, for people (R16)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from meshlib.discovery.dns.records import Answer, Kind
from meshlib.discovery.dns.table import Row


def describe_rows(main: Sequence[Row], held: Collection[Row], now: float) -> dict[str, Any]:
    """Server, rcode, TTL, age, generation and staleness of the ``main`` questions, and every held one below them."""
    goods = [row.state.good for row in main if row.state.good is not None]
    ttls = [good.ttl for good in goods if good.ttl is not None]
    best = _most_telling(main, goods)
    return {
        "server": best.server if best else "",
        "rcode": best.rcode if best else "",
        "ttl": min(ttls, default=None),
        "age": max((row.state.age(now) for row in main), default=0.0),
        "generation": sum(row.state.generation for row in main),
        "stale": any(row.state.stale for row in held),
        "too_old": any(row.state.too_old(now) for row in held),
        "faults": sum(row.state.faults for row in held),
        "questions": [_question(row, now) for row in held],
    }


def _most_telling(main: Sequence[Row], goods: Sequence[Answer]) -> Answer | None:
    with_records = [good for good in goods if good.kind is Kind.RECORDS]
    last = [row.state.last for row in main if row.state.last is not None]
    return next(iter([*with_records, *goods, *last]), None)


def _question(row: Row, now: float) -> dict[str, Any]:
    state = row.state
    last = state.last
    return {
        "question": str(state.question),
        "kind": row.kind.value,
        "server": last.server if last else "",
        "rcode": last.rcode if last else "",
        "ttl": last.ttl if last else None,
        "canonical": last.canonical if last else "",
        "age": state.age(now),
        "next_in": max(0.0, state.due - now),
        "generation": state.generation,
        "replies": state.replies,
        "faults": state.faults,
        "stale": state.stale,
        "confirming": state.confirming,
        "detail": last.detail if last else "",
    }
