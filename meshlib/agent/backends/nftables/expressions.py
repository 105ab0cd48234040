"""Expressions: the instructions of nf_tables rules, to bytes. Pure.

A rule is a list of expressions over a packet and 16 registers of 4 bytes, named here by index 0 to 15. A value longer
than a register runs over those that follow, and a key of several fields is several values in a row, each beginning at a
register. An expression that finds nothing (a failed comparison, a missed look-up) ends its rule, and the next one is
tried. Numbers in attributes are in network order; what registers hold is as in the packet, or in the machine's order.
"""

from __future__ import annotations

from struct import Struct

from meshlib.agent.netlink.messages import NESTED, attribute, parse_attributes, string

_BE32 = Struct(">I")
_BE64 = Struct(">Q")
_HOST32 = Struct("=I")

#: An entry of any list of attributes.
LIST_ELEMENT = 1

#: Bases of payload offsets.
NETWORK, TRANSPORT = 1, 2

#: Verdict codes; those that name a chain are negative.
DROP, ACCEPT = 0, 1
JUMP, GOTO, RETURN = -3, -4, -5

#: Operations of ``remember``.
UPDATE, DELETE = 1, 2

_FIRST_REGISTER = 8  # of the registers of 4 bytes; below are the verdict (0) and the old ones of 16 bytes
_META_MARK, _META_L4PROTO = 3, 16
_CT_STATE = 0
_CT_INVALID, _CT_NEW = 1, 8
_FIB_ADDRTYPE, _FIB_DADDR = 3, 2
_ADDRTYPE_LOCAL = 2
_RANDOM = 1
_DNAT = 1
_MAP_ADDRESS, _MAP_PORT = 1, 2
_RANDOM_FULLY = 0x10
_EQUAL, _NOT_EQUAL = 0, 1
_NF_FAMILY = {4: 2, 6: 10}


#: Attributes that hold data, by the expression they are in; data is a value (1) or a verdict (2), nested once more.
_DATA = {"immediate": (2,), "cmp": (3,), "bitwise": (4, 5)}


def canonical(expressions: bytes) -> bytes:
    """A list of expressions, ours or the kernel's, in a form that is equal when they do the same: the kernel adds
    attributes that are zero, and does not say which are nested."""
    parts = []
    for _, expression in parse_attributes(expressions):
        content = dict(parse_attributes(expression))
        name = string(content.get(1, b""))
        parts.append(name.encode() + b":" + _canonical(content.get(2, b""), _DATA.get(name, ()), (2,)))
    return b"\0\0".join(parts)


def _canonical(attributes: bytes, nested: tuple[int, ...] = (), inner: tuple[int, ...] = ()) -> bytes:
    parts = []
    for kind, value in sorted(parse_attributes(attributes)):
        if kind in nested:
            value = _canonical(value, inner)
        if value.strip(b"\0"):
            parts.append(kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value)
    return b"".join(parts)


def be32(kind: int, value: int) -> bytes:
    """An attribute of 4 bytes in network order."""
    return attribute(kind, _BE32.pack(value & 0xFFFFFFFF))


def be64(kind: int, value: int) -> bytes:
    """An attribute of 8 bytes in network order."""
    return attribute(kind, _BE64.pack(value))


def text(kind: int, value: str) -> bytes:
    """A string attribute, ended by a zero byte."""
    return attribute(kind, value.encode() + b"\0")


def nest(kind: int, *parts: bytes) -> bytes:
    """Attributes as the value of one."""
    return attribute(kind | NESTED, b"".join(parts))


def host32(value: int) -> bytes:
    """How a register holds a number: in the machine's order."""
    return _HOST32.pack(value)


def verdict_data(code: int, chain: str = "") -> bytes:
    """A verdict as the content of a data attribute."""
    return nest(2, be32(1, code), text(2, chain)) if chain else nest(2, be32(1, code))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nest(LIST_ELEMENT, text(1, name), nest(2, *attributes))


