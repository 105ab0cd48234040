"""IpvsBackend: address binding, virtual servers and a companion table as one backend of the engine. One thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from typing import Any, Literal

from meshlib.agent.backends.base import Probe, Speaking
from meshlib.agent.backends.ipvs.anyip import AnyIp
from meshlib.agent.backends.ipvs.dummy import Dummy
from meshlib.agent.backends.ipvs.exclude import Excluded
from meshlib.agent.backends.ipvs.kernel import IpvsKernel
from meshlib.agent.backends.ipvs.part import Companion, Part
from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.backends.ipvs.probe import probe
from meshlib.agent.backends.ipvs.servers import Servers
from meshlib.agent.backends.ipvs.silence import Silence
from meshlib.agent.backends.ipvs.timeouts import NamespaceTimeouts
from meshlib.agent.backends.ipvs.words import words
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.desired import Frontend, Hairpin, Place
from meshlib.agent.netlink.ipvs import Timeouts
from meshlib.agent.netlink.socket import NetlinkSocket
from meshlib.agent.objects import Failed, ObjectKey, Objects, Plan

#: What nobody does where there is no companion.
_ALONE = (
    "without a companion: what is to be dropped is refused, nothing is masqueraded, source ranges and exact affinity "
    "are ignored, and externalTrafficPolicy Local holds for this node's own pods too"
)


class IpvsBackend:
    """One family's backend (see ``meshlib.agent.backends.base.Backend``); two families take two of them.

    ``companion`` says what IPVS cannot: drop, masquerade, source ranges, the short circuit of externalTrafficPolicy
    Local, the host's ports behind a virtual address. Without one those are not there. ``private``: where the companion
    leads sources on this node (the same object as the companion's own). ``drain_seconds``: how long
    a removed endpoint keeps its connections. ``excluded``: networks whose virtual servers are never touched.
    ``timeouts``: of the whole namespace, where others than the kernel's own are asked for. ``arp``: where ARP for
    virtual addresses is not to be answered; opens the sockets for it. Only for family 4.
    """

    name = "ipvs"

    def __init__(
        self,
        *,
        binding: Literal["anyip", "dummy"] = "anyip",
        drain_seconds: float = 900.0,
        excluded: Iterable[str] = (),
        companion: Companion | None = None,
        private: PrivateAddresses | None = None,
        timeouts: Timeouts | None = None,
        arp: Callable[[], TransactionSocket] | None = None,
        connect: Callable[[int], NetlinkSocket] = NetlinkSocket,
    ) -> None:
        private = private if companion is not None else None
        self._connect = connect
        self._excluded = Excluded(excluded)
        self._kernel = IpvsKernel(connect)
        self.servers = Servers(
            self._kernel, drain_seconds=drain_seconds, excluded=self._excluded, private=private
        )
        bind = AnyIp if binding == "anyip" else Dummy
        self.binding: AnyIp | Dummy = bind(connect, private)
        self._companion = companion
        self._parts: tuple[Part, ...] = (self.binding, self.servers)
        self._silence: Silence | None = None
        if arp is not None:
            self._silence = Silence(arp, lambda: self.binding.elsewhere)
            self._parts += (self._silence,)
        if timeouts is not None and any(timeouts):
            self._parts += (NamespaceTimeouts(self._kernel, timeouts),)
        if companion is not None:
            self._parts += (companion,)
        self._owner = {kind: part for part in self._parts for kind in part.kinds}

    @property
    def kinds(self) -> tuple[str, ...]:
        """An address before its virtual servers, those before what sends traffic to them."""
        return tuple(self._owner)

    def probe(self) -> Probe:
        """Makes a virtual server of each family, reads it back and removes it, and asks the companion. Where the kernel
        cannot be silent to ARP, it is done without from here on, and said so. Raises nothing."""
        found = probe(self._connect)
        if self._silence is not None and (why := self._silence.lacking()):
            self._parts = tuple(part for part in self._parts if part is not self._silence)
            self._owner = {kind: part for part in self._parts for kind in part.kinds}
            self._silence = None
            found = dataclasses.replace(
                found, reason=f"{found.reason}; ARP for virtual addresses is answered ({why})"
            )
        if not found.usable:
            return found
        if self._companion is None:
            return dataclasses.replace(found, reason=f"{found.reason}; {_ALONE}", complete=False)
        beside = self._companion.probe()
        families = tuple(each for each in found.families if each in beside.families)
        hint = "" if beside.usable else " (`companion: none` does without, and says what is missing)"
        return Probe(
            beside.usable and bool(families), f"{found.reason}; beside it {beside.reason}{hint}", families
        )

    def fixed(self, place: Place) -> Objects:
        """What is there whatever the frontends are."""
        return {key: value for part in self._parts for key, value in part.fixed(place).items()}

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        """What one frontend needs."""
        if frontend.key.address and frontend.key.address in self._excluded:
            return {}
        found = dict(self.binding.translate(frontend, place))
        for part in self._parts[1:]:
            found.update(part.translate(frontend, place))
        return found

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        """What one local endpoint needs."""
        return {
            key: value
            for part in self._parts
            for key, value in part.translate_hairpin(hairpin, place).items()
        }

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """A destination's is its virtual server."""
        return self._owner[key.kind].ledger_key(key)

    @property
    def draining(self) -> int:
        """Removed destinations that still have connections."""
        return self.servers.draining

    def words(self, key: ObjectKey, value: Any) -> str:
        """One object in words."""
        part = self._owner[key.kind]
        return part.words(key, value) if isinstance(part, Speaking) else words(key, value)

    def dump(self, family: int) -> Objects:
        """Everything of a family. Raises OSError."""
        return {key: value for part in self._parts for key, value in part.dump(family).items()}

    def apply(self, plan: Plan, now: float) -> Sequence[Failed]:
        """Runs of one part's operations in turn; what the kernel says comes back as failures."""
        failures: list[Failed] = []
        for part, run in groupby(plan, key=lambda operation: self._owner[operation.key.kind]):
            operations = list(run)
            try:
                failures += part.apply(operations, now)
            except OSError as error:
                # Not even a socket, or no answer at all: nobody knows how far it went.
                text = str(error)
                failures += [Failed(operation, error.errno or 0, text) for operation in operations]
        return failures

    def tick(self, now: float) -> float | None:
        """Removes what has drained; returns when to look next."""
        times = [self.servers.tick(now)]
        if self._companion is not None:
            times.append(self._companion.tick(now))
        return min((each for each in times if each is not None), default=None)

    def cut(self, addresses: Collection[str], now: float) -> None:
        """The hosts behind these addresses are gone: their draining destinations go with the next ``tick``."""
        self.servers.cut(addresses, now)

    def close(self) -> None:
        """Give the sockets back; what is in the kernel stays. Safe to call twice."""
        for part in self._parts:
            part.close()
        self._kernel.close()
