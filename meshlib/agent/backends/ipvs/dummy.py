"""A dummy device that holds the virtual addresses, as kube-proxy's does. One thread.

For hosts whose routing daemons or network plugins look for addresses on devices. The device is down and does no ARP.
The host talks to a virtual address from that address, which the masquerade rules have to undo.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.backends.ipvs.refused import failed
from meshlib.agent.backends.ipvs.translate import ADDRESS, addresses
from meshlib.agent.desired import Frontend, Hairpin, Place
from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.messages import Request
from meshlib.agent.netlink.socket import ROUTE as ROUTE_PROTOCOL
from meshlib.agent.netlink.socket import NetlinkSocket
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb

DEVICE = "device"
NAME = "meshlib0"
_KEY = ObjectKey(DEVICE, NAME)
#: What refuses the removal of an address that is gone, and of one whose device is.
_GONE = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV})


class Dummy:
    """Objects: the kind ``device``, one for both families, and kind ``address``, name the address; no values."""

    kinds = (DEVICE, ADDRESS)

    def __init__(
        self, connect: Callable[[int], NetlinkSocket], private: PrivateAddresses | None = None
    ) -> None:
        self._connect = connect
        self._private = private
        self._socket: NetlinkSocket | None = None
        self._held: set[str] = set()  # wanted addresses that another device has
        #: Addresses of other devices, as of the last look.
        self.elsewhere: frozenset[str] = frozenset()

    def fixed(self, place: Place) -> Objects:
        """The device."""
        return {_KEY: None}

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """Its addresses."""
        return {ObjectKey(ADDRESS, address): None for address in addresses(frontend, place, self._private)}

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """Nothing."""
        return {}

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """None: the device's name says it."""
        return None

    def dump(self, family: int) -> Objects:
        """The device and its addresses, and those of other devices that stand for one of ours. Raises OSError."""
        number = self._device()
        found: dict[ObjectKey, None] = {}
        if number is not None:
            found[_KEY] = None
        here, elsewhere = self._addresses(family, number)
        self.elsewhere = frozenset(elsewhere)
        self._held -= {
            each for each in self._held if (":" in each) == (family == 6) and each not in elsewhere
        }
        for address in here | (self._held & elsewhere):
            found[ObjectKey(ADDRESS, address)] = None
        return found

    def apply(self, plan: Sequence[Operation], now: float) -> Sequence[Failed]:
        """The device first or last, as the plan has it; addresses in one batch each way."""
        failures: list[Failed] = []
        for operation in plan:
            if operation.key == _KEY and operation.verb is not Verb.REMOVE:
                failures += self._one(operation, rtnl.add_dummy(NAME), errno.EEXIST)
        ours = [each for each in plan if each.key.kind == ADDRESS]
        if ours:
            failures += self._write(ours)
        for operation in plan:
            # The other family may have addresses on it still: the last one switches off the light.
            if operation.key == _KEY and operation.verb is Verb.REMOVE:
                number = self._device()
                if number is not None and not any(self._addresses(each, number)[0] for each in (4, 6)):
                    failures += self._one(operation, rtnl.remove_link(number), errno.ENODEV)
        return failures

    def _write(self, plan: Sequence[Operation]) -> list[Failed]:
        number = self._device()
        if number is None:
            missing = Refusal(errno.ENODEV, f"there is no device {NAME}")
            return [failed(each, missing) for each in plan if each.verb is not Verb.REMOVE]
        family = 6 if ":" in str(plan[0].key.name) else 4
        _, elsewhere = self._addresses(family, number)
        self.elsewhere = frozenset(elsewhere)
        there = [each for each in plan if each.verb is not Verb.REMOVE and each.key.name in elsewhere]
        self._held.update(str(each.key.name) for each in there)
        rest = [each for each in plan if each not in there]
        requests: list[Request] = []
        for each in rest:
            make = rtnl.remove_address if each.verb is Verb.REMOVE else rtnl.add_address
            requests.append(make(str(each.key.name), number))
        failures = []
        for index, refusal in self._open().batch(requests).items():
            removing = rest[index].verb is Verb.REMOVE
            if refusal.errno not in (_GONE if removing else {errno.EEXIST}):
                failures.append(failed(rest[index], refusal))
        for each in rest:
            if each.verb is Verb.REMOVE:
                self._held.discard(str(each.key.name))
        return failures

    def _one(self, operation: Operation, request: Request, done: int) -> list[Failed]:
        refusal = self._open().batch([request]).get(0)
        if refusal is None or refusal.errno == done:
            return []
        lacking = refusal.errno == errno.EOPNOTSUPP
        return [failed(operation, refusal, "load the module: modprobe dummy" if lacking else "")]

    def _device(self) -> int | None:
        links = rtnl.parse_links(self._open().dump(rtnl.list_links()))
        return next((link.number for link in links if link.name == NAME), None)

    def _addresses(self, family: int, number: int | None) -> tuple[set[str], set[str]]:
        """Those of our device, and those of others."""
        found = rtnl.parse_addresses(self._open().dump(rtnl.list_addresses(family)))
        here = {each.address for each in found if each.device == number}
        return here, {each.address for each in found} - here

    def close(self) -> None:
        """Give the socket back; what is in the kernel stays. Safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = self._connect(ROUTE_PROTOCOL)
        return self._socket
