"""A kernel of dictionaries, for faults that a real one cannot produce on demand; the real ones are in tests/kernel."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshlib.agent.backends.base import Probe
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Hairpin,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Plan, Verb
from meshlib.model.service import ServiceKey

PLACE = Place(family=4, node_addresses=("192.0.2.1",))


class Crash(BaseException):
    """The process ends here."""


@dataclass
class FakeKernel:
    """Services own their destinations, as virtual servers do; routes bear our mark."""

    state: dict[ObjectKey, Any] = field(default_factory=dict)
    log: list[Operation] = field(default_factory=list)
    fault: Callable[[Operation], int] = lambda operation: 0  #: errno; 0 for none
    crash_at: int = -1  #: the number of writes that still succeed
    name: str = "fake"
    kinds: tuple[str, ...] = ("table", "hairpin", "route", "service", "destination")

    def probe(self) -> Probe:
        return Probe(True, "fake")

    def fixed(self, place: Place) -> Objects:
        return {ObjectKey("table", "t"): (place.family, place.pod_ranges)}

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        found: dict[ObjectKey, Any] = {
            ObjectKey("route", frontend.key.address): place.node_addresses[:1],
            ObjectKey("service", tuple(frontend.key)): frontend.scheduler,
        }
        for target in frontend.route.targets:
            found[ObjectKey("destination", (tuple(frontend.key), target.address, target.port))] = (
                target.weight
            )
        return found

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        return {ObjectKey("hairpin", tuple(hairpin)): None}

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        if key.kind == "service":
            return key
        if key.kind == "destination":
            assert isinstance(key.name, tuple)
            return ObjectKey("service", key.name[0])
        return None

    def dump(self, family: int) -> Objects:
        return dict(self.state)

    def apply(self, plan: Plan, now: float) -> Sequence[Failed]:
        failed = []
        for operation in plan:
            if self.crash_at == 0:
                raise Crash
            number = self.fault(operation) or self._refuses(operation)
            if number:
                failed.append(Failed(operation, number, errno.errorcode.get(number, "")))
                continue
            self.crash_at -= 1
            self.log.append(operation)
            if operation.verb is Verb.REMOVE:
                del self.state[operation.key]
                for key in [key for key in self.state if self.ledger_key(key) == operation.key]:
                    del self.state[key]  # a service takes its destinations with it
            else:
                self.state[operation.key] = operation.value
        return failed

    def tick(self, now: float) -> float | None:
        return None

    def _refuses(self, operation: Operation) -> int:
        there = operation.key in self.state
        if operation.verb is Verb.ADD:
            owner = self.ledger_key(operation.key)
            if owner is not None and owner != operation.key and owner not in self.state:
                return errno.ESRCH
            return errno.EEXIST if there else 0
        return 0 if there else errno.ENOENT


def frontend(address: str, port: int, *targets: str, scheduler: str = "rr") -> Frontend:
    """A ClusterIP frontend with targets on port 8080."""
    route = Route(Action.FORWARD, tuple(Target(target, 8080) for target in targets))
    return Frontend(
        key=FrontendKey("TCP", address, port),
        kind=FrontendKind.CLUSTER_IP,
        owner=PortKey(ServiceKey("shop", f"s-{address}"), str(port), "TCP"),
        route=route if targets else Route(Action.REJECT),
        scheduler=scheduler,
    )
