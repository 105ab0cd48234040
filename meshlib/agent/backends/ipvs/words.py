"""Words: routes, virtual servers and destinations as ``ipvsadm`` and ``ip`` would say them. Pure."""

from __future__ import annotations

from typing import Any, cast

from meshlib.agent.backends.ipvs.translate import ADDRESS, DESTINATION, ROUTE, SERVICE
from meshlib.agent.netlink.ipvs import PERSISTENT, RealServer, Timeouts, VirtualServer
from meshlib.agent.objects import ObjectKey


def words(key: ObjectKey, value: Any) -> str:
    """One object, on one line."""
    if key.kind == SERVICE:
        protocol, address, port = cast(tuple[str, str, int], key.name)
        return f"virtual server {protocol} {_at(address, port)}{_behaviour(value)}"
    if key.kind == DESTINATION:
        protocol, address, port, real, real_port = cast(tuple[str, str, int, str, int], key.name)
        weight = f" weight {value.weight}" if isinstance(value, RealServer) and value.weight != 1 else ""
        return f"destination {_at(real, real_port)}{weight} of {protocol} {_at(address, port)}"
    if key.kind == ROUTE:
        return f"local route {key.name}" + (f" from {value}" if value else "")
    if key.kind == ADDRESS:
        return f"address {key.name}"
    if isinstance(value, Timeouts):
        told = (f"{name} {seconds} s" for name, seconds in value._asdict().items() if seconds)
        return f"timeouts of the whole namespace: {', '.join(told)}"
    return f"{key.kind} {key.name}"


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _behaviour(value: Any) -> str:
    if not isinstance(value, VirtualServer):
        return ""
    sticky = f" persistent {value.timeout} s" if value.flags & PERSISTENT else ""
    return f" scheduler {value.scheduler}{sticky}"
