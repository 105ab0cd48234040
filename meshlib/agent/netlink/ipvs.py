"""The kernel's IPVS family: virtual servers and destinations to bytes and back. Pure.

Its integers are in the machine's order, except for ports and IPv4 masks. An address takes 16 bytes in both families.
The family tells of no changes: what others did is seen by dumping only. The kernel puts a new destination before those
that are there, so a dump shows the latest first.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from ipaddress import IPv6Address
from struct import Struct
from typing import NamedTuple

from meshlib.agent.netlink.generic import HEADER, parse_command
from meshlib.agent.netlink.messages import (
    ATTRIBUTE,
    Malformed,
    Message,
    Request,
    attribute,
    exactly,
    network_number,
    number,
    parse_attributes,
    string,
    u32,
)

FAMILY = "IPVS"
_VERSION = 1

_NEW_SERVICE, _SET_SERVICE, _DEL_SERVICE, _GET_SERVICE = 1, 2, 3, 4
_NEW_DEST, _SET_DEST, _DEL_DEST, _GET_DEST = 5, 6, 7, 8
_SET_CONFIG, _GET_CONFIG, _SET_INFO, _GET_INFO = 12, 13, 14, 15
_SERVICE, _DEST, _TCP_TIMEOUT, _TCP_FIN_TIMEOUT, _UDP_TIMEOUT = 1, 2, 4, 5, 6

#: Flags of a virtual server.
PERSISTENT = 0x01
HASHED = 0x02  #: the kernel's own: the server is in its table
HASH_PORT = 0x10  #: schedulers mh and sh: the client's port counts as well as its address

#: Forwarding method: the destination's address takes the place of the virtual one, and back.
MASQUERADE = 0

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_PROTOCOL_NAMES = {value: name for name, value in PROTOCOLS.items()}
_AF = {4: 2, 6: 10}


class ServiceKey(NamedTuple):
    """What identifies a virtual server. Those by firewall mark are nobody's of ours, and have no key."""

    protocol: str  #: TCP, UDP, SCTP
    address: str
    port: int


class VirtualServer(NamedTuple):
    """How a virtual server behaves. ``timeout``: seconds of persistence, 0 to 86400, meaningless without PERSISTENT."""

    scheduler: str = "rr"
    flags: int = 0
    timeout: int = 0
    prefix: int = 32  #: clients of one network of this size count as one client: 32, or 128 for IPv6


class RealKey(NamedTuple):
    """What identifies a destination within its virtual server."""

    address: str
    port: int


class RealServer(NamedTuple):
    """How a destination is used. ``weight`` 0: connections that it has go on, new ones go elsewhere."""

    weight: int = 1
    method: int = MASQUERADE
    upper: int = 0  #: connections at which it takes no more; 0: never
    lower: int = 0


class Connections(NamedTuple):
    """A destination's connections, as the kernel counts them. UDP flows are inactive ones."""

    active: int
    inactive: int
    persistent: int = 0  #: clients that will come back to it


class Timeouts(NamedTuple):
    """Seconds after which silent flows are forgotten; for the whole namespace. 0 in a request: leave as it is."""

    tcp: int
    tcp_fin: int
    udp: int


