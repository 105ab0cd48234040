"""Translate: what one frontend needs in the words of IPVS. Pure.

- Every address and port that is served is a virtual server, also without an endpoint: an empty one refuses at once,
  which is what REJECT means. DROP is refused as well until the companion table drops it before IPVS sees it.
- A node port has one virtual server for each of the node's addresses: IPVS knows no wildcard address.
- What is different for sources on this node (``inside``) has a private virtual server, which the companion table sends
  them to (see ``private``).
"""

from __future__ import annotations

from ipaddress import ip_address

from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.desired import Action, Frontend, FrontendKey, Place, Route
from meshlib.agent.netlink.ipvs import (
    HASH_PORT,
    PERSISTENT,
    RealServer,
    ServiceKey,
    VirtualServer,
    family_of,
)
from meshlib.agent.objects import ObjectKey

ROUTE, ADDRESS, SERVICE, DESTINATION, TIMEOUTS = "route", "address", "service", "destination", "timeouts"

#: The scheduler that every kernel with IPVS can be given.
FALLBACK_SCHEDULER = "rr"
#: These count connections but not weights; with unequal weights their weighted twin is meant.
_WEIGHTED = {"rr": "wrr", "lc": "wlc"}


def served(frontend: Frontend, place: Place) -> list[FrontendKey]:
    """The addresses of a frontend: its own, or for a node port those of the node. Loopback is none: the kernel does
    not forward from it."""
    key = frontend.key
    if key.address:
        return [key]
    return [
        FrontendKey(key.protocol, address, key.port)
        for address in place.node_addresses
        if not ip_address(address).is_loopback
    ]


def virtual_server(frontend: Frontend, family: int) -> VirtualServer:
    """How the virtual servers of a frontend behave."""
    scheduler = frontend.scheduler
    if scheduler in _WEIGHTED and any(target.weight != 1 for target in frontend.route.targets):
        scheduler = _WEIGHTED[scheduler]
    flags = HASH_PORT if scheduler == "mh" else 0
    if frontend.affinity_seconds:
        flags |= PERSISTENT
    return VirtualServer(scheduler, flags, frontend.affinity_seconds, 32 if family == 4 else 128)


def servers(
    frontend: Frontend, place: Place, private: PrivateAddresses | None
) -> dict[ObjectKey, VirtualServer | RealServer]:
    """The virtual servers and destinations of a frontend. ``private``: where a companion leads sources on this node;
    None: there is no companion that does."""
    found: dict[ObjectKey, VirtualServer | RealServer] = {}
    behaviour = virtual_server(frontend, place.family)
    for key in served(frontend, place):
        _add(found, key, behaviour, frontend.route)
    if private is not None and frontend.inside is not None:
        _add(found, private.key(frontend.key, place.family), behaviour, frontend.inside)
    return found


def addresses(frontend: Frontend, place: Place, private: PrivateAddresses | None) -> list[str]:
    """The addresses that have to be made local for a frontend. The node's own are already."""
    found = [frontend.key.address] if frontend.key.address else []
    if private is not None and frontend.inside is not None:
        found.append(private.key(frontend.key, place.family).address)
    return found


def service_key(key: FrontendKey) -> ObjectKey:
    """The object that a frontend's virtual server is."""
    return ObjectKey(SERVICE, ServiceKey(*key))


def _add(
    found: dict[ObjectKey, VirtualServer | RealServer],
    key: FrontendKey,
    behaviour: VirtualServer,
    route: Route,
) -> None:
    found[service_key(key)] = behaviour
    if route.action is Action.FORWARD:
        protocol, address, port = key
        for target in route.targets:
            name = (protocol, address, port, target.address, target.port)
            found[ObjectKey(DESTINATION, name)] = _PLAIN if target.weight == 1 else RealServer(target.weight)


#: Nearly every destination's value; one object for all of them.
_PLAIN = RealServer()


def in_family(key: ServiceKey, family: int) -> bool:
    """Whether a virtual server belongs to a family."""
    return family_of(key.address) == family
