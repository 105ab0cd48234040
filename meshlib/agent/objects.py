"""Kernel objects, and the plan that leads from those that are there to those that are wanted. Pure.

A backend says which objects a frontend needs (``translate``). Several frontends may need the same one (the route of an
address); it goes with the last of them. The difference is by object, so one changed endpoint costs a few operations
whatever else is programmed.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from meshlib.agent.desired import FrontendKey


class ObjectKey(NamedTuple):
    """``kind`` is the backend's word (route, service, destination, element); ``name`` identifies within the kind, and
    names of one kind are ordered among each other (``<``)."""

    kind: str
    name: Hashable


#: What frontends need: key to value. Values are compared by ``==``; None where the key says everything.
Objects = Mapping[ObjectKey, Any]


class Verb(enum.Enum):
    """What is done to one object."""

    ADD = "add"
    SET = "set"  #: in place: what flows through it goes on
    REMOVE = "remove"


class Operation(NamedTuple):
    """One step of a plan. ``value`` is the new one (the old one for REMOVE); ``why`` names a frontend it serves."""

    verb: Verb
    key: ObjectKey
    value: Any
    why: FrontendKey | None = None


class Failed(NamedTuple):
    """An operation that the kernel refused. ``errno`` 0: it was not tried."""

    operation: Operation
    errno: int
    text: str


#: In the order of execution: additions and changes by kind, then removals by kind in reverse (make before break).
Plan = tuple[Operation, ...]