def _register(kind: int, index: int) -> bytes:
    # Where four begin they have an older number as well, and that is the one the kernel tells.
    return be32(kind, _FIRST_REGISTER + index if index % 4 else 1 + index // 4)


def _value(kind: int, value: bytes) -> bytes:
    return nest(kind, attribute(1, value))


def payload(base: int, offset: int, length: int, to: int) -> bytes:
    """Bytes of the packet into registers."""
    return _expression("payload", _register(1, to), be32(2, base), be32(3, offset), be32(4, length))


def source(family: int, to: int) -> bytes:
    """The packet's source address."""
    return payload(NETWORK, 12, 4, to) if family == 4 else payload(NETWORK, 8, 16, to)


def destination(family: int, to: int) -> bytes:
    """The packet's destination address."""
    return payload(NETWORK, 16, 4, to) if family == 4 else payload(NETWORK, 24, 16, to)


def source_port(to: int) -> bytes:
    """TCP, UDP and SCTP have it at the same place."""
    return payload(TRANSPORT, 0, 2, to)


def destination_port(to: int) -> bytes:
    """TCP, UDP and SCTP have it at the same place."""
    return payload(TRANSPORT, 2, 2, to)


def protocol(to: int) -> bytes:
    """The transport protocol's number, one byte."""
    return _expression("meta", be32(2, _META_L4PROTO), _register(1, to))


def constant(value: bytes, to: int) -> bytes:
    """A value that the rule itself knows."""
    return _expression("immediate", _register(1, to), _value(2, value))


def stand_in(registers: int, to: int) -> bytes:
    """Something in so many registers, for nft's eyes only: it is overwritten before it is read.

    nft cannot show a key that a look-up gave, and some versions end with an assertion on one. A map of ours whose value
    is looked up again has a first field that says nothing: nft notes the map there, and this behind it. (A few bytes of
    the network header, because those nft shows at any length; constants and others have types to be checked.)
    """
    return payload(NETWORK, 0, 4 * registers, to)


def equal(register: int, value: bytes) -> bytes:
    """Go on only if the register holds the value."""
    return _expression("cmp", _register(1, register), be32(2, _EQUAL), _value(3, value))


def different(register: int, value: bytes) -> bytes:
    """Go on only if the register holds something else."""
    return _expression("cmp", _register(1, register), be32(2, _NOT_EQUAL), _value(3, value))


def found(name: str, key: int) -> bytes:
    """Go on only if the set has the key that begins at this register."""
    return _expression("lookup", text(1, name), _register(2, key))


def missing(name: str, key: int) -> bytes:
    """Go on only if the set does not have the key."""
    return _expression("lookup", text(1, name), _register(2, key), be32(5, 1))


def look_up(name: str, key: int, to: int) -> bytes:
    """The map's value for the key into registers; go on only if there is one."""
    return _expression("lookup", text(1, name), _register(2, key), _register(3, to))


def decide(name: str, key: int) -> bytes:
    """The verdict that the map has for the key; go on if it has none."""
    return _expression("lookup", text(1, name), _register(2, key), be32(3, 0))


def remember(name: str, operation: int, key: int, value: int, seconds: int = 0) -> bytes:
    """Write to a map from the packet's way: UPDATE (add, or begin the time anew) or DELETE. Go on unless it is full."""
    parts = [text(1, name), be32(3, operation), _register(4, key), _register(5, value)]
    if seconds:
        parts.append(be64(6, seconds * 1000))
    return _expression("dynset", *parts)


def random_number(below: int, to: int) -> bytes:
    """A number from 0 to ``below`` - 1, as likely as each other."""
    return _expression("numgen", _register(1, to), be32(2, below), be32(3, _RANDOM), be32(4, 0))


def verdict(code: int, chain: str = "") -> bytes:
    """End the rule with a verdict."""
    return _expression("immediate", be32(1, 0), nest(2, verdict_data(code, chain)))


def new_destination(family: int, address: int, port: int) -> bytes:
    """Destination NAT of the flow to the address and the port that these registers hold."""
    return _expression(
        "nat",
        be32(1, _DNAT),
        be32(2, _NF_FAMILY[family]),
        _register(3, address),
        _register(4, address),
        _register(5, port),
        _register(6, port),
        be32(7, _MAP_ADDRESS | _MAP_PORT),
    )


def masquerade() -> bytes:
    """Source NAT of the flow to the address of the interface it leaves by, from a port that nobody can guess."""
    return _expression("masq", be32(1, _RANDOM_FULLY))


def refuse_with_reset() -> bytes:
    """Answer a TCP segment with a reset."""
    return _expression("reject", be32(1, 1), attribute(2, b"\0"))


def refuse_with_unreachable(family: int) -> bytes:
    """Answer with ICMP port unreachable."""
    return _expression("reject", be32(1, 0), attribute(2, b"\3" if family == 4 else b"\4"))


def set_mark(bit: int) -> tuple[bytes, ...]:
    """Set one bit of the packet's mark, and leave the others."""
    return _mark(0xFFFFFFFF & ~(1 << bit), 1 << bit)


def clear_mark(bit: int) -> tuple[bytes, ...]:
    """Clear one bit of the packet's mark, and leave the others."""
    return _mark(0xFFFFFFFF & ~(1 << bit), 0)


def unmarked(bit: int) -> tuple[bytes, ...]:
    """Go on only if the bit is not set."""
    load = _expression("meta", be32(2, _META_MARK), _register(1, 0))
    return load, _bitwise(1 << bit, 0), equal(0, host32(0))


def _mark(mask: int, xor: int) -> tuple[bytes, ...]:
    load = _expression("meta", be32(2, _META_MARK), _register(1, 0))
    store = _expression("meta", be32(2, _META_MARK), _register(3, 0))
    return load, _bitwise(mask, xor), store


def _bitwise(mask: int, xor: int) -> bytes:
    return _expression(
        "bitwise",
        _register(1, 0),
        _register(2, 0),
        be32(3, 4),
        _value(4, host32(mask)),
        _value(5, host32(xor)),
    )


def invalid() -> tuple[bytes, ...]:
    """Go on only if connection tracking cannot place the packet."""
    load = _expression("ct", be32(2, _CT_STATE), _register(1, 0))
    return load, _bitwise(_CT_INVALID, 0), different(0, host32(0))


def new_flow() -> tuple[bytes, ...]:
    """Go on only if the packet begins a flow."""
    load = _expression("ct", be32(2, _CT_STATE), _register(1, 0))
    return load, _bitwise(_CT_NEW, 0), different(0, host32(0))


def to_this_host() -> tuple[bytes, ...]:
    """Go on only if the destination is an address of this host."""
    return _destination_type(), equal(0, host32(_ADDRTYPE_LOCAL))


def to_others() -> tuple[bytes, ...]:
    """Go on only if the destination is no address of this host."""
    return _destination_type(), different(0, host32(_ADDRTYPE_LOCAL))


def _destination_type() -> bytes:
    return _expression("fib", _register(1, 0), be32(2, _FIB_ADDRTYPE), be32(3, _FIB_DADDR))
