"""Messages: tables, chains, rules, sets and elements of nf_tables, to bytes and back. Pure.

Everything between ``begin`` and ``end`` is one transaction: all of it, or nothing. An element is a key, and in a map a
value, each a row of fields that are padded to 4 bytes; a set's elements all have the same sizes, which makes encoding
and reading them by the ten thousand cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from meshlib.agent.backends.nftables.expressions import (
    LIST_ELEMENT,
    be32,
    nest,
    text,
    verdict_data,
)
from meshlib.agent.netlink.messages import (
    ATTRIBUTE,
    CREATE,
    NESTED,
    Malformed,
    Message,
    Request,
    attribute,
    network_number,
    parse_attributes,
    string,
)

_NEW_TABLE, _GET_TABLE, _DEL_TABLE = 0, 1, 2
_NEW_CHAIN, _GET_CHAIN, _DEL_CHAIN = 3, 4, 5
_NEW_RULE, _GET_RULE, _DEL_RULE = 6, 7, 8
_NEW_SET, _GET_SET, _DEL_SET = 9, 10, 11
_NEW_ELEMENT, _GET_ELEMENT, _DEL_ELEMENT = 12, 13, 14
_GET_GENERATION = 16
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
#: The family of tables that see ARP, beside 4 and 6: its number on Ethernet.
ARP = 0x0806
_FAMILY = {4: 2, 6: 10, ARP: 3}

# Flags of sets.
INTERVAL, MAP, TIMEOUT, DYNAMIC, CONCATENATED = 0x4, 0x8, 0x10, 0x20, 0x80
#: What a verdict map's values are.
_VERDICT_TYPE = 0xFFFFFF00
#: Of an element that ends a range, and is itself outside.
RANGE_END = 1
#: A list of elements is one attribute, whose length has 16 bits.
_MOST_LIST_BYTES = 60_000
_DORMANT = 1
_APPEND = 0x800


class FieldType(NamedTuple):
    """One field of a key: nft's number for it (so that ``nft list`` shows it in words), and its size in bytes."""

    number: int
    size: int

    @property
    def padded(self) -> int:
        """Bytes in a key."""
        return self.size + 3 & ~3


