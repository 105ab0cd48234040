"""Generic netlink: families are found by name, and have a number of their own on every boot. Pure."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from meshlib.agent.netlink.messages import (
    Malformed,
    Message,
    Request,
    attribute,
    number,
    parse_attributes,
    string,
)

#: command, version of the family, reserved
HEADER = Struct("=BBxx")
#: The family that knows the others.
CONTROLLER = 0x10
_NEW_FAMILY, _GET_FAMILY = 1, 3
_FAMILY_ID, _FAMILY_NAME = 1, 2


class Command(NamedTuple):
    """A generic netlink message's own header and what follows it."""

    number: int
    version: int
    attributes: bytes


def find_family(name: str) -> Request:
    """Asks for a family's number. The kernel loads the module that provides it, where it may; refused with ENOENT."""
    return Request(
        CONTROLLER, 0, HEADER.pack(_GET_FAMILY, 1) + attribute(_FAMILY_NAME, name.encode() + b"\0")
    )


def parse_family(message: Message, name: str) -> int:
    """The number in the answer to ``find_family``."""
    command = parse_command(message)
    if message.type != CONTROLLER or command.number != _NEW_FAMILY:
        raise Malformed(f"no answer about a family: type {message.type}, command {command.number}")
    found = dict(parse_attributes(command.attributes))
    if _FAMILY_ID not in found or string(found.get(_FAMILY_NAME, b"")) != name:
        raise Malformed(f"an answer that is not about the family {name}")
    return number(found[_FAMILY_ID], 2)


def parse_command(message: Message) -> Command:
    """The command of a generic netlink message."""
    if len(message.payload) < HEADER.size:
        raise Malformed(f"a generic netlink message of {len(message.payload)} bytes; it has 4 at least")
    command, version = HEADER.unpack_from(message.payload)
    return Command(command, version, message.payload[HEADER.size :])
