"""Our own side: what the programmer of a family serves; also as plain values, for the control socket. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshlib.agent.compare.projection import Projection
from meshlib.agent.desired import FrontendKey
from meshlib.agent.engine.programmer import Programmer


@dataclass(frozen=True, slots=True)
class Ours:
    """For sources outside the node. A node port stands at each of ``node_addresses``; ``node_ports`` are protocol and
    number."""

    rules: Projection = field(default_factory=dict)
    node_addresses: tuple[str, ...] = ()
    node_ports: frozenset[tuple[str, int]] = frozenset()


def ours(programmer: Programmer) -> Ours:
    """Belongs to the worker's thread."""
    found: Projection = {}
    node_addresses = programmer.place.node_addresses
    for key, frontend in programmer.frontends.items():
        targets = frozenset((target.address, target.port) for target in frontend.route.targets)
        for address in (key.address,) if key.address else node_addresses:
            found[FrontendKey(key.protocol, address, key.port)] = targets
    ports = frozenset((key.protocol, key.port) for key in programmer.frontends if not key.address)
    return Ours(found, node_addresses, ports)


def to_plain(side: Ours) -> dict[str, Any]:
    """For JSON."""
    return {
        "frontends": [[*key, sorted(targets)] for key, targets in sorted(side.rules.items())],
        "node_addresses": list(side.node_addresses),
        "node_ports": sorted(side.node_ports),
    }


def from_plain(value: Mapping[str, Any]) -> Ours:
    """What ``to_plain`` made."""
    return Ours(
        {
            FrontendKey(protocol, address, port): frozenset((host, number) for host, number in targets)
            for protocol, address, port, targets in value["frontends"]
        },
        tuple(value["node_addresses"]),
        frozenset((protocol, port) for protocol, port in value["node_ports"]),
    )
