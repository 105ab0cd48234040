"""Translate: frontends and the node itself to the objects of a table. Pure.

Names and values of elements are the bytes that the kernel holds, so that a dump of a hundred thousand of them compares
without being understood; ``describe`` shows one in words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from math import gcd
from struct import Struct
from typing import Any

from meshlib.agent.backends.nftables import layout, rules
from meshlib.agent.backends.nftables.layout import (
    DROPPED,
    MOST_SLOTS,
    NODE_PORT,
    NODE_PORT_INSIDE,
    REFUSED,
    TRANSPORTS,
    VIP,
    VIP_INSIDE,
    Lane,
)
from meshlib.agent.backends.nftables.messages import RANGE_END, Element
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Hairpin,
    Masquerade,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.objects import ObjectKey, Objects

#: More slots than this are spent on endpoints only, not on the exactness of weights: 1 in 4096 is 0.02 %.
MOST_WEIGHTED_SLOTS = 4096
TABLE, SET, CHAIN, RANGES = "table", "set", "chain", "ranges"

_PORT = Struct(">Hxx")
_KEY = Struct(">BxxxHxx")
_HOST32 = Struct("=I")
_pack_number = _HOST32.pack
#: The first field of values that are looked up again; see ``expressions.stand_in``.
_NOTHING = bytes(4)


@lru_cache(
    maxsize=1 << 12
)  # a frontend asks for its targets several times in a row; for all it would take 10 MB
def packed(address: str) -> bytes:
    """The bytes of an address. Raises ValueError."""
    return ip_address(address).packed


def kinds() -> tuple[str, ...]:
    """In the order in which objects are added."""
    return (TABLE, SET, CHAIN, RANGES, *layout.set_specs(4))


def fixed(place: Place) -> Objects:
    """The table with its sets and chains, and the node's own addresses and pod ranges."""
    family = place.family
    objects: dict[ObjectKey, Any] = {ObjectKey(TABLE, ""): layout.COMMENT}
    for name in (*layout.set_specs(family), *layout.special_specs(family)):
        objects[ObjectKey(SET, name)] = None
    for name, spec in rules.chains(family, place.masquerade_bit, bool(place.pod_ranges)).items():
        objects[ObjectKey(CHAIN, name)] = spec
    for lane in layout.LANES:
        for number, verdict in ((REFUSED, layout.REFUSE), (DROPPED, ""), (layout.PASSED, layout.PASS)):
            objects[ObjectKey(lane.chain, _pack_number(number))] = verdict
    objects[ObjectKey(RANGES, layout.PODS)] = ranges(place.pod_ranges, family)
    objects[ObjectKey(RANGES, layout.SERVICE_RANGES)] = ranges(place.service_ranges, family)
    for address in place.node_addresses:
        objects[ObjectKey(layout.NODE_IPS, packed(address))] = None
    return objects


def ranges(networks: Sequence[str], family: int) -> tuple[tuple[bytes, bytes], ...]:
    """First and last address of each range, joined where they touch."""
    return tuple(
        (network.network_address.packed, network.broadcast_address.packed)
        for network in _collapsed(networks, family)
    )


def range_elements(content: Iterable[tuple[bytes, bytes]]) -> list[Element]:
    """The elements of an interval set: where each range begins, and where the next address is outside."""
    elements = []
    for first, last in content:
        elements.append(Element(first))
        if any(byte != 0xFF for byte in last):  # a range to the very end has none
            after = int.from_bytes(last, "big") + 1
            elements.append(Element(after.to_bytes(len(last), "big"), flags=RANGE_END))
    return elements


def ranges_of(elements: Iterable[Element], size: int) -> tuple[tuple[bytes, bytes], ...]:
    """The ranges that such elements, in any order, say."""
    found = []
    start: bytes | None = None
    # An end at the address where the next range begins comes first.
    for element in sorted(elements, key=lambda element: (element.key, -element.flags)):
        if not element.flags & RANGE_END:
            start = element.key
        elif start is not None:
            before = int.from_bytes(element.key, "big") - 1
            found.append((start, before.to_bytes(size, "big")))
            start = None
    if start is not None:
        found.append((start, b"\xff" * size))
    return tuple(found)


def translate(frontend: Frontend, place: Place) -> Objects:
    """What a frontend needs when this table forwards its flows."""
    objects = classify(frontend, place)
    outside, inside = (VIP, VIP_INSIDE) if frontend.key.address else (NODE_PORT, NODE_PORT_INSIDE)
    add_route(objects, outside, frontend, frontend.route, place)
    if frontend.inside is not None:
        add_route(objects, inside, frontend, frontend.inside, place)
    return objects


def classify(frontend: Frontend, place: Place) -> dict[ObjectKey, Any]:
    """What a frontend needs whoever forwards its flows: protection, source ranges, masquerading."""
    objects: dict[ObjectKey, Any] = {}
    name = element_key(frontend.key)
    lane = VIP if frontend.key.address else NODE_PORT
    if _is_virtual(frontend, place):
        kept = layout.CLUSTER_IPS if frontend.kind is FrontendKind.CLUSTER_IP else layout.OTHER_IPS
        objects[ObjectKey(kept, packed(frontend.key.address))] = None
    if frontend.masquerade is Masquerade.ALWAYS:
        objects[ObjectKey(layout.MASQUERADED[lane], name)] = None
    elif frontend.masquerade is Masquerade.OFF_NODE:
        objects[ObjectKey(layout.MASQUERADED_OFF_NODE[lane], name)] = None
    restricted = frontend.kind is FrontendKind.LOAD_BALANCER and bool(frontend.key.address)
    if restricted and frontend.source_ranges is not None:
        networks = _collapsed(frontend.source_ranges, place.family)
        if not any(network.prefixlen == 0 for network in networks):
            objects[ObjectKey(layout.RESTRICTED, name)] = None
            for network in networks:
                first, last = network.network_address.packed, network.broadcast_address.packed
                objects[ObjectKey(layout.ALLOWED, name + first + name + last)] = None
    return objects


