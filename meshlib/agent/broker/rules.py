"""Which netlink messages the programmer passes on to the kernel. Pure.

Whoever takes over the parser gets no further than this: our own nf_tables tables, virtual servers, our own routes and
device, single entries of connection tracking. What is not listed is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from meshlib.agent.netlink.messages import HEADER, Malformed, attribute, parse_attributes, string

ROUTE, NETFILTER, GENERIC = 0, 12, 16
PROTOCOLS = frozenset({ROUTE, NETFILTER, GENERIC})
#: What the names of our tables begin with.
TABLES = "meshlib"
#: The device that holds addresses where the binding is ``dummy``.
DEVICE = "meshlib0"
#: Our number among routing protocols.
ROUTING_PROTOCOL = 0x6D

_CONTROLLER, _GET_FAMILY = 16, 3
#: IPVS commands: add, change, remove and read services and destinations, settings, information. Not: the
#: synchronisation daemon (9 to 11), resetting counters (16), flush (17).
_IPVS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 15})
_NF_TABLES, _CONNTRACK = 10, 1
_NF_READS = frozenset({1, 4, 7, 10, 13, 16})
_NF_WRITES = frozenset({0, 2, 3, 5, 6, 8, 9, 11, 12, 14})
_BATCHES = frozenset({0x10, 0x11})
#: Families of tables that are ours: IPv4, IPv6, ARP.
_NF_FAMILIES = frozenset({2, 10, 3})
#: Removing a table, and the attribute that names one by its number, which the kernel prefers to the name.
_DELETE_TABLE, _TABLE_NUMBER = 2, 4
_CONNTRACK_GET, _CONNTRACK_DELETE = 1, 2
_READ_ROUTES = frozenset({18, 22, 26})
_LINKS, _ADDRESSES, _ROUTES = frozenset({16, 17}), frozenset({20, 21}), frozenset({24, 25})
_ROUTE = Struct("=BBBBBBBB")
_LOCAL_TABLE, _LOCAL = 255, 2
_SINGLE = {2: 32, 10: 128}
_ADDRESS = Struct("=BBBBI")
_LINK = Struct("=BxHiII")
_MAKE = {3: DEVICE.encode() + b"\0", 18: attribute(1, b"dummy\0")}


@dataclass(frozen=True, slots=True)
class Known:
    """Numbers that only the kernel knows; None: there is no such thing (yet)."""

    ipvs_family: int | None = None  #: of the generic netlink family IPVS
    device: int | None = None  #: of our device


def refusal(protocol: int, data: bytes, known: Known) -> str:
    """Why these bytes may not be sent over a socket of that protocol; "" when they may."""
    position, end = 0, len(data)
    try:
        while position < end:
            if end - position < 16:
                return "bytes that are no message"
            length, kind, _, _, _ = HEADER.unpack_from(data, position)
            if not 16 <= length <= end - position:
                return "a message that is longer than what was sent"
            why = _judge(protocol, kind, data[position + 16 : position + length], known)
            if why:
                return why
            position += length + 3 & ~3
    except Malformed as error:
        return str(error)
    return "" if data else "nothing"


def _judge(protocol: int, kind: int, payload: bytes, known: Known) -> str:
    if protocol == NETFILTER:
        return _netfilter(kind, payload)
    if protocol == GENERIC:
        return _generic(kind, payload, known.ipvs_family)
    if protocol == ROUTE:
        return _route(kind, payload, known.device)
    return f"netlink protocol {protocol}"


def _generic(kind: int, payload: bytes, ipvs_family: int | None) -> str:
    command = payload[0] if payload else -1
    if kind == _CONTROLLER:
        return "" if command == _GET_FAMILY else f"command {command} of the generic netlink controller"
    if kind != ipvs_family:
        return f"generic netlink family {kind}, which is not IPVS"
    return "" if command in _IPVS else f"IPVS command {command}"


def _netfilter(kind: int, payload: bytes) -> str:
    if kind in _BATCHES:
        return ""
    subsystem, command = kind >> 8, kind & 0xFF
    if subsystem == _NF_TABLES:
        if command in _NF_READS:
            return ""
        if command not in _NF_WRITES:
            return f"nf_tables command {command}"
        if payload[:1] and payload[0] not in _NF_FAMILIES:
            return f"an nf_tables table of family {payload[0]}"
        attributes = list(parse_attributes(payload, 4))
        if command == _DELETE_TABLE and any(number == _TABLE_NUMBER for number, _ in attributes):
            return "the removal of an nf_tables table by its number"
        # The kernel takes the last one of several.
        names = [string(value) for number, value in attributes if number == 1]
        if not names or not all(name.startswith(TABLES) for name in names):
            return f"nf_tables table {names[-1] if names else 'unnamed'!r:.60}, which is not ours"
        return ""
    if subsystem == _CONNTRACK:
        if command == _CONNTRACK_GET:
            return ""
        named = any(number == 1 for number, _ in parse_attributes(payload, 4))
        # Without a tuple it would forget everything.
        return "" if command == _CONNTRACK_DELETE and named else f"connection tracking command {command}"
    return f"netfilter subsystem {subsystem}"


def _route(kind: int, payload: bytes, device: int | None) -> str:
    if kind in _READ_ROUTES:
        return ""
    if kind in _ROUTES and len(payload) >= 12:
        family, length, _, _, table, protocol, _, route_type = _ROUTE.unpack_from(payload)
        numbers = {number for number, _ in parse_attributes(payload, 12)}
        # Attribute 15 would name another table.
        ours = (table, protocol, route_type) == (_LOCAL_TABLE, ROUTING_PROTOCOL, _LOCAL) and 15 not in numbers
        # One address: a range would make all of it this host's.
        single = length == _SINGLE.get(family)
        return "" if ours and single else "a route that is not one of ours"
    if kind in _ADDRESSES and len(payload) >= 8:
        index = _ADDRESS.unpack_from(payload)[4]
        return "" if index == device else "an address of a device that is not ours"
    if kind in _LINKS and len(payload) >= 16:
        index = _LINK.unpack_from(payload)[2]
        attributes = dict(parse_attributes(payload, 16))
        # Made by its name as a dummy, and nothing else said about it; afterwards known by its number.
        ours = attributes == (_MAKE if index == 0 else {}) and index in (0, device)
        return "" if ours else "a device that is not ours"
    return f"routing message {kind}"
