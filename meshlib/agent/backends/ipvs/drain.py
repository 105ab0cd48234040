"""Drain: destinations that take nothing new and wait for their connections to end. Pure; a clock's time is passed in.

Removing a destination at once would reset what goes through it. So its weight is set to 0 in place, and it goes when
its last connection does, or when its time is over: kube-proxy waits for ever, and idle connections would keep it for
days. Which destinations drain can be read off the kernel (weight 0), so a restart forgets none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from meshlib.agent.netlink.ipvs import Connections, RealKey, RealServer, ServiceKey

#: Seconds between two looks. A look costs one dump for each virtual server that has a draining destination.
INTERVAL = 10.0


class Drained(NamedTuple):
    """One destination, wherever it is."""

    service: ServiceKey
    real: RealKey


@dataclass(slots=True)
class Drain:
    """``seconds``: how long a destination may keep its connections; 0 removes at once. Belongs to one thread."""

    seconds: float = 900.0
    _deadlines: dict[ServiceKey, dict[RealKey, float]] = field(default_factory=dict)
    _next: float = 0.0

    def __contains__(self, entry: Drained) -> bool:
        return entry.real in self._deadlines.get(entry.service, ())

    def __bool__(self) -> bool:
        return bool(self._deadlines)

    def __len__(self) -> int:
        return sum(map(len, self._deadlines.values()))

    @property
    def services(self) -> list[ServiceKey]:
        """The virtual servers with a draining destination."""
        return list(self._deadlines)

    def of(self, service: ServiceKey) -> Collection[RealKey]:
        """What drains of one virtual server."""
        return self._deadlines.get(service, {}).keys()

    def start(self, entry: Drained, now: float) -> None:
        """It has weight 0 now. One that drains already keeps its deadline."""
        if not self._deadlines:
            self._next = now + INTERVAL
        reals = self._deadlines.setdefault(entry.service, {})
        deadline = reals.setdefault(entry.real, now + self.seconds)
        self._next = min(self._next, deadline)

    def stop(self, entry: Drained) -> None:
        """It is wanted again, or gone."""
        reals = self._deadlines.get(entry.service)
        if reals is not None:
            reals.pop(entry.real, None)
            if not reals:
                del self._deadlines[entry.service]

    def forget(self, service: ServiceKey) -> None:
        """The whole virtual server is gone."""
        self._deadlines.pop(service, None)

    def cut(self, addresses: Collection[str], now: float) -> None:
        """The hosts behind these addresses are gone: nothing is worth waiting for."""
        for reals in self._deadlines.values():
            for real in reals:
                if real.address in addresses:
                    reals[real] = self._next = now

    def next(self) -> float | None:
        """When to look again; None: nothing drains."""
        return self._next if self._deadlines else None

    def look(
        self,
        found: Mapping[ServiceKey, Mapping[RealKey, tuple[RealServer, Connections]]],
        now: float,
    ) -> list[Drained]:
        """What the kernel holds of ``services``. Returns those to be removed now; the others are looked at later.

        A destination that is gone, or was given a weight by somebody else, drains no more.
        """
        ended: list[Drained] = []
        for entry, deadline in list(self._entries()):
            if entry.service not in found:
                continue
            there = found[entry.service].get(entry.real)
            if there is None or there[0].weight:
                self.stop(entry)
            elif now >= deadline or idle(there[1]):
                ended.append(entry)
        deadlines = [deadline for _, deadline in self._entries() if deadline > now]
        self._next = min([now + INTERVAL, *deadlines])
        return ended

    def _entries(self) -> Iterable[tuple[Drained, float]]:
        for service, reals in self._deadlines.items():
            for real, deadline in reals.items():
                yield Drained(service, real), deadline


def idle(connections: Connections) -> bool:
    """Whether removing it cuts nothing."""
    return not connections.active and not connections.inactive