def _is_virtual(frontend: Frontend, place: Place) -> bool:
    """Whether nothing but Services lives at this address: on a node's own one the host has its ports too."""
    address = frontend.key.address
    if not address or frontend.kind is FrontendKind.NODE_PORT:
        return False
    return address != place.source and address not in place.node_addresses


def translate_hairpin(hairpin: Hairpin) -> Objects:
    """What a local endpoint needs to reach itself."""
    address = packed(hairpin.address)
    key = address + address + _KEY.pack(TRANSPORTS[hairpin.protocol], hairpin.port)
    return {ObjectKey(layout.HAIRPINS, key): None}


def add_route(
    objects: dict[ObjectKey, Any], lane: Lane, frontend: Frontend, route: Route, place: Place
) -> None:
    """The elements of one route in one lane."""
    key = element_key(frontend.key)
    if route.action is not Action.FORWARD or not route.targets:
        number = DROPPED if route.action is Action.DROP else REFUSED
        objects[ObjectKey(lane.class_, key)] = class_value(number)
        return
    seconds = frontend.affinity_seconds
    transport = TRANSPORTS[frontend.key.protocol]
    filled = slots(route.targets)
    count = len(filled)
    slot, endpoints, pack = lane.slot, layout.ENDPOINTS, _KEY.pack
    for index, target in enumerate(filled):
        address = packed(target.address)
        objects[ObjectKey(slot, key + _pack_number(index))] = address + _PORT.pack(target.port)
        objects[ObjectKey(endpoints, address + pack(transport, target.port))] = None
    number = layout.class_number(count, seconds)
    chain = layout.class_chain(lane, count, seconds)
    objects[ObjectKey(CHAIN, chain)] = rules.picking_chain(lane, count, seconds, place.family)
    objects[ObjectKey(lane.chain, _pack_number(number))] = chain
    objects[ObjectKey(lane.class_, key)] = class_value(number)
    if seconds:
        own = _digest(lane.name, *map(str, frontend.key))
        objects[ObjectKey(lane.owner, key)] = _NOTHING + owner_number(frontend.owner)
        objects[ObjectKey(lane.member, key)] = _NOTHING + own
        for target in route.targets:
            name = packed(target.address) + _PORT.pack(target.port) + own
            objects[ObjectKey(layout.STICKY_ENDPOINTS, name)] = None


def class_value(number: int) -> bytes:
    """A class as the value of an element."""
    return _NOTHING + _pack_number(number)


def slots(targets: Sequence[Target]) -> Sequence[Target]:
    """The targets as often as their weights say, in the smallest numbers that keep the proportions."""
    if len(targets) > MOST_SLOTS:
        return targets[:MOST_SLOTS]
    weights = [target.weight for target in targets]
    if len(set(weights)) == 1:
        return targets
    divisor = gcd(*weights)
    weights = [weight // divisor for weight in weights]
    total = sum(weights)
    limit = max(MOST_WEIGHTED_SLOTS, len(targets))
    if total > limit:
        # Everybody has one; the rest goes by weight.
        rest = limit - len(targets)
        weights = [1 + weight * rest // total for weight in weights]
    return [target for target, weight in zip(targets, weights, strict=True) for _ in range(weight)]


def element_key(key: FrontendKey) -> bytes:
    """A frontend as the key of an element."""
    transport = _KEY.pack(TRANSPORTS[key.protocol], key.port)
    return packed(key.address) + transport if key.address else transport


def owner_number(owner: PortKey) -> bytes:
    """The number under which clients of a port of a Service are remembered.

    64 bits, so that nobody finds a Service name that shares somebody else's.
    """
    return _digest(str(owner.service), owner.port, owner.protocol)


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()


def _collapsed(networks: Iterable[str], family: int) -> Sequence[IPv4Network] | Sequence[IPv6Network]:
    """Without those that lie in others, and joined where they touch: the kernel refuses ranges that overlap."""
    parsed = [ip_network(network, strict=False) for network in networks]
    if family == 4:
        return list(collapse_addresses(network for network in parsed if isinstance(network, IPv4Network)))
    return list(collapse_addresses(network for network in parsed if isinstance(network, IPv6Network)))


def describe(key: ObjectKey, value: Any, family: int) -> str:
    """An object in words, for logs and for people."""
    spec = layout.set_specs(family).get(key.kind)
    if spec is None or not isinstance(key.name, bytes):
        return f"{key.kind} {key.name}"
    said = f"{key.kind} {_fields(key.name, spec.key)}"
    if isinstance(value, str):
        return f"{said} : {value or 'drop'}"
    return f"{said} : {_fields(value, spec.value)}" if value else said


def _fields(data: bytes, fields: Sequence[Any]) -> str:
    words = []
    position = 0
    for field in fields:
        content = data[position : position + field.size]
        position += field.padded
        if field.number in (7, 8):
            words.append(str(ip_address(content)))
        elif field.number == 19:
            words.append(hex(_HOST32.unpack(content)[0]))
        else:
            words.append(str(int.from_bytes(content, "big")))
    return " . ".join(words)