class Codec:
    """Requests and answers of the family under the number that it has on this boot."""

    def __init__(self, family_id: int) -> None:
        self.id = family_id

    # -- virtual servers --------------------------------------------------------------------------------------

    def add_service(self, key: ServiceKey, value: VirtualServer) -> Request:
        """Refused with EEXIST where it is there, ENOENT where the scheduler's module is not."""
        return Request(self.id, 0, _HEAD_NEW_SERVICE + _service(key, value))

    def set_service(self, key: ServiceKey, value: VirtualServer) -> Request:
        """In place: its connections and destinations stay. Refused with ESRCH where there is none."""
        return Request(self.id, 0, _HEAD_SET_SERVICE + _service(key, value))

    def remove_service(self, key: ServiceKey) -> Request:
        """With its destinations, whatever connections they have. Refused with ESRCH where there is none."""
        return Request(self.id, 0, _HEAD_DEL_SERVICE + _identity(*key))

    def list_services(self) -> Request:
        """For a dump: all of the namespace, of both families."""
        return Request(self.id, 0, _HEAD_GET_SERVICE)

    def get_service(self, key: ServiceKey) -> Request:
        """One virtual server. Refused with ESRCH where there is none."""
        return Request(self.id, 0, _HEAD_GET_SERVICE + _identity(*key))

    # -- destinations -----------------------------------------------------------------------------------------

    def add_destination(self, key: ServiceKey, real: RealKey, value: RealServer) -> Request:
        """Refused with EEXIST where it is there, ESRCH without its virtual server, EINVAL where its address cannot be
        a host's (or lo is down)."""
        return Request(self.id, 0, _HEAD_NEW_DEST + _identity(*key) + _destination(real, value))

    def set_destination(self, key: ServiceKey, real: RealKey, value: RealServer) -> Request:
        """In place: its connections stay. Refused with ENOENT where it is not there, ESRCH without its server."""
        return Request(self.id, 0, _HEAD_SET_DEST + _identity(*key) + _destination(real, value))

    def remove_destination(self, key: ServiceKey, real: RealKey) -> Request:
        """Now; its connections are orphans. Refused with ENOENT where it is not there, ESRCH without its server."""
        packed, family = _packed(real.address)
        port = real.port.to_bytes(2, "big")
        body = _REAL_ONLY.pack(40, _DEST, 20, 1, packed, 6, 2, port, 6, 11, family)
        return Request(self.id, 0, _HEAD_DEL_DEST + _identity(*key) + body)

    def list_destinations(self, key: ServiceKey) -> Request:
        """For a dump: those of one virtual server, the latest first. An unknown server has none."""
        return Request(self.id, 0, _HEAD_GET_DEST + _identity(*key))

    # -- the namespace ----------------------------------------------------------------------------------------

    def get_info(self) -> Request:
        """Version and size of the connection table."""
        return Request(self.id, 0, HEADER.pack(_GET_INFO, _VERSION))

    def get_timeouts(self) -> Request:
        """The namespace's Timeouts."""
        return Request(self.id, 0, HEADER.pack(_GET_CONFIG, _VERSION))

    def set_timeouts(self, value: Timeouts) -> Request:
        """Of the whole namespace, whoever made the virtual server."""
        body = u32(_TCP_TIMEOUT, value.tcp) + u32(_TCP_FIN_TIMEOUT, value.tcp_fin)
        return Request(self.id, 0, HEADER.pack(_SET_CONFIG, _VERSION) + body + u32(_UDP_TIMEOUT, value.udp))

    # -- answers ----------------------------------------------------------------------------------------------

    def services(self, messages: Iterable[Message]) -> dict[ServiceKey, VirtualServer]:
        """The virtual servers of a dump, in its order. Those by firewall mark, of a protocol without a name, or with
        a persistence engine are left out: they are nobody's of ours, and cannot be said in our words."""
        found = {}
        for message in messages:
            entry = _parse_service(self._body(message, _NEW_SERVICE))
            if entry is not None:
                found[entry[0]] = entry[1]
        return found

    def destinations(self, messages: Iterable[Message]) -> dict[RealKey, tuple[RealServer, Connections]]:
        """The destinations of a dump, in the kernel's order (the latest first)."""
        return dict(_parse_destination(self._body(message, _NEW_DEST)) for message in messages)

    def info(self, message: Message) -> tuple[str, int]:
        """Version in words and size of the connection table."""
        found = dict(parse_attributes(self._body(message, _SET_INFO)))
        version = number(_needed(found, 1), 4)
        return (
            f"{version >> 16 & 0xFF}.{version >> 8 & 0xFF}.{version & 0xFF}",
            number(_needed(found, 2), 4),
        )

    def timeouts(self, message: Message) -> Timeouts:
        """The answer to ``get_timeouts``."""
        found = dict(parse_attributes(self._body(message, _SET_CONFIG)))
        return Timeouts(
            *(number(_needed(found, kind), 4) for kind in (_TCP_TIMEOUT, _TCP_FIN_TIMEOUT, _UDP_TIMEOUT))
        )

    def _body(self, message: Message, command: int) -> bytes:
        if message.type != self.id:
            raise Malformed(f"a message of type {message.type} where IPVS ({self.id}) answers")
        found = parse_command(message)
        if found.number != command:
            raise Malformed(f"IPVS answered with command {found.number} instead of {command}")
        return found.attributes


def family_of(address: str) -> int:
    """4 or 6, of an address in text."""
    return 6 if ":" in address else 4


# In the order of the attributes' numbers, each with its header of length and type.
#: the nest, address family, protocol, address, port
_IDENTITY = Struct("=HH HHHxx HHHxx HH16s HH2sxx")
#: flags with the mask of those that are meant, timeout, mask of clients
_BEHAVIOUR = Struct("=HHII HHI HH4s")
#: the nest, address, port, method, weight, upper and lower threshold, address family
_REAL = Struct("=HH HH16s HH2sxx HHI HHI HHI HHI HHHxx")
#: the nest, address, port, address family
_REAL_ONLY = Struct("=HH HH16s HH2sxx HHHxx")
#: More than a large node has, so that one of them is put into bytes once: 20 MB when full.
_CACHED = 1 << 17


@functools.lru_cache(_CACHED)
def _packed(address: str) -> tuple[bytes, int]:
    """16 bytes, and the number of the address family."""
    if ":" in address:
        return IPv6Address(address).packed, _AF[6]
    return bytes(map(int, address.split("."))) + bytes(12), _AF[4]


@functools.lru_cache(_CACHED)
def _text(packed: bytes, family: int) -> str:
    if family == _AF[4]:
        return ".".join(map(str, packed[:4]))
    if family == _AF[6]:
        return str(IPv6Address(packed))
    raise Malformed(f"an address of family {family}")


