"""Virtual servers and destinations in the kernel: read, written in batches, drained. One thread.

Everything is changed in place, and only what is in the plan. A destination that goes gets weight 0 first; only then are
its connections counted, so that none can begin in between.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from meshlib.agent.backends.ipvs.drain import Drain, Drained, idle
from meshlib.agent.backends.ipvs.exclude import Excluded
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
from meshlib.agent.netlink.generic import find_family, parse_family
from meshlib.agent.netlink.ipvs import (
    FAMILY,
    HASH_PORT,
    Codec,
    Connections,
    RealKey,
    RealServer,
    ServiceKey,
    VirtualServer,
)
from meshlib.agent.netlink.messages import Malformed, Request
from meshlib.agent.netlink.socket import GENERIC, KernelRefused, NetlinkSocket
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb

#: What refuses the removal of something that is gone: a destination, a virtual server.
_GONE = frozenset({errno.ENOENT, errno.ESRCH})
_BEHIND_OUR_BACK = "somebody else changed it since it was read"

_Destinations = dict[RealKey, tuple[RealServer, Connections]]


class Servers:
    """Objects: kind ``service``, name ServiceKey, value VirtualServer; kind ``destination``, name (protocol, address,
    port, endpoint's address, its port), value RealServer."""

    kinds = (SERVICE, DESTINATION)

    def __init__(
        self,
        connect: Callable[[int], NetlinkSocket],
        *,
        drain_seconds: float = 900.0,
        excluded: Excluded,
        private: PrivateAddresses | None = None,
    ) -> None:
        self._connect = connect
        self._excluded = excluded
        self._private = private
        self._socket: NetlinkSocket | None = None
        self._codec: Codec | None = None
        self._drain = Drain(drain_seconds)
        # Virtual servers with a scheduler that this kernel does not have: as they are programmed instead, and as they
        # were wanted. They count as what was wanted, or each audit would write them anew.
        self._stand_ins: dict[ServiceKey, tuple[VirtualServer, VirtualServer]] = {}
        #: Refused operations by errno, and connections cut because a virtual server went; for the metrics.
        self.refused: Counter[int] = Counter()
        self.cut_connections = 0

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
            return {key: value for key, value in found.items() if _service(key).address not in self._excluded}
        return found

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """Nothing."""
        return {}

    def ledger_key(self, key: ObjectKey) -> ObjectKey:
        """A virtual server bears nobody's name; its destinations are whose it is."""
        return key if key.kind == SERVICE else ObjectKey(SERVICE, _service(key))

    # -- the kernel -------------------------------------------------------------------------------------------

    def dump(self, family: int) -> Objects:
        """All of the family, whoever made it, without those in excluded networks and what drains. A destination with
        weight 0 that is not known to drain (an agent before us began it) is told with that weight: it is then either
        given its weight back, or removed, which makes it drain here. Raises OSError."""
        netlink, codec = self._open()
        try:
            services = codec.services(netlink.dump(codec.list_services()))
        except Malformed as error:
            raise OSError(errno.EBADMSG, str(error)) from error
        found: dict[ObjectKey, Any] = {}
        for key, value in services.items():
            if not in_family(key, family) or key.address in self._excluded:
                continue
            found[ObjectKey(SERVICE, key)] = self._as_wanted(key, value)
            draining = self._drain.of(key)
            for real, (server, _) in self._destinations(key).items():
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
                failures += self._end([each for each in ends if _service(each.key) not in dying], now)
                failures += self._remove_services([each for each in operations if each.key.kind == SERVICE])
                lost = {
                    each.operation.key.name: each for each in failures if each.operation.key.kind == SERVICE
                }
                for each in ends:
                    if (with_it := lost.get(_service(each.key))) is not None:
                        failures.append(Failed(each, 0, f"its virtual server is still there: {with_it.text}"))
            else:
                failures += self._write(list(run))
        self.refused.update(each.errno for each in failures)
        return failures

    def tick(self, now: float) -> float | None:
        """Remove what has drained. Returns when to look next. What the kernel refuses is tried again."""
        due = self._drain.next()
        if due is None or now < due:
            return due
        found: dict[ServiceKey, _Destinations] = {}
        for key in self._drain.services:
            try:
                found[key] = self._destinations(key)
            except OSError as error:
                self.refused[error.errno or errno.EIO] += 1
        self._delete(self._drain.look(found, now))
        return self._drain.next()

    def close(self) -> None:
        """Give the socket back; what is in the kernel stays. Safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _write(self, plan: Sequence[Operation]) -> list[Failed]:
        """Additions and changes."""
        returning: set[int] = set()
        refusals = self._batch(self._requests(plan, returning))
        again: list[tuple[Operation, Request]] = []
        failures: list[Failed] = []
        for index, refusal in sorted(refusals.items()):
            operation = plan[index]
            other = self._other_way(operation, refusal, index in returning)
            if other is None:
                failures.append(failed(operation, refusal, _meaning(operation, refusal)))
            else:
                again.append((operation, other))
        for index, refusal in self._batch([request for _, request in again]).items():
            operation = again[index][0]
            self._stand_ins.pop(_service(operation.key), None)
            failures.append(failed(operation, refusal, _meaning(operation, refusal)))
        refused = {each.operation.key for each in failures}
        for index in returning:
            if plan[index].key not in refused:
                self._drain.stop(Drained(*_split(plan[index].key)))
        return failures

    def _requests(self, plan: Sequence[Operation], returning: set[int]) -> Iterator[Request]:
        """One for each operation, made as it is sent: a node's whole table would be a lot of memory. ``returning``
        gets the places of destinations that are changed in place."""
        _, codec = self._open()
        drains = self._drain if self._drain else ()
        name: Any
        for index, (verb, (kind, name), value, _) in enumerate(plan):
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
        _, codec = self._open()
        verb, key, value, _ = operation
        if key.kind == DESTINATION:
            service, real = _split(key)
            if refusal.errno == errno.ESRCH and service in self._stand_ins:
                return codec.add_destination(service, real, value)  # it was refused with its virtual server
            if refusal.errno == errno.EEXIST:
                return codec.set_destination(service, real, value)
            if refusal.errno == errno.ENOENT and verb is Verb.ADD and returning:
                return codec.add_destination(service, real, value)
        elif refusal.errno == errno.ENOENT and value.scheduler != FALLBACK_SCHEDULER:
            stand_in = value._replace(scheduler=FALLBACK_SCHEDULER, flags=value.flags & ~HASH_PORT)
            self._stand_ins[_service(key)] = (stand_in, value)
            make = codec.add_service if verb is Verb.ADD else codec.set_service
            return make(_service(key), stand_in)
        return None

    def _end(self, plan: Sequence[Operation], now: float) -> list[Failed]:
        """Removed destinations: at once, or when they have drained."""
        _, codec = self._open()
        at_once: list[Operation] = []
        gently: list[Operation] = []
        for operation in plan:
            # Only TCP has connections whose end can be waited for.
            gentle = self._drain.seconds > 0 and _service(operation.key).protocol == "TCP"
            (gently if gentle else at_once).append(operation)
        quiet = [each for each in gently if each.value is None or each.value.weight]
        refusals = self._batch(
            [codec.set_destination(*_split(each.key), _weightless(each.value)) for each in quiet]
        )
        failures = []
        ended: set[ObjectKey] = set()
        for index, refusal in refusals.items():
            ended.add(quiet[index].key)
            if refusal.errno not in _GONE:
                failures.append(failed(quiet[index], refusal))
        draining = [Drained(*_split(each.key)) for each in gently if each.key not in ended]
        for entry in draining:
            self._drain.start(entry, now)
        counted: dict[ServiceKey, _Destinations] = {}
        for service in {entry.service for entry in draining}:
            try:
                counted[service] = self._destinations(service)
            except OSError as error:  # looked at again by tick
                self.refused[error.errno or errno.EIO] += 1
        self._delete(
            entry
            for entry in draining
            if entry.service in counted
            and (entry.real not in counted[entry.service] or idle(counted[entry.service][entry.real][1]))
        )
        refusals = self._batch([codec.remove_destination(*_split(each.key)) for each in at_once])
        for index, refusal in refusals.items():
            if refusal.errno not in _GONE:
                failures.append(failed(at_once[index], refusal))
        for each in at_once:
            self._drain.stop(Drained(*_split(each.key)))
        return failures

    def _delete(self, entries: Iterable[Drained]) -> None:
        """Drained destinations. One that cannot be removed goes on draining."""
        ended = list(entries)
        _, codec = self._open()
        refusals = self._batch([codec.remove_destination(*entry) for entry in ended])
        for index, entry in enumerate(ended):
            refusal = refusals.get(index)
            if refusal is None or refusal.errno in _GONE:
                self._drain.stop(entry)
            else:
                self.refused[refusal.errno] += 1

    def _remove_services(self, plan: Sequence[Operation]) -> list[Failed]:
        _, codec = self._open()
        for each in plan:
            try:
                counts = self._destinations(_service(each.key)).values()
            except OSError:
                continue  # only a figure is lost; removing will say what is wrong
            self.cut_connections += sum(count.active for _, count in counts)
        refusals = self._batch([codec.remove_service(_service(each.key)) for each in plan])
        failures = []
        for index, each in enumerate(plan):
            refusal = refusals.get(index)
            if refusal is not None and refusal.errno not in _GONE:
                failures.append(failed(each, refusal))
                continue
            self._drain.forget(_service(each.key))
            self._stand_ins.pop(_service(each.key), None)
        return failures

    def _destinations(self, key: ServiceKey) -> _Destinations:
        netlink, codec = self._open()
        try:
            return codec.destinations(netlink.dump(codec.list_destinations(key)))
        except Malformed as error:
            raise OSError(errno.EBADMSG, str(error)) from error
        except KernelRefused as error:
            if error.errno in _GONE:
                return {}
            raise

    def _as_wanted(self, key: ServiceKey, value: VirtualServer) -> VirtualServer:
        programmed, wanted = self._stand_ins.get(key, (None, value))
        return wanted if value == programmed else value

    def _batch(self, requests: Iterable[Request]) -> dict[int, Refusal]:
        netlink, _ = self._open()
        return netlink.batch(requests)

    def _open(self) -> tuple[NetlinkSocket, Codec]:
        """Raises OSError where the kernel has no IPVS."""
        if self._socket is None or self._codec is None:
            netlink = self._connect(GENERIC)
            try:
                (answer,) = netlink.request(find_family(FAMILY))
                self._codec = Codec(parse_family(answer, FAMILY))
            except BaseException:
                netlink.close()
                raise
            self._socket = netlink
        return self._socket, self._codec


def _service(key: ObjectKey) -> ServiceKey:
    """The virtual server that an object is, or belongs to."""
    name: Any = key.name
    return ServiceKey._make(name[:3])


def _split(key: ObjectKey) -> tuple[ServiceKey, RealKey]:
    """The two halves of a destination's name."""
    name: Any = key.name
    return ServiceKey._make(name[:3]), RealKey._make(name[3:])


def _weightless(value: RealServer | None) -> RealServer:
    return RealServer(0) if value is None else value._replace(weight=0)


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
