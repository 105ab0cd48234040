"""ctnetlink: the connections that the kernel remembers, and forgetting single ones. Pure.

Used for UDP (and SCTP): a flow whose endpoint is gone goes on to it for as long as its entry lives.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from struct import Struct
from typing import NamedTuple

from meshlib.agent.netlink.messages import (
    NESTED,
    Malformed,
    Message,
    Request,
    attribute,
    exactly,
    network_number,
    number,
    parse_attributes,
)

#: The subsystem of connection tracking stands in the upper byte of a message's type.
_NEW, _GET, _DELETE = 0x0100, 0x0101, 0x0102
#: family, version, resource
_HEAD = Struct(">BBH")
_AF = {4: 2, 6: 10}
_ORIGINAL, _REPLY, _ID, _ZONE = 1, 2, 12, 18
_IP, _PROTO = 1, 2
_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_NAMES = {value: name for name, value in _PROTOCOLS.items()}


class Tuple(NamedTuple):
    """One direction of a flow."""

    source: str
    destination: str
    protocol: str  #: TCP, UDP, SCTP
    source_port: int
    destination_port: int


class Entry(NamedTuple):
    """A remembered flow: as it came, and as its answers come. ``id`` tells it from a later one with the same tuple;
    both are needed for forgetting just this one."""

    original: Tuple
    reply: Tuple
    id: int
    zone: int = 0


def list_entries(family: int) -> Request:
    """For a dump of one family."""
    return Request(_GET, 0, _HEAD.pack(_AF[family], 0, 0))


def parse_entries(messages: Iterable[Message], protocol: str) -> list[Entry]:
    """The entries of one protocol in a dump."""
    wanted = _PROTOCOLS[protocol]
    found = []
    for message in messages:
        if message.type != _NEW:
            raise Malformed(f"a message of type {message.type} where connections are told")
        if len(message.payload) < _HEAD.size:
            raise Malformed(f"a connection of {len(message.payload)} bytes")
        values = dict(parse_attributes(message.payload, _HEAD.size))
        original = _tuple(values, _ORIGINAL, wanted)
        if original is None:
            continue
        reply = _tuple(values, _REPLY, wanted)
        if reply is None:
            raise Malformed("a connection without its answers' direction")
        identity = network_number(values[_ID], 4) if _ID in values else 0
        zone = network_number(values[_ZONE], 2) if _ZONE in values else 0
        found.append(Entry(original, reply, identity, zone))
    return found


def delete_entry(entry: Entry) -> Request:
    """Forget one flow. Refused with ENOENT where it (or one with its id) is not there any more."""
    family = 6 if ":" in entry.original.source else 4
    body = _HEAD.pack(_AF[family], 0, 0) + _encode(_ORIGINAL, entry.original)
    if entry.id:
        body += attribute(_ID, entry.id.to_bytes(4, "big"))
    if entry.zone:
        body += attribute(_ZONE, entry.zone.to_bytes(2, "big"))
    return Request(_DELETE, 0, body)


def _encode(kind: int, flow: Tuple) -> bytes:
    source, destination = ip_address(flow.source).packed, ip_address(flow.destination).packed
    first = 1 if len(source) == 4 else 3
    addresses = attribute(first, source) + attribute(first + 1, destination)
    protocol = (
        attribute(1, bytes((_PROTOCOLS[flow.protocol],)))
        + attribute(2, flow.source_port.to_bytes(2, "big"))
        + attribute(3, flow.destination_port.to_bytes(2, "big"))
    )
    return attribute(kind | NESTED, attribute(_IP | NESTED, addresses) + attribute(_PROTO | NESTED, protocol))


def _tuple(values: dict[int, bytes], kind: int, protocol: int) -> Tuple | None:
    """One direction; None when it is of another protocol."""
    if kind not in values:
        raise Malformed(f"a connection without attribute {kind}")
    parts = dict(parse_attributes(values[kind]))
    if _IP not in parts or _PROTO not in parts:
        raise Malformed("a direction without addresses or protocol")
    proto = dict(parse_attributes(parts[_PROTO]))
    if number(proto.get(1, b""), 1) != protocol:
        return None
    addresses = dict(parse_attributes(parts[_IP]))
    first, size = (1, 4) if 1 in addresses else (3, 16)
    try:
        source, destination = (exactly(addresses[kind], size) for kind in (first, first + 1))
        ports = [network_number(proto[kind], 2) for kind in (2, 3)]
    except KeyError as missing:
        raise Malformed(f"a direction without attribute {missing}") from None
    return Tuple(_text(source), _text(destination), _NAMES[protocol], ports[0], ports[1])


def _text(packed: bytes) -> str:
    return str(ip_address(packed) if len(packed) == 4 else IPv6Address(packed))