@functools.lru_cache(_CACHED)
def _identity(protocol: str, address: str, port: int, more: int = 0) -> bytes:
    """What names a virtual server; ``more`` bytes follow inside the same nest."""
    packed, family = _packed(address)
    return _IDENTITY.pack(
        48 + more, _SERVICE,
        6, 1, family,
        6, 2, PROTOCOLS[protocol],
        20, 3, packed,
        6, 4, port.to_bytes(2, "big"),
    )  # fmt: skip


def _service(key: ServiceKey, value: VirtualServer) -> bytes:
    if family_of(key.address) == 4:
        mask = (0xFFFFFFFF << 32 - value.prefix & 0xFFFFFFFF).to_bytes(4, "big")
    else:
        mask = _U32.pack(value.prefix)
    body = attribute(6, value.scheduler.encode() + b"\0") + _BEHAVIOUR.pack(
        12, 7, value.flags, 0xFFFFFFFF, 8, 8, value.timeout, 8, 9, mask
    )
    return _identity(*key, len(body)) + body


def _destination(real: RealKey, value: RealServer) -> bytes:
    packed, family = _packed(real.address)
    return _REAL.pack(
        72, _DEST,
        20, 1, packed,
        6, 2, real.port.to_bytes(2, "big"),
        8, 3, value.method,
        8, 4, value.weight,
        8, 5, value.upper,
        8, 6, value.lower,
        6, 11, family,
    )  # fmt: skip


def _parse_service(body: bytes) -> tuple[ServiceKey, VirtualServer] | None:
    found = dict(parse_attributes(_nest(body, _SERVICE)))
    if 5 in found or 11 in found:
        return None
    protocol = _PROTOCOL_NAMES.get(number(_needed(found, 2), 2))
    if protocol is None:
        return None
    family = number(_needed(found, 1), 2)
    mask = exactly(_needed(found, 9), 4)
    if family == _AF[4]:
        prefix = network_number(mask, 4).bit_count()
    else:
        prefix = number(mask, 4)
    key = ServiceKey(
        protocol,
        _text(exactly(_needed(found, 3), 16), family),
        network_number(_needed(found, 4), 2),
    )
    return key, VirtualServer(
        string(_needed(found, 6)),
        number(exactly(_needed(found, 7), 8)[:4], 4) & ~HASHED,
        number(_needed(found, 8), 4),
        prefix,
    )


def _parse_destination(body: bytes) -> tuple[RealKey, tuple[RealServer, Connections]]:
    if len(body) >= _USUAL_SIZE:
        fields = _USUAL.unpack_from(body)
        if fields[::2] == _USUAL_HEADERS:
            _, address, port, method, weight, _, _, _, upper, lower, *counts, family = fields[1::2]
            real = RealKey(_text(address, family), port[0] << 8 | port[1])
            server = _real_server(weight, method, upper, lower)
            return real, (server, Connections(*counts))
    found = dict(parse_attributes(_nest(body, _DEST)))
    family = number(found[11], 2) if 11 in found else _AF[4]
    key = RealKey(_text(exactly(_needed(found, 1), 16), family), network_number(_needed(found, 2), 2))
    value = RealServer(*(number(_needed(found, kind), 4) for kind in (4, 3, 5, 6)))
    connections = Connections(*(number(_needed(found, kind), 4) for kind in (7, 8, 9)))
    return key, (value, connections)


#: Nearly all of them are alike: a large table has each kind once.
_real_server = functools.lru_cache(1024)(RealServer)
#: How today's kernels tell a destination: the type of the nest, then the attributes' headers (each as one number) in
#: this order with their values. Looking for just this takes a quarter of the time of a walk through them, and reading
#: a large table spends its time here.
_USUAL = Struct("=xxH 0s I16s I2sxx II II IBxxx IHxx IHxx II II II II II IHxx")
_USUAL_SIZE = _USUAL.size
_USUAL_HEADERS = (
    _DEST,
    *(
        number(ATTRIBUTE.pack(length, kind), 4)
        for length, kind in (
            *((20, 1), (6, 2), (8, 3), (8, 4), (5, 13), (6, 14), (6, 15)),
            *((8, 5), (8, 6), (8, 7), (8, 8), (8, 9), (6, 11)),
        )
    ),
)


def _nest(body: bytes, kind: int) -> bytes:
    for found, value in parse_attributes(body):
        if found == kind:
            return value
    raise Malformed(f"an IPVS answer without attribute {kind}")


def _needed(found: dict[int, bytes], kind: int) -> bytes:
    try:
        return found[kind]
    except KeyError:
        raise Malformed(f"an IPVS answer lacks attribute {kind}") from None


_U32 = Struct("=I")
_HEAD_NEW_SERVICE, _HEAD_SET_SERVICE, _HEAD_DEL_SERVICE, _HEAD_GET_SERVICE = (
    HEADER.pack(command, _VERSION) for command in (_NEW_SERVICE, _SET_SERVICE, _DEL_SERVICE, _GET_SERVICE)
)
_HEAD_NEW_DEST, _HEAD_SET_DEST, _HEAD_DEL_DEST, _HEAD_GET_DEST = (
    HEADER.pack(command, _VERSION) for command in (_NEW_DEST, _SET_DEST, _DEL_DEST, _GET_DEST)
)
