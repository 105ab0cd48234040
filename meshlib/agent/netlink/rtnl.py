"""rtnetlink: local routes that make a virtual address the host's own, a dummy device as the other way, and the
host's addresses. Pure.

A route of ours bears our protocol number, so it can be told from everybody else's, and is removed by it only.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from struct import Struct
from typing import NamedTuple

from meshlib.agent.netlink.messages import (
    CREATE,
    EXCLUSIVE,
    NESTED,
    REPLACE,
    Malformed,
    Message,
    Request,
    attribute,
    parse_attributes,
    string,
    u32,
)

#: Ours among the routing protocols. Values from 0 to 15 and some above are taken by the kernel and by routing
#: daemons (iproute2's table of rt_protos); nobody registered this one.
PROTOCOL = 0x6D

# Multicast groups that tell of changes.
LINKS, ADDRESSES_V4, ADDRESSES_V6 = 1, 5, 9

_NEW_LINK, _DEL_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _DEL_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _DEL_ROUTE, _GET_ROUTE = 24, 25, 26
_AF = {4: 2, 6: 10}
_FAMILY = {2: 4, 10: 6}

#: family, destination and source prefix length, tos, table, protocol, scope, type, flags
_ROUTE = Struct("=BBBBBBBBI")
_TABLE_LOCAL, _SCOPE_HOST, _TYPE_LOCAL = 255, 254, 2
_DESTINATION, _DEVICE, _SOURCE = 1, 4, 7
#: family, prefix length, flags, scope, device
_ADDRESS = Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
#: family, padding, type, device, flags, which flags are meant
_LINK = Struct("=BxHiII")
_LINK_NAME, _LINK_INFO, _INFO_KIND = 3, 18, 1
_UP, _NO_ARP = 0x1, 0x80


class LocalRoute(NamedTuple):
    """An address that the routing table makes the host's own. ``source``: the address that the host itself talks from
    to this one; "" leaves the choice to the kernel, which takes the very address."""

    address: str
    source: str
    protocol: int  #: PROTOCOL: ours


class Link(NamedTuple):
    """A network device."""

    number: int
    name: str
    up: bool


class HostAddress(NamedTuple):
    """An address that a device of this host has."""

    address: str
    prefix: int
    device: int  #: the number of the link


class AddressChange(NamedTuple):
    """A device got an address, or lost it."""

    added: bool
    address: HostAddress


def add_route(address: str, source: str, device: int, *, replace: bool = False) -> Request:
    """Make an address local, through ``device`` (the number of lo). Refused with EEXIST where it is, unless it
    is to be replaced; with EINVAL where ``source`` is no address of this host."""
    flags = CREATE | (REPLACE if replace else EXCLUSIVE)
    return Request(_NEW_ROUTE, flags, _route(address, source, device))


def remove_route(address: str, device: int) -> Request:
    """Ours only. Refused with ESRCH where there is none."""
    return Request(_DEL_ROUTE, 0, _route(address, "", device))


def list_routes(family: int) -> Request:
    """For a dump: of the table that local routes are in, where the kernel (4.20 and newer) chooses them for us."""
    return Request(_GET_ROUTE, 0, _ROUTE.pack(_AF[family], 0, 0, 0, _TABLE_LOCAL, 0, 0, 0, 0))


def parse_routes(messages: Iterable[Message]) -> list[LocalRoute]:
    """The local routes to single addresses in a dump."""
    found = []
    for message in messages:
        if message.type != _NEW_ROUTE:
            raise Malformed(f"a message of type {message.type} where routes are told")
        payload = _payload(message, _ROUTE)
        family, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(payload)
        if kind != _TYPE_LOCAL or table != _TABLE_LOCAL or family not in _FAMILY:
            continue
        if length != (32 if family == _AF[4] else 128):
            continue
        values = dict(parse_attributes(payload, _ROUTE.size))
        if _DESTINATION in values:
            source = values.get(_SOURCE)
            address = _text(values[_DESTINATION])
            found.append(LocalRoute(address, "" if source is None else _text(source), protocol))
    return found


def add_address(address: str, device: int) -> Request:
    """Give a device an address of its own size (/32, /128). Refused with EEXIST where it has it."""
    return Request(_NEW_ADDRESS, CREATE | EXCLUSIVE, _host_address(address, device))


def remove_address(address: str, device: int) -> Request:
    """Refused with EADDRNOTAVAIL where the device does not have it."""
    return Request(_DEL_ADDRESS, 0, _host_address(address, device))


def list_addresses(family: int) -> Request:
    """For a dump."""
    return Request(_GET_ADDRESS, 0, _ADDRESS.pack(_AF[family], 0, 0, 0, 0))


def parse_addresses(messages: Iterable[Message]) -> list[HostAddress]:
    """The addresses of a dump."""
    return [change.address for change in parse_address_changes(messages)]


def parse_address_changes(messages: Iterable[Message]) -> list[AddressChange]:
    """Notifications of the address groups; others among them are passed over."""
    found = []
    for message in messages:
        if message.type not in (_NEW_ADDRESS, _DEL_ADDRESS):
            continue
        payload = _payload(message, _ADDRESS)
        family, prefix, _, _, device = _ADDRESS.unpack_from(payload)
        values = dict(parse_attributes(payload, _ADDRESS.size))
        # On a point-to-point device the one without LOCAL is the other end's.
        value = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS))
        if family in _FAMILY and value is not None:
            address = HostAddress(_text(value), prefix, device)
            found.append(AddressChange(message.type == _NEW_ADDRESS, address))
    return found


def add_dummy(name: str) -> Request:
    """A dummy device, down and without ARP: it only holds addresses. Refused with EEXIST where the name is taken,
    EOPNOTSUPP where the kernel lacks the module."""
    info = attribute(_LINK_INFO | NESTED, attribute(_INFO_KIND, b"dummy\0"))
    body = _LINK.pack(0, 0, 0, _NO_ARP, _UP | _NO_ARP) + attribute(_LINK_NAME, name.encode() + b"\0") + info
    return Request(_NEW_LINK, CREATE | EXCLUSIVE, body)


def remove_link(index: int) -> Request:
    """With the addresses that it has. Refused with ENODEV where there is none."""
    return Request(_DEL_LINK, 0, _LINK.pack(0, 0, index, 0, 0))


def set_link_up(index: int) -> Request:
    """Switch a device on."""
    return Request(_NEW_LINK, 0, _LINK.pack(0, 0, index, _UP, _UP))


def list_links() -> Request:
    """For a dump."""
    return Request(_GET_LINK, 0, _LINK.pack(0, 0, 0, 0, 0))


def parse_links(messages: Iterable[Message]) -> list[Link]:
    """The devices of a dump."""
    found = []
    for message in messages:
        if message.type != _NEW_LINK:
            raise Malformed(f"a message of type {message.type} where devices are told")
        payload = _payload(message, _LINK)
        _, _, index, flags, _ = _LINK.unpack_from(payload)
        name = dict(parse_attributes(payload, _LINK.size)).get(_LINK_NAME)
        if name is None:
            raise Malformed("a device without a name")
        found.append(Link(index, string(name), bool(flags & _UP)))
    return found


def _route(address: str, source: str, device: int) -> bytes:
    packed = _packed(address)
    family, length = (_AF[4], 32) if len(packed) == 4 else (_AF[6], 128)
    # Told in IPv6, the kernel forgets the scope; in IPv4 a local route has that of the host.
    scope = _SCOPE_HOST if family == _AF[4] else 0
    body = _ROUTE.pack(family, length, 0, 0, _TABLE_LOCAL, PROTOCOL, scope, _TYPE_LOCAL, 0)
    body += attribute(_DESTINATION, packed) + u32(_DEVICE, device)
    if source:
        body += attribute(_SOURCE, _packed(source))
    return body


def _packed(address: str) -> bytes:
    """Of a canonical address; several times as fast as by way of an object."""
    return ip_address(address).packed if ":" in address else bytes(map(int, address.split(".")))


def _host_address(address: str, device: int) -> bytes:
    packed = ip_address(address).packed
    head = _ADDRESS.pack(_AF[4] if len(packed) == 4 else _AF[6], len(packed) * 8, 0, 0, device)
    return head + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)


def _payload(message: Message, head: Struct) -> bytes:
    if len(message.payload) < head.size:
        raise Malformed(f"a message of type {message.type} with {len(message.payload)} of {head.size} bytes")
    return message.payload


def _text(packed: bytes) -> str:
    if len(packed) not in (4, 16):
        raise Malformed(f"an address of {len(packed)} bytes")
    # From bytes alone, 16 of them are IPv6 even where they carry an IPv4 address.
    return str(ip_address(packed) if len(packed) == 4 else IPv6Address(packed))