ADDRESS = {4: FieldType(7, 4), 6: FieldType(8, 16)}
PROTOCOL = FieldType(12, 1)
PORT = FieldType(13, 2)
MARK = FieldType(19, 4)


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set, or with ``value`` a map; ``verdicts`` makes it a verdict map. ``size`` 0: as many as there are."""

    name: str
    key: tuple[FieldType, ...]
    value: tuple[FieldType, ...] = ()
    verdicts: bool = False
    flags: int = 0
    size: int = 0

    @property
    def key_size(self) -> int:
        return sum(field.padded for field in self.key)

    @property
    def value_size(self) -> int:
        return sum(field.padded for field in self.value)


class Element(NamedTuple):
    """``value`` None: the set is no map. A str is a verdict: the chain to go to, or "" for drop."""

    key: bytes
    value: bytes | str | None = None
    key_end: bytes = b""
    flags: int = 0


class Hook(NamedTuple):
    """Where a base chain is called: chain type, hook number, priority."""

    type: str
    number: int
    priority: int


PREROUTING, FORWARD, OUTPUT, POSTROUTING = 0, 2, 3, 4


def _request(family: int, message: int, flags: int, *parts: bytes) -> Request:
    head = bytes((_FAMILY[family], 0, 0, 0))
    return Request(_SUBSYSTEM << 8 | message, flags, head + b"".join(parts))


def begin() -> Request:
    """Opens a transaction."""
    return Request(_BATCH_BEGIN, 0, bytes((0, 0, 0, _SUBSYSTEM)))


def end() -> Request:
    """Ends it: from here on the packets see all of it."""
    return Request(_BATCH_END, 0, bytes((0, 0, 0, _SUBSYSTEM)))


def comment_data(comment: str) -> bytes:
    """User data that nft shows as a comment."""
    data = comment.encode() + b"\0"
    return bytes((0, len(data))) + data


def parse_comment(data: bytes) -> str:
    """The comment in user data, "" if there is none."""
    position = 0
    while position + 2 <= len(data):
        kind, size = data[position], data[position + 1]
        if kind == 0:
            return string(data[position + 2 : position + 2 + size])
        position += 2 + size
    return ""


def new_table(family: int, table: str, comment: str, dormant: bool = False) -> Request:
    parts = [text(1, table), attribute(6, comment_data(comment))]
    if dormant:
        parts.append(be32(2, _DORMANT))
    return _request(family, _NEW_TABLE, CREATE, *parts)


def delete_table(family: int, table: str) -> Request:
    return _request(family, _DEL_TABLE, 0, text(1, table))


def new_chain(family: int, table: str, chain: str, hook: Hook | None) -> Request:
    parts = [text(1, table), text(3, chain)]
    if hook is not None:
        parts.append(nest(4, be32(1, hook.number), be32(2, hook.priority)))
        parts.append(text(7, hook.type))
    return _request(family, _NEW_CHAIN, CREATE, *parts)


def delete_chain(family: int, table: str, chain: str) -> Request:
    """The rules in it must be gone, and whatever leads to it."""
    return _request(family, _DEL_CHAIN, 0, text(1, table), text(3, chain))


def new_rule(family: int, table: str, chain: str, expressions: Iterable[bytes], comment: str) -> Request:
    """Appends a rule."""
    return _request(
        family,
        _NEW_RULE,
        CREATE | _APPEND,
        text(1, table),
        text(2, chain),
        nest(4, *expressions),
        attribute(7, comment_data(comment)),
    )


def flush_chain(family: int, table: str, chain: str) -> Request:
    """Removes all rules of a chain."""
    return _request(family, _DEL_RULE, 0, text(1, table), text(2, chain))


def new_set(family: int, table: str, spec: SetSpec, identifier: int) -> Request:
    """``identifier``: any number that no other set of the transaction has."""
    flags = spec.flags | (MAP if spec.value or spec.verdicts else 0)
    parts = [text(1, table), text(2, spec.name), be32(3, flags)]
    parts += [be32(4, _type_number(spec.key)), be32(5, spec.key_size), be32(10, identifier)]
    if spec.verdicts:
        parts += [be32(6, _VERDICT_TYPE), be32(7, 0)]
    elif spec.value:
        parts += [be32(6, _type_number(spec.value)), be32(7, spec.value_size)]
    description = []
    if spec.size:
        description.append(be32(1, spec.size))
    if flags & CONCATENATED:
        # Each field with its own size, not padded: ranges are compared field by field.
        description.append(nest(2, *(nest(LIST_ELEMENT, be32(1, field.size)) for field in spec.key)))
    if description:
        parts.append(nest(9, *description))
    return _request(family, _NEW_SET, CREATE, *parts)


def _type_number(fields: Sequence[FieldType]) -> int:
    number = 0
    for field in fields:
        number = number << 6 | field.number
    return number


def delete_set(family: int, table: str, name: str) -> Request:
    return _request(family, _DEL_SET, 0, text(1, table), text(2, name))


def flush_set(family: int, table: str, name: str) -> Request:
    """Removes all elements."""
    return _request(family, _DEL_ELEMENT, 0, text(1, table), text(2, name))


def new_elements(
    family: int, table: str, spec: SetSpec, elements: Sequence[Element], together: bool = True
) -> Iterator[Request]:
    """Adds elements, many to a message, or (for errors that name theirs) one to a message."""
    return _elements(_NEW_ELEMENT, CREATE, family, table, spec, elements, together)


def delete_elements(
    family: int, table: str, spec: SetSpec, elements: Sequence[Element], together: bool = True
) -> Iterator[Request]:
    """Removes elements; values do not matter."""
    bare = [element._replace(value=None) for element in elements]
    return _elements(_DEL_ELEMENT, 0, family, table, spec, bare, together)


def _elements(
    message: int,
    flags: int,
    family: int,
    table: str,
    spec: SetSpec,
    elements: Sequence[Element],
    together: bool,
) -> Iterator[Request]:
    head = text(1, table) + text(2, spec.name)
    before, between = _frame(spec)
    key_size, value_size = spec.key_size, spec.value_size
    parts: list[bytes] = []
    size = 0
    for element in elements:
        value = element.value
        if (
            type(value) is bytes
            and len(value) == value_size
            and len(element.key) == key_size
            and not (element.key_end or element.flags)
        ):
            part = before + element.key + between + value
        else:
            part = _element(element)
        if parts and (not together or size + len(part) > _MOST_LIST_BYTES):
            yield _request(family, message, flags, head, nest(3, *parts))
            parts, size = [], 0
        parts.append(part)
        size += len(part)
    if parts:
        yield _request(family, message, flags, head, nest(3, *parts))


def _frame(spec: SetSpec) -> tuple[bytes, bytes]:
    """The bytes before the key and between key and value of every ordinary element of a map."""
    key, value = spec.key_size, spec.value_size
    before = ATTRIBUTE.pack(20 + key + value, LIST_ELEMENT | NESTED)
    before += ATTRIBUTE.pack(8 + key, 1 | NESTED) + ATTRIBUTE.pack(4 + key, 1)
    return before, ATTRIBUTE.pack(8 + value, 2 | NESTED) + ATTRIBUTE.pack(4 + value, 1)


def _element(element: Element) -> bytes:
    parts = [nest(1, attribute(1, element.key))]
    if isinstance(element.value, str):
        parts.append(nest(2, verdict_data(-4, element.value) if element.value else verdict_data(0)))
    elif element.value is not None:
        parts.append(nest(2, attribute(1, element.value)))
    if element.flags:
        parts.append(be32(3, element.flags))
    if element.key_end:
        parts.append(nest(10, attribute(1, element.key_end)))
    return nest(LIST_ELEMENT, *parts)


def get_tables(family: int) -> Request:
    return _request(family, _GET_TABLE, 0)


def get_sets(family: int, table: str) -> Request:
    return _request(family, _GET_SET, 0, text(1, table))


def get_chains(family: int) -> Request:
    return _request(family, _GET_CHAIN, 0)


def get_rules(family: int, table: str) -> Request:
    return _request(family, _GET_RULE, 0, text(1, table))


def get_elements(family: int, table: str, name: str) -> Request:
    return _request(family, _GET_ELEMENT, 0, text(1, table), text(2, name))


def parse_table(message: Message) -> tuple[str, str]:
    """Name and comment."""
    found = _attributes(message)
    return string(found[1]), parse_comment(found.get(6, b""))


def parse_set(message: Message) -> tuple[str, str]:
    """Table and name."""
    found = _attributes(message)
    return string(found[1]), string(found[2])


def parse_chain(message: Message) -> tuple[str, str, Hook | None]:
    """Table, name, and where it is called."""
    found = _attributes(message)
    hook = None
    if 4 in found:
        where = dict(parse_attributes(found[4]))
        priority = network_number(where[2], 4)
        if priority >= 1 << 31:
            priority -= 1 << 32
        hook = Hook(string(found.get(7, b"")), network_number(where[1], 4), priority)
    return string(found[1]), string(found[3]), hook


def parse_rule(message: Message) -> tuple[str, str, bytes]:
    """Table, chain and expressions."""
    found = _attributes(message)
    return string(found[1]), string(found[2]), found.get(4, b"")


def parse_elements(message: Message, spec: SetSpec) -> Iterable[Element]:
    """The elements in one message of a dump."""
    content = _attributes(message).get(3, b"")
    quick = None if spec.verdicts else _plain_elements(content, spec)
    if quick is not None:
        return quick
    return [_parse_element(data) for kind, data in parse_attributes(content) if kind == LIST_ELEMENT]


def _plain_elements(content: bytes, spec: SetSpec) -> list[Element] | None:
    """Elements that have nothing but a key and a value, by position; None when one is different.

    A dump of ten thousand Services has some hundred thousand of these; attribute by attribute takes five times as long.
    """
    key, value = spec.key_size, spec.value_size
    size = 12 + key + (8 + value if value else 0)
    if len(content) % size:
        return None
    # The kernel does not set NESTED in what it tells.
    before = ATTRIBUTE.pack(size, LIST_ELEMENT) + ATTRIBUTE.pack(8 + key, 1) + ATTRIBUTE.pack(4 + key, 1)
    between = ATTRIBUTE.pack(8 + value, 2) + ATTRIBUTE.pack(4 + value, 1) if value else b""
    key_end = 12 + key
    value_start = key_end + len(between)
    elements = []
    for start in range(0, len(content), size):
        if content[start : start + 12] != before:
            return None
        if value:
            if content[start + key_end : start + value_start] != between:
                return None
            elements.append(
                Element(content[start + 12 : start + key_end], content[start + value_start : start + size])
            )
        else:
            elements.append(Element(content[start + 12 : start + key_end]))
    return elements


def _parse_element(data: bytes) -> Element:
    key = key_end = b""
    value: bytes | str | None = None
    flags = 0
    for kind, content in parse_attributes(data):
        if kind == 1:
            key = _parse_value(content)
        elif kind == 2:
            value = _parse_data(content)
        elif kind == 3:
            flags = network_number(content, 4)
        elif kind == 10:
            key_end = _parse_value(content)
    return Element(key, value, key_end, flags)


def _parse_value(data: bytes) -> bytes:
    for kind, content in parse_attributes(data):
        if kind == 1:
            return content
    raise Malformed("an element's key without a value")


def _parse_data(data: bytes) -> bytes | str:
    for kind, content in parse_attributes(data):
        if kind == 1:
            return content
        if kind == 2:
            return string(dict(parse_attributes(content)).get(2, b""))
    raise Malformed("an element's value is neither data nor a verdict")


def _attributes(message: Message) -> dict[int, bytes]:
    if len(message.payload) < 4:
        raise Malformed(f"an nf_tables message of {len(message.payload)} bytes; it has 4 at least")
    return dict(parse_attributes(message.payload, 4))
