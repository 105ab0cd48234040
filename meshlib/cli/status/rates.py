"""What happened between two looks at the running programs: requests per second, by target and by endpoint.

Pure: takes the documents of ``meshlib.cli.status.ask`` and gives rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshlib.cli.status.view import authority, way

#: Workers by their socket, which no two processes ever share.
Look = Mapping[str, dict[str, Any]]


@dataclass(slots=True)
class Line:
    """What several workers did with one target or endpoint. Rates are per second; ``latency`` is the highest."""

    name: str
    ways: set[str] = field(default_factory=set)
    workers: int = 0
    members: set[int] = field(default_factory=set)
    in_flight: int = 0
    requests: float = 0.0
    failures: float = 0.0
    bare: float = 0.0
    latency: float | None = None

    def add(self, found: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> None:
        """Count one worker in. ``before``: None when it was not there; what it counted so far is no rate then."""
        self.workers += 1
        self.in_flight += found["in_flight"]
        if before is not None and seconds > 0:
            for key in ("requests", "failures", "bare"):
                grown = found.get(key, 0) - before.get(key, 0)
                # Fewer than before: the endpoint left and came back, and counts anew.
                setattr(
                    self, key, getattr(self, key) + (grown if grown >= 0 else found.get(key, 0)) / seconds
                )


@dataclass(frozen=True, slots=True)
class Picture:
    """Lines by name; ``endpoints`` by target and address."""

    targets: Sequence[Line]
    endpoints: Sequence[tuple[str, Line]]


def picture(before: Look, after: Look) -> Picture:
    """Compare two looks. Workers that are only in one of them have no rates."""
    targets: dict[str, Line] = {}
    endpoints: dict[tuple[str, str], Line] = {}
    for socket, worker in after.items():
        old = before.get(socket)
        seconds = worker["at"] - old["at"] if old is not None else 0.0
        known = dict(_targets(old)) if old is not None else {}
        for name, found in _targets(worker):
            line = targets.setdefault(name, Line(name))
            earlier = known.get(name)
            line.add(found["totals"], earlier["totals"] if earlier else None, seconds)
            line.ways |= found["ways"]
            line.members.add(found["members"])
            rows = earlier["endpoints"] if earlier else {}
            for where, row in found["endpoints"].items():
                one = endpoints.setdefault((name, where), Line(where))
                one.add(row, rows.get(where), seconds)
                one.ways.add(row["state"])
                if row["latency"] is not None:
                    one.latency = max(one.latency or 0.0, row["latency"])
    return Picture(
        [targets[name] for name in sorted(targets)],
        [(name, endpoints[name, where]) for name, where in sorted(endpoints)],
    )


def _targets(worker: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each target once, however many Meshes of the worker use it: its totals are theirs together."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for target in worker["targets"]:
        groups[target["target"]].append(target)
    for name, group in groups.items():
        endpoints: dict[str, dict[str, Any]] = {}
        for target in group:
            for row in target["endpoints"]:
                if row["state"] != "out":
                    endpoints[authority(row)] = _sum(endpoints.get(authority(row)), row)
        yield (
            name,
            {
                "totals": {**group[0]["totals"], "bare": sum(map(_bare, group))},
                "ways": set(map(way, group)),
                "members": max(target["members"] for target in group),
                "endpoints": endpoints,
            },
        )


def _bare(target: Mapping[str, Any]) -> int:
    requests = target["rollout"]["requests"]
    return int(sum(requests.values()) - requests["mesh"])


def _sum(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    if one is None:
        return other
    return {**other, **{key: one[key] + other[key] for key in ("in_flight", "requests", "failures")}}
