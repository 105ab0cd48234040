"""The end of destinations: at once, or when their connections have ended. One thread.

A destination that goes gets weight 0 first; only then are its connections counted, so that none can begin in between.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from meshlib.agent.backends.ipvs.drain import Drain, Drained, idle
from meshlib.agent.backends.ipvs.kernel import GONE, Destinations, IpvsKernel
from meshlib.agent.backends.ipvs.refused import failed
from meshlib.agent.netlink.ipvs import RealKey, RealServer, ServiceKey
from meshlib.agent.objects import Failed, ObjectKey, Operation


class Ending:
    """``refused``: gets what the kernel refused while nobody waited for an answer, by errno."""

    def __init__(self, kernel: IpvsKernel, drain_seconds: float, refused: Counter[int]) -> None:
        self._kernel = kernel
        self._refused = refused
        self.drain = Drain(drain_seconds)  #: what waits

    def end(self, plan: Sequence[Operation], now: float) -> list[Failed]:
        """Removals of destinations."""
        at_once: list[Operation] = []
        gently: list[Operation] = []
        for operation in plan:
            # Only TCP has connections whose end can be waited for.
            gentle = self.drain.seconds > 0 and service_of(operation.key).protocol == "TCP"
            (gently if gentle else at_once).append(operation)
        return self._gently(gently, now) + self._at_once(at_once)

    def tick(self, now: float) -> float | None:
        """Remove what has drained. Returns when to look next. What the kernel refuses is tried again."""
        due = self.drain.next()
        if due is None or now < due:
            return due
        self._delete(self.drain.look(self._count(self.drain.services), now))
        return self.drain.next()

    def _gently(self, plan: Sequence[Operation], now: float) -> list[Failed]:
        codec = self._kernel.codec
        quiet = [each for each in plan if each.value is None or each.value.weight]
        refusals = self._kernel.batch(
            codec.set_destination(*split(each.key), _weightless(each.value)) for each in quiet
        )
        failures = []
        ended: set[ObjectKey] = set()
        for index, refusal in refusals.items():
            ended.add(quiet[index].key)
            if refusal.errno not in GONE:
                failures.append(failed(quiet[index], refusal))
        draining = [Drained(*split(each.key)) for each in plan if each.key not in ended]
        for entry in draining:
            self.drain.start(entry, now)
        # What cannot be counted is looked at again by tick.
        counted = self._count({entry.service for entry in draining})
        self._delete(
            entry
            for entry in draining
            if entry.service in counted
            and (entry.real not in counted[entry.service] or idle(counted[entry.service][entry.real][1]))
        )
        return failures

    def _at_once(self, plan: Sequence[Operation]) -> list[Failed]:
        codec = self._kernel.codec
        refusals = self._kernel.batch(codec.remove_destination(*split(each.key)) for each in plan)
        for each in plan:
            self.drain.stop(Drained(*split(each.key)))
        return [
            failed(plan[index], refusal) for index, refusal in refusals.items() if refusal.errno not in GONE
        ]

    def _count(self, services: Iterable[ServiceKey]) -> dict[ServiceKey, Destinations]:
        """Their destinations, as far as the kernel tells."""
        found: dict[ServiceKey, Destinations] = {}
        for service in services:
            try:
                found[service] = self._kernel.destinations(service)
            except OSError as error:
                self._refused[error.errno or errno.EIO] += 1
        return found

    def _delete(self, entries: Iterable[Drained]) -> None:
        """Drained destinations. One that cannot be removed goes on draining."""
        ended = list(entries)
        codec = self._kernel.codec
        refusals = self._kernel.batch(codec.remove_destination(*entry) for entry in ended)
        for index, entry in enumerate(ended):
            refusal = refusals.get(index)
            if refusal is None or refusal.errno in GONE:
                self.drain.stop(entry)
            else:
                self._refused[refusal.errno] += 1


def service_of(key: ObjectKey) -> ServiceKey:
    """The virtual server that an object is, or belongs to."""
    name: Any = key.name
    return ServiceKey._make(name[:3])


def split(key: ObjectKey) -> tuple[ServiceKey, RealKey]:
    """The two halves of a destination's name."""
    name: Any = key.name
    return ServiceKey._make(name[:3]), RealKey._make(name[3:])


def _weightless(value: RealServer | None) -> RealServer:
    return RealServer(0) if value is None else value._replace(weight=0)
