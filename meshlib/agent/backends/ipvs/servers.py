"""Virtual servers and destinations in the kernel: read, and written in batches. One thread.

Everything is changed in place, and only what is in the plan.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any

from meshlib.agent.backends.ipvs.drain import Drained
from meshlib.agent.backends.ipvs.ending import Ending, service_of, split
from meshlib.agent.backends.ipvs.exclude import Excluded
from meshlib.agent.backends.ipvs.kernel import GONE, IpvsKernel
from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.backends.ipvs.refused import failed
from meshlib.agent.backends.ipvs.translate import (
    DESTINATION,
    FALLBACK_SCHEDULER,
    SERVICE,
    in_family,
    servers,
)
from meshlib.agent.desired import Frontend, Hairpin, Place
from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.ipvs import HASH_PORT, RealKey, ServiceKey, VirtualServer
from meshlib.agent.netlink.messages import Request
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb

_BEHIND_OUR_BACK = "somebody else changed it since it was read"


class Servers:
    """Objects: kind ``service``, name ServiceKey, value VirtualServer; kind ``destination``, name (protocol, address,
    port, endpoint's address, its port), value RealServer."""

    kinds = (SERVICE, DESTINATION)

    def __init__(
        self,
        kernel: IpvsKernel,
        *,
        drain_seconds: float = 900.0,
        excluded: Excluded,
        private: PrivateAddresses | None = None,
    ) -> None:
        self._kernel = kernel
        self._excluded = excluded
        self._private = private
        # Virtual servers with a scheduler that this kernel does not have: as they are programmed instead, and as they
        # were wanted. They count as what was wanted, or each audit would write them anew.
        self._stand_ins: dict[ServiceKey, tuple[VirtualServer, VirtualServer]] = {}
        #: Refused operations by errno, and connections cut because a virtual server went; for the metrics.
        self.refused: Counter[int] = Counter()
        self.cut_connections = 0
        self._ending = Ending(kernel, drain_seconds, self.refused)
        self._drain = self._ending.drain

    @property
    def draining(self) -> int:
        """Destinations that wait for their connections to end."""
        return len(self._drain)

    @property
    def missing_schedulers(self) -> frozenset[str]:
        """Schedulers that were asked for and that this kernel does not have; the fallback serves in their place."""
        return frozenset(wanted.scheduler for _, wanted in self._stand_ins.values())

    def cut(self, addresses: Collection[str], now: float) -> None:
        """The hosts behind these addresses are gone: what drains there goes with the next ``tick``."""
        self._drain.cut(addresses, now)

    # -- pure -------------------------------------------------------------------------------------------------

    def fixed(self, place: Place) -> Objects:
        """Nothing."""
        return {}

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """Its virtual servers and their destinations."""
        found = servers(frontend, place, self._private)
        if self._excluded:
            return {
                key: value for key, value in found.items() if service_of(key).address not in self._excluded
            }
        return found

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """Nothing."""
        return {}

    def ledger_key(self, key: ObjectKey) -> ObjectKey:
        """A virtual server bears nobody's name; its destinations are whose it is."""
        return key if key.kind == SERVICE else ObjectKey(SERVICE, service_of(key))

    # -- the kernel -------------------------------------------------------------------------------------------

    def dump(self, family: int) -> Objects:
        """All of the family, whoever made it, without those in excluded networks and what drains. A destination with
        weight 0 that is not known to drain (an agent before us began it) is told with that weight: it is then either
        given its weight back, or removed, which makes it drain here. Raises OSError."""
        found: dict[ObjectKey, Any] = {}
        for key, value in self._kernel.services().items():
            if not in_family(key, family) or key.address in self._excluded:
                continue
            found[ObjectKey(SERVICE, key)] = self._as_wanted(key, value)
            draining = self._drain.of(key)
            for real, (server, _) in self._kernel.destinations(key).items():
                if server.weight or real not in draining:
                    found[ObjectKey(DESTINATION, (*key, *real))] = server
        return found

    def apply(self, plan: Sequence[Operation], now: float) -> Sequence[Failed]:
        """Operations in order, except that removing a virtual server removes its destinations by itself."""
        failures: list[Failed] = []
        dying = {
            operation.key.name: operation
            for operation in plan
            if operation.verb is Verb.REMOVE and operation.key.kind == SERVICE
        }
        for removing, run in groupby(plan, key=lambda operation: operation.verb is Verb.REMOVE):
            if removing:
                operations = list(run)
                ends = [each for each in operations if each.key.kind == DESTINATION]
                failures += self._ending.end(
                    [each for each in ends if service_of(each.key) not in dying], now
                )
                failures += self._remove_services([each for each in operations if each.key.kind == SERVICE])
                lost = {
                    each.operation.key.name: each for each in failures if each.operation.key.kind == SERVICE
                }
                for each in ends:
                    if (with_it := lost.get(service_of(each.key))) is not None:
                        failures.append(Failed(each, 0, f"its virtual server is still there: {with_it.text}"))
            else:
                failures += self._write(list(run))
        self.refused.update(each.errno for each in failures)
        return failures

    def tick(self, now: float) -> float | None:
        """Remove what has drained. Returns when to look next."""
        return self._ending.tick(now)

    def close(self) -> None:
        """Nothing: the kernel is reached by all of this backend."""

    def _write(self, plan: Sequence[Operation]) -> list[Failed]:
        """Additions and changes."""
        returning: set[int] = set()
        refusals = self._kernel.batch(self._requests(plan, returning))
        again: list[tuple[Operation, Request]] = []
        failures: list[Failed] = []
        taken = {
            service_of(plan[index].key)
            for index, refusal in refusals.items()
            if plan[index].key.kind == SERVICE and refusal.errno == errno.EEXIST
        }
        for index, refusal in sorted(refusals.items()):
            operation = plan[index]
            alone = operation.key.kind == DESTINATION and service_of(operation.key) in taken
            other = None if alone else self._other_way(operation, refusal, index in returning)
            if other is None:
                failures.append(failed(operation, refusal, _meaning(operation, refusal)))
            else:
                again.append((operation, other))
        for index, refusal in self._kernel.batch([request for _, request in again]).items():
            operation = again[index][0]
            self._stand_ins.pop(service_of(operation.key), None)
            failures.append(failed(operation, refusal, _meaning(operation, refusal)))
        refused = {each.operation.key for each in failures}
        if taken:
            failures += self._take_back(plan, taken, refused)
        for index in returning:
            if plan[index].key not in refused:
                self._drain.stop(Drained(*split(plan[index].key)))
        return failures

    def _take_back(
        self, plan: Sequence[Operation], taken: set[ServiceKey], refused: set[ObjectKey]
    ) -> list[Failed]:
        """Destinations that went into virtual servers which somebody else made since the kernel was read: out again."""
        strays = [
            each
            for each in plan
            if each.verb is Verb.ADD
            and each.key.kind == DESTINATION
            and each.key not in refused
            and service_of(each.key) in taken
        ]
        codec = self._kernel.codec
        self._kernel.batch([codec.remove_destination(*split(each.key)) for each in strays])
        return [Failed(each, 0, "its virtual server is somebody else's") for each in strays]

    def _requests(self, plan: Sequence[Operation], returning: set[int]) -> Iterator[Request]:
        """One for each operation, made as it is sent: a node's whole table would be a lot of memory. ``returning``
        gets the places of destinations that are changed in place."""
        codec = self._kernel.codec
        drains = self._drain if self._drain else ()
        name: Any
        service = ServiceKey("", "", 0)
        for index, (verb, (kind, name), value, _) in enumerate(plan):
            if name[:3] != service:  # plans are in the order of names: that of the one before, mostly
                service = ServiceKey._make(name[:3])
            if kind == SERVICE:
                make = codec.add_service if verb is Verb.ADD else codec.set_service
                yield make(service, value)
                continue
            real = RealKey._make(name[3:])
            if verb is Verb.ADD and (not drains or Drained(service, real) not in drains):
                yield codec.add_destination(service, real, value)
            else:
                # One that drains gets its weight back: its connections go on.
                returning.add(index)
                yield codec.set_destination(service, real, value)

    def _other_way(self, operation: Operation, refusal: Refusal, returning: bool) -> Request | None:
        """What leads to the same end where the kernel holds something else than was believed; None: nothing does.

        A virtual server that is there already may be somebody else's: the engine decides, once it has read it.
        """
        codec = self._kernel.codec
        verb, key, value, _ = operation
        if key.kind == DESTINATION:
            service, real = split(key)
            if refusal.errno == errno.ESRCH and service in self._stand_ins:
                return codec.add_destination(service, real, value)  # it was refused with its virtual server
            if refusal.errno == errno.EEXIST:
                return codec.set_destination(service, real, value)
            if refusal.errno == errno.ENOENT and verb is Verb.ADD and returning:
                return codec.add_destination(service, real, value)
        elif refusal.errno == errno.ENOENT and value.scheduler != FALLBACK_SCHEDULER:
            stand_in = value._replace(scheduler=FALLBACK_SCHEDULER, flags=value.flags & ~HASH_PORT)
            self._stand_ins[service_of(key)] = (stand_in, value)
            make = codec.add_service if verb is Verb.ADD else codec.set_service
            return make(service_of(key), stand_in)
        return None

    def _remove_services(self, plan: Sequence[Operation]) -> list[Failed]:
        codec = self._kernel.codec
        for each in plan:
            try:
                counts = self._kernel.destinations(service_of(each.key)).values()
            except OSError:
                continue  # only a figure is lost; removing will say what is wrong
            self.cut_connections += sum(count.active for _, count in counts)
        refusals = self._kernel.batch([codec.remove_service(service_of(each.key)) for each in plan])
        failures = []
        for index, each in enumerate(plan):
            refusal = refusals.get(index)
            if refusal is not None and refusal.errno not in GONE:
                failures.append(failed(each, refusal))
                continue
            self._drain.forget(service_of(each.key))
            self._stand_ins.pop(service_of(each.key), None)
        return failures

    def _as_wanted(self, key: ServiceKey, value: VirtualServer) -> VirtualServer:
        programmed, wanted = self._stand_ins.get(key, (None, value))
        return wanted if value == programmed else value


def _meaning(operation: Operation, refusal: Refusal) -> str:
    """What a refusal of an addition or change says, beyond its name."""
    service = operation.key.kind == SERVICE
    if refusal.errno == errno.EEXIST or refusal.errno == errno.ESRCH:
        return _BEHIND_OUR_BACK
    if refusal.errno == errno.ENOENT:
        scheduler = operation.value.scheduler if service else ""
        return f"load the scheduler's module: modprobe ip_vs_{scheduler}" if service else _BEHIND_OUR_BACK
    if refusal.errno == errno.EINVAL and not service:
        return "the endpoint's address is no host's, or the device lo is down"
    return ""
