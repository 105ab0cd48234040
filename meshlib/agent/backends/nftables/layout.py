"""Layout: which sets and chains the table of a family has, and the rules in them. Pure.

The rules never change with the Services; elements do. A frontend is looked up in one of four *lanes*: by address,
protocol and port, or, on the node's own addresses, by protocol and port alone; and either for every source or, with
externalTrafficPolicy Local, for those inside (pods of this node, and the node). In each lane

- ``LANE_class`` says what class the frontend is of: how many slots it has and for how long a client sticks, or refused;
- ``LANE_chain`` leads from the class to the chain that picks among exactly so many slots, or drops, or refuses;
- ``LANE_slot`` has the endpoint in each slot;
- ``LANE_owner`` gives frontends with session affinity the number of the port of the Service, whose clients they share,
  and ``LANE_member`` that of their own endpoints, to which alone a client may stick.

Only a new class brings a new chain, so that one changed endpoint is a few elements, whatever else is in the table: the
kernel checks every verdict in a table again when one is added, which is why ``LANE_class`` holds numbers.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from meshlib.agent.backends.nftables.messages import (
    ADDRESS,
    CONCATENATED,
    DYNAMIC,
    INTERVAL,
    MARK,
    PORT,
    PROTOCOL,
    TIMEOUT,
    FieldType,
    SetSpec,
)

#: Sets and rules of another layout are of no use to this one: the table is replaced as a whole.
VERSION = 1
_MARK_OF_OURS = "meshlib agent"
COMMENT = f"{_MARK_OF_OURS}, layout {VERSION}"

#: A class is a number of 32 bits: 17 of them seconds of affinity (to 86400), 15 the slots.
MOST_SLOTS = 0x3FFF
REFUSED, DROPPED, PASSED = 0x4000, 0x4001, 0x4002

#: Clients that are remembered at a time, per family. Beyond that new ones do not stick (they are served all the same);
#: an entry takes some 150 bytes, so a flood of forged sources costs 40 MB at most.
MOST_STICKY = 1 << 18

TRANSPORTS = {"TCP": 6, "UDP": 17, "SCTP": 132}


class Lane(NamedTuple):
    """Where a frontend is looked up."""

    name: str
    by_address: bool
    inside: bool

    @property
    def class_(self) -> str:
        return f"{self.name}_class"

    @property
    def chain(self) -> str:
        return f"{self.name}_chain"

    @property
    def slot(self) -> str:
        return f"{self.name}_slot"

    @property
    def owner(self) -> str:
        return f"{self.name}_owner"

    @property
    def member(self) -> str:
        return f"{self.name}_member"


VIP, VIP_INSIDE = Lane("vip", True, False), Lane("vip_inside", True, True)
NODE_PORT, NODE_PORT_INSIDE = Lane("port", False, False), Lane("port_inside", False, True)
LANES = (VIP, VIP_INSIDE, NODE_PORT, NODE_PORT_INSIDE)

# Sets whose content follows from the node alone, and is set as a whole.
PODS, SERVICE_RANGES = "pods", "service_ranges"
# Elements.
NODE_IPS, CLUSTER_IPS, OTHER_IPS = "node_ips", "cluster_ips", "other_ips"
ENDPOINTS, HAIRPINS = "endpoints", "hairpins"
RESTRICTED, ALLOWED = "restricted", "allowed"
MASQUERADED = {VIP: "vip_masquerade", NODE_PORT: "port_masquerade"}
MASQUERADED_OFF_NODE = {VIP: "vip_masquerade_off_node", NODE_PORT: "port_masquerade_off_node"}
STICKY_ENDPOINTS = "sticky_endpoints"
#: Written by the packets themselves: which client goes where, until when.
STICKY = "sticky"

REFUSE, PASS = "refuse", "pass"


def is_ours(comment: str) -> bool:
    """Whether a table's comment says that this agent, of whatever version, made it."""
    return comment.startswith(_MARK_OF_OURS)


@cache
def set_specs(family: int) -> dict[str, SetSpec]:
    """All sets by name, in the order in which elements are added: what leads to a frontend comes last."""
    address = ADDRESS[family]
    frontend = (address, PROTOCOL, PORT)
    endpoint = (address, PORT)
    specs = [
        SetSpec(NODE_IPS, (address,)),
        SetSpec(HAIRPINS, (address, address, PROTOCOL, PORT)),
        SetSpec(ENDPOINTS, frontend),
        SetSpec(STICKY_ENDPOINTS, (*endpoint, MARK, MARK)),
        SetSpec(ALLOWED, (*frontend, address), flags=INTERVAL | CONCATENATED),
        SetSpec(RESTRICTED, frontend),
    ]
    for lane in (VIP, NODE_PORT):
        specs += [
            SetSpec(names[lane], key_fields(lane, family)) for names in (MASQUERADED, MASQUERADED_OFF_NODE)
        ]
    for lane in LANES:
        key = key_fields(lane, family)
        specs += [
            SetSpec(lane.chain, (MARK,), verdicts=True),
            SetSpec(lane.slot, (*key, MARK), endpoint),
            SetSpec(lane.owner, key, (MARK, MARK, MARK)),
            SetSpec(lane.member, key, (MARK, MARK, MARK)),
            SetSpec(lane.class_, key, (MARK, MARK)),
        ]
    specs += [SetSpec(CLUSTER_IPS, (address,)), SetSpec(OTHER_IPS, (address,))]
    return {spec.name: spec for spec in specs}


@cache
def special_specs(family: int) -> dict[str, SetSpec]:
    """Sets that no elements of ours are put into one by one."""
    address = ADDRESS[family]
    specs = [
        SetSpec(PODS, (address,), flags=INTERVAL),
        SetSpec(SERVICE_RANGES, (address,), flags=INTERVAL),
        SetSpec(
            STICKY,
            (address, MARK, MARK),
            (MARK, address, PORT),
            flags=TIMEOUT | DYNAMIC,
            size=MOST_STICKY,
        ),
    ]
    return {spec.name: spec for spec in specs}


def key_fields(lane: Lane, family: int) -> tuple[FieldType, ...]:
    """What a frontend is looked up by."""
    return (ADDRESS[family], PROTOCOL, PORT) if lane.by_address else (PROTOCOL, PORT)


def class_number(slots: int, seconds: int) -> int:
    """The class of frontends with so many slots and so long an affinity."""
    return seconds << 15 | slots


def class_chain(lane: Lane, slots: int, seconds: int) -> str:
    """The chain of such a class."""
    return f"{lane.name}_{slots}" if not seconds else f"{lane.name}_{slots}_{seconds}s"
