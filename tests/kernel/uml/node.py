"""A node in a namespace of the guest: the engine's Programmer over an ipvs backend, and frontends in few words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.programmer import Programmer, Written
from meshlib.agent.netlink.exchange import MOST_BYTES, MOST_MESSAGES, Refusal
from meshlib.agent.netlink.ipvs import RealKey, RealServer, ServiceKey, VirtualServer
from meshlib.agent.netlink.messages import Request
from meshlib.agent.netlink.socket import NetlinkSocket
from meshlib.agent.objects import ObjectKey, Objects
from meshlib.model.service import ServiceKey as Name

OWNER = PortKey(Name("shop", "orders"), "http", "TCP")
PLACES = {
    4: Place(4, ("10.0.0.1",), source="10.0.0.1"),
    6: Place(6, ("fd00::1",), source="fd00::1"),
}


def frontend(
    address: str,
    port: int,
    *targets: str | tuple[str, int] | tuple[str, int, int],
    protocol: str = "TCP",
    action: Action | None = None,
    **more: Any,
) -> Frontend:
    """``targets``: an address (port 8080), or with port, or with port and weight. None of them: REJECT."""
    found = sorted(Target(*each) if isinstance(each, tuple) else Target(each, 8080) for each in targets)
    route = Route(action or (Action.FORWARD if found else Action.REJECT), tuple(found))
    kind = FrontendKind.CLUSTER_IP if address else FrontendKind.NODE_PORT
    return Frontend(FrontendKey(protocol, address, port), more.pop("kind", kind), OWNER, route, **more)


#: Backends that a test has used; closed at its end.
OPEN: list[IpvsBackend] = []


def dump(family: int) -> Objects:
    """What a new agent would read."""
    with contextlib.closing(IpvsBackend()) as backend:
        return backend.dump(family)


class Crash(BaseException):
    """The agent dies here."""


class Wire:
    """Counts what is written through its sockets, and can die at the n-th write."""

    def __init__(self, crash_at: int | None = None) -> None:
        self.writes = 0
        self.crash_at = crash_at

    def __call__(self, protocol: int) -> NetlinkSocket:
        return _Watched(protocol, self)


class _Watched(NetlinkSocket):
    def __init__(self, protocol: int, wire: Wire) -> None:
        super().__init__(protocol)
        self._wire = wire

    def batch(
        self, requests: Iterable[Request], most_messages: int = MOST_MESSAGES, most_bytes: int = MOST_BYTES
    ) -> dict[int, Refusal]:
        requests = list(requests)
        wire = self._wire
        if wire.crash_at is not None and wire.writes + len(requests) > wire.crash_at:
            super().batch(requests[: wire.crash_at - wire.writes], most_messages, most_bytes)
            raise Crash
        wire.writes += len(requests)
        return super().batch(requests, most_messages, most_bytes)


class Node:
    """One family of a node. ``journal`` is what the ledger's file holds."""

    def __init__(
        self,
        *,
        family: int = 4,
        place: Place | None = None,
        journal: bytes = b"",
        connect: Callable[[int], NetlinkSocket] | None = None,
        adopt: bool = False,
        **options: Any,
    ) -> None:
        self.wire = Wire()
        self.journal = bytearray(journal)
        ledger = Ledger()
        ledger.read(journal)
        self.backend = IpvsBackend(connect=connect or self.wire, **options)
        OPEN.append(self.backend)
        self.programmer = Programmer(
            self.backend, place or PLACES[family], ledger, self.journal.extend, adopt=adopt
        )
        self.family = family
        self.now = 1000.0
        self._options: dict[str, Any] = {"family": family, "place": place, "adopt": adopt, **options}

    def want(self, *frontends: Frontend) -> Written:
        """These frontends, and no others; written."""
        self.ask(*frontends)
        return self.write()

    def ask(self, *frontends: Frontend) -> None:
        """These frontends, and no others; nothing is written yet."""
        gone: dict[FrontendKey, Frontend | None] = dict.fromkeys(self.programmer.frontends)
        self.programmer.change({**gone, **{each.key: each for each in frontends}}, lists=1, now=self.now)

    def write(self) -> Written:
        """The next write, one second later."""
        self.now += 1.0
        return self.programmer.write(self.now)

    def audit(self) -> Written:
        """A write that reads the whole kernel first."""
        self.programmer.audit()
        return self.write()

    def restart(self, **options: Any) -> Node:
        """A new agent with the old one's journal; the kernel stays as it is."""
        return Node(journal=bytes(self.journal), **{**self._options, **options})

    def services(self) -> dict[ServiceKey, VirtualServer]:
        """As the kernel has them."""
        return self._of_kind("service", ServiceKey)

    def destinations(self) -> dict[tuple[ServiceKey, RealKey], RealServer]:
        """As the kernel has them, draining ones with weight 0 among them."""
        fresh = dump(self.family)
        found = {}
        for key, value in fresh.items():
            if key.kind == "destination":
                name: Any = key.name
                found[ServiceKey(*name[:3]), RealKey(*name[3:])] = value
        return found

    def weights(self) -> dict[str, int]:
        """Of the destinations by their address."""
        return {real.address: value.weight for (_, real), value in self.destinations().items()}

    def routes(self) -> dict[str, str]:
        """Addresses made local by us, with their sources."""
        return self._of_kind("route", str)

    def drained(self) -> bool:
        """Lets time pass until the next look at what drains; whether nothing does any more."""
        due = self.backend.tick(self.now)
        if due is not None:
            self.now = max(self.now, due)
            due = self.backend.tick(self.now)
        return due is None

    def _of_kind(self, kind: str, make: Any) -> dict[Any, Any]:
        fresh = dump(self.family)
        wanted = [(key, value) for key, value in fresh.items() if key.kind == kind]
        return {make(*key.name) if isinstance(key.name, tuple) else key.name: value for key, value in wanted}


def service_object(address: str, port: int, protocol: str = "TCP") -> ObjectKey:
    """The name that the engine knows a virtual server by."""
    return ObjectKey("service", ServiceKey(protocol, address, port))


def node_is_empty(node: Node) -> bool:
    """Whether the kernel holds no virtual server and no route of ours."""
    return not node.services() and not node.routes()
