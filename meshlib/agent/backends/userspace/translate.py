"""Translate: frontends as claims on sockets, and which claim a socket serves. Pure.

A frontend whose own address is among the configured ones has its socket there. Any other is mapped onto all of them,
at its own port: clients reach it at the configured address instead of the virtual one. On the wildcard address
(``0.0.0.0``, ``::``) each connection says which virtual address it was made to, so that one local route for the whole
service range (``ip route add local 10.96.0.0/16 dev lo``) serves all of them under their own addresses.

Where several frontends are mapped onto one socket, the one whose own address it is has it, then the smallest by
address (node ports before virtual addresses): whoever came first must not matter.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from meshlib.agent.desired import Action, Frontend, FrontendKind, Place, PortKey, Route
from meshlib.agent.objects import ObjectKey, Objects

LISTENER = "listener"
WILDCARDS = frozenset({"0.0.0.0", "::"})
_DROP = Route(Action.DROP)


class Bind(NamedTuple):
    """A socket's own address."""

    protocol: str  #: TCP, UDP; SCTP is claimed and never served
    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.protocol} {host}:{self.port}"


class Claim(NamedTuple):
    """One frontend's wish for one socket. ``virtual``: the frontend's own address, "" for node ports."""

    bind: Bind
    virtual: str


@dataclass(frozen=True, slots=True)
class Served:
    """What a claim asks for. ``pods`` and ``hosts`` tell who is inside, where that makes a difference."""

    owner: PortKey
    route: Route
    inside: Route | None = None
    affinity_seconds: int = 0
    scheduler: str = "rr"
    source_ranges: tuple[str, ...] | None = None
    pods: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def client(self, peer: str, local: str) -> str:
        """Whom a flow comes from. This host calls an address of its own, a virtual one too, from that same address."""
        return self.hosts[0] if peer == local and self.hosts else peer

    @property
    def routes(self) -> tuple[Route, ...]:
        """All that a client may meet."""
        return (self.route,) if self.inside is None else (self.route, self.inside)


def translate(frontend: Frontend, place: Place, listen: Iterable[str]) -> Objects:
    """The claims of one frontend on the configured addresses (of the place's family)."""
    protocol, virtual, port = frontend.key
    own = [address for address in listen if (":" in address) == (place.family == 6)]
    if virtual in own:
        own = [virtual]
    short = frontend.inside is not None
    served = Served(
        frontend.owner,
        frontend.route,
        frontend.inside,
        frontend.affinity_seconds,
        frontend.scheduler,
        frontend.source_ranges if frontend.kind is FrontendKind.LOAD_BALANCER else None,
        place.pod_ranges if short else (),
        place.node_addresses if short or frontend.source_ranges is not None else (),
    )
    return {ObjectKey(LISTENER, Claim(Bind(protocol, address, port), virtual)): served for address in own}


def serving(claims: Collection[str], local: str) -> str:
    """The virtual address whose claim a flow to ``local`` belongs to. ``claims`` is not empty."""
    return local if local in claims else min(claims)


def reachable(claims: Mapping[str, Served], bind: Bind) -> dict[str, Served]:
    """The claims that some flow can belong to: on the wildcard address all, elsewhere one."""
    if bind.address in WILDCARDS or not claims:
        return dict(claims)
    virtual = serving(claims, bind.address)
    return {virtual: claims[virtual]}


class Shape(enum.Enum):
    """What a socket has to be."""

    CLOSED = "closed"  #: no socket: the kernel refuses at once
    SILENT = "silent"  #: nothing is answered
    OPEN = "open"


def shape(claims: Mapping[str, Served], bind: Bind) -> Shape:
    """Open where somebody may be forwarded. Else silent where the first claim says drop: no socket can do both."""
    found = reachable(claims, bind)
    routes = [route for served in found.values() for route in served.routes]
    if any(route.action is Action.FORWARD and route.targets for route in routes):
        return Shape.OPEN
    if not found:
        return Shape.CLOSED
    served = found[serving(found, bind.address)]
    nobody = served.source_ranges == ()
    return Shape.SILENT if nobody or served.route.action is Action.DROP else Shape.CLOSED


def route_for(served: Served, peer: str) -> Route:
    """What happens to a new flow from ``peer``: source ranges first, then whether it comes from inside."""
    if served.source_ranges is None and served.inside is None:
        return served.route
    address = _parsed(peer)
    if served.source_ranges is not None and not _among(address, served.source_ranges):
        return _DROP
    if served.inside is not None and (
        address.is_loopback or str(address) in served.hosts or _among(address, served.pods)
    ):
        return served.inside
    return served.route


def words(key: ObjectKey, value: Served | None) -> str:
    """A claim in words, for people."""
    claim: Claim = key.name  # type: ignore[assignment]
    said = f"{claim.bind} for {claim.virtual or 'a node port'}"
    return f"{said} ({value.owner})" if value is not None else said


def _parsed(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text.partition("%")[0])


def _among(address: IPv4Address | IPv6Address, ranges: tuple[str, ...]) -> bool:
    return any(address in network for network in _networks(ranges))


@lru_cache(maxsize=4096)
def _networks(ranges: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(each, strict=False) for each in ranges)
