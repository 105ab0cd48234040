"""Framing: netlink messages and attributes, to bytes and back. Pure.

A message is a header of 16 bytes and a payload; an attribute a header of 4 bytes and a value; both are padded to 4
bytes (RFC 3549 section 2.3). Integers are in the machine's order unless a family says otherwise. Whatever does not
add up raises ``Malformed``: a length is never trusted to lie within the bytes that were received.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Literal, NamedTuple

from meshlib.errors import MeshError

#: length, type, flags, sequence number, port id of the sender
HEADER = Struct("=IHHII")
#: length (with this header, without padding), type with two flag bits
ATTRIBUTE = Struct("=HH")

# Message types below 16 belong to netlink itself.
NOOP, ERROR, DONE, OVERRUN = 1, 2, 3, 4

# Flags of requests.
REQUEST = 0x001
ACK = 0x004
DUMP = 0x300
REPLACE = 0x100
EXCLUSIVE = 0x200
CREATE = 0x400
# Flags of answers; bits are shared with the above, which never come back.
MULTI = 0x002
DUMP_INTERRUPTED = 0x010
CAPPED = 0x100  #: an error's copy of the request is its header only
ACK_TLVS = 0x200  #: an error carries attributes: what exactly was wrong

#: Set in an attribute's type: the value is attributes again. Older families do without.
NESTED = 0x8000
_TYPE = 0x3FFF  # without NESTED and NET_BYTEORDER
_ORDER: Literal["little", "big"] = "little" if HEADER.pack(1, 0, 0, 0, 0)[0] == 1 else "big"
_U16 = Struct("=HHHxx")
_U32 = Struct("=HHI")


class Malformed(MeshError, ValueError):
    """Bytes that are no netlink message, or not the one that was expected."""


class Request(NamedTuple):
    """One message to the kernel; REQUEST is added to ``flags``, ACK where the batch needs it."""

    type: int
    flags: int
    payload: bytes


class Message(NamedTuple):
    """One message from the kernel."""

    type: int
    flags: int
    sequence: int
    port: int
    payload: bytes


def parse_messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. Raises Malformed at the first that does not fit."""
    position, end = 0, len(data)
    while position < end:
        if end - position < 16:
            raise Malformed(f"{end - position} bytes left, too few for a message header")
        length, kind, flags, sequence, port = HEADER.unpack_from(data, position)
        if not 16 <= length <= end - position:
            raise Malformed(f"a message of type {kind} says {length} bytes, {end - position} are there")
        yield Message(kind, flags, sequence, port, data[position + 16 : position + length])
        position += length + 3 & ~3


def encode_message(request: Request, sequence: int, flags: int = 0) -> bytes:
    """One message with its header, padded. ``flags`` are set besides the request's own."""
    payload = request.payload
    length = 16 + len(payload)
    header = HEADER.pack(length, request.type, REQUEST | request.flags | flags, sequence, 0)
    return header + payload + bytes(-length % 4)


def parse_attributes(data: bytes, position: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type (without its flag bits) and value of each attribute from ``position`` to the end."""
    end = len(data)
    while position < end:
        if end - position < 4:
            # Families pad their payload to 4 bytes at most.
            raise Malformed(f"{end - position} bytes left, too few for an attribute header")
        length, kind = ATTRIBUTE.unpack_from(data, position)
        if not 4 <= length <= end - position:
            raise Malformed(f"attribute {kind & _TYPE} says {length} bytes, {end - position} are there")
        yield kind & _TYPE, data[position + 4 : position + length]
        position += length + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = 4 + len(value)
    if length > 0xFFFF:
        raise Malformed(f"attribute {kind} of {len(value)} bytes; 65531 are possible")
    return ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def number(value: bytes, size: int) -> int:
    """An unsigned integer attribute in the machine's order, of exactly ``size`` bytes."""
    return int.from_bytes(exactly(value, size), _ORDER)


def network_number(value: bytes, size: int) -> int:
    """The same in network order."""
    return int.from_bytes(exactly(value, size), "big")


def string(value: bytes) -> str:
    """A text attribute, up to its zero byte; what is no UTF-8 is shown escaped."""
    return value.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def exactly(value: bytes, size: int) -> bytes:
    """The value itself, when it has that length."""
    if len(value) != size:
        raise Malformed(f"an attribute of {len(value)} bytes where {size} were expected")
    return value


def u16(kind: int, value: int) -> bytes:
    """An attribute of 2 bytes in the machine's order."""
    return _U16.pack(6, kind, value)


def u32(kind: int, value: int) -> bytes:
    """An attribute of 4 bytes in the machine's order."""
    return _U32.pack(8, kind, value)
