"""AnyIP: a virtual address is the host's through a local route by our own protocol number. One thread.

No device carries the address, so nothing announces it, its routes can be told from everybody else's and go without
touching another, and the route's source hint lets the host talk to it from the node's own address.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.backends.ipvs.refused import failed
from meshlib.agent.backends.ipvs.translate import ROUTE, addresses
from meshlib.agent.desired import Frontend, Hairpin, Place
from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.messages import Request
from meshlib.agent.netlink.socket import ROUTE as ROUTE_PROTOCOL
from meshlib.agent.netlink.socket import NetlinkSocket
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb

#: The number of lo in every namespace.
LOOPBACK = 1


class AnyIp:
    """Objects: kind ``route``, name the address, value the source address ("": the kernel's choice)."""

    kinds = (ROUTE,)

    def __init__(
        self, connect: Callable[[int], NetlinkSocket], private: PrivateAddresses | None = None
    ) -> None:
        self._connect = connect
        self._private = private
        self._socket: NetlinkSocket | None = None
        # Addresses that somebody else (a device, another route) makes local, with the value that was wanted: they are
        # as good as programmed, and never removed.
        self._held: dict[str, str] = {}
        #: Addresses that somebody else makes local, as of the last look.
        self.elsewhere: frozenset[str] = frozenset()

    @property
    def held(self) -> frozenset[str]:
        """Wanted addresses that were local before us."""
        return frozenset(self._held)

    def fixed(self, place: Place) -> Objects:
        """Nothing."""
        return {}

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """The routes to its addresses."""
        source = place.source
        return {ObjectKey(ROUTE, address): source for address in addresses(frontend, place, self._private)}

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """Nothing."""
        return {}

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """None: the protocol number says it."""
        return None

    def dump(self, family: int) -> Objects:
        """Our routes, and those of others that stand for one of ours. Raises OSError."""
        ours, others = self._routes(family)
        self.elsewhere = frozenset(others)
        for address in [each for each in self._held if (":" in each) == (family == 6)]:
            if address not in others:
                del self._held[address]
        held = {address: source for address, source in self._held.items() if address in others}
        return {ObjectKey(ROUTE, address): source for address, source in {**held, **ours}.items()}

    def apply(self, plan: Sequence[Operation], now: float) -> Sequence[Failed]:
        """In order. A route that is gone already is removed; an address that is local already is bound."""
        requests = [_request(operation) for operation in plan]
        refusals = self._open().batch(requests)
        failures: list[Failed] = []
        there: list[Operation] = []
        for index, refusal in refusals.items():
            operation = plan[index]
            if operation.verb is Verb.ADD and refusal.errno == errno.EEXIST:
                there.append(operation)
            elif operation.verb is not Verb.REMOVE or refusal.errno != errno.ESRCH:
                failures.append(failed(operation, refusal))
        for operation in plan:
            if operation.verb is Verb.REMOVE:
                self._held.pop(str(operation.key.name), None)
        if there:
            failures += self._stand_aside(there)
        return failures

    def _stand_aside(self, there: Sequence[Operation]) -> list[Failed]:
        """Routes that exist: ours (nobody had told us) are corrected, others' are left alone."""
        family = 6 if ":" in str(there[0].key.name) else 4
        try:
            ours, _ = self._routes(family)
        except OSError as error:
            return [Failed(each, error.errno or errno.EIO, str(error)) for each in there]
        corrected = [each for each in there if str(each.key.name) in ours]
        for each in there:
            if str(each.key.name) not in ours:
                self._held[str(each.key.name)] = each.value
                self.elsewhere |= {str(each.key.name)}
        refusals = self._open().batch([_request(each._replace(verb=Verb.SET)) for each in corrected])
        return [failed(corrected[index], refusal) for index, refusal in refusals.items()]

    def _routes(self, family: int) -> tuple[dict[str, str], set[str]]:
        routes = rtnl.parse_routes(self._open().dump(rtnl.list_routes(family)))
        ours = {route.address: route.source for route in routes if route.protocol == rtnl.PROTOCOL}
        return ours, {route.address for route in routes if route.protocol != rtnl.PROTOCOL}

    def close(self) -> None:
        """Give the socket back; what is in the kernel stays. Safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = self._connect(ROUTE_PROTOCOL)
        return self._socket


def _request(operation: Operation) -> Request:
    address = str(operation.key.name)
    if operation.verb is Verb.REMOVE:
        return rtnl.remove_route(address, LOOPBACK)
    return rtnl.add_route(address, operation.value, LOOPBACK, replace=operation.verb is Verb.SET)
