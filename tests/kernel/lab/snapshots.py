"""What a node may be asked to do, in a few pictures: the same for every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshlib.agent.desired import Desired, Frontend, Masquerade, Place
from tests.kernel.lab import wanted
from tests.kernel.lab.net import FAR1, FAR2, NODE, OUT, POD1, POD2, POD_RANGE, of
from tests.kernel.lab.wanted import (
    CLUSTER_IP,
    DROP,
    LB_IP,
    NODE_PORT,
    REJECT,
    cluster_ip,
    external_ip,
    load_balancer,
    node_port,
    to,
)

#: externalTrafficPolicy Local: the client keeps its address.
LOCAL: dict[str, Any] = {"masquerade": Masquerade.NEVER}


def more(address: str, count: int) -> str:
    """Another address of the same range."""
    head, last = address.rsplit(".", 1)
    return f"{head}.{int(last) + count}"


def _every_kind(family: int, protocol: str) -> list[Frontend]:
    everywhere, local = wanted.everywhere(family), to(family, POD1, POD2)
    return [
        cluster_ip(family, everywhere, protocol=protocol),
        external_ip(family, everywhere, protocol=protocol),
        load_balancer(family, everywhere, protocol=protocol),
        node_port(everywhere, protocol=protocol),
        load_balancer(family, local, more(LB_IP, 1), protocol=protocol, inside=everywhere, **LOCAL),
        node_port(local, NODE_PORT + 1, protocol=protocol, inside=everywhere, **LOCAL),
        cluster_ip(family, local, more(CLUSTER_IP, 1), protocol=protocol, masquerade=Masquerade.NEVER),
        cluster_ip(family, everywhere, more(CLUSTER_IP, 2), protocol=protocol, masquerade=Masquerade.ALWAYS),
    ]


def _empty(family: int, protocol: str) -> list[Frontend]:
    cluster = to(family, FAR1, FAR2)
    return [
        cluster_ip(family, REJECT, protocol=protocol),
        cluster_ip(family, DROP, more(CLUSTER_IP, 1), protocol=protocol),
        external_ip(family, REJECT, protocol=protocol),
        load_balancer(family, REJECT, protocol=protocol, inside=REJECT, **LOCAL),
        load_balancer(family, DROP, more(LB_IP, 1), protocol=protocol, inside=cluster, **LOCAL),
        node_port(REJECT, protocol=protocol),
        node_port(DROP, NODE_PORT + 1, protocol=protocol, inside=cluster, **LOCAL),
    ]


def _ranges(family: int, protocol: str) -> list[Frontend]:
    route, prefix = to(family, POD1), "32" if family == 4 else "128"
    only_out = (f"{of(family, OUT)}/{prefix}", of(family, "10.0.2.0/24"))
    only_pods = (of(family, POD_RANGE), f"{of(family, POD1)}/{prefix}")
    with_node = (f"{of(family, NODE)}/{prefix}",)
    everybody = ("0.0.0.0/0",) if family == 4 else ("::/0",)
    return [
        load_balancer(family, route, protocol=protocol, source_ranges=only_out),
        load_balancer(family, route, more(LB_IP, 1), protocol=protocol, source_ranges=only_pods),
        load_balancer(
            family, route, more(LB_IP, 2), protocol=protocol, source_ranges=with_node, inside=route, **LOCAL
        ),
        load_balancer(family, route, more(LB_IP, 3), protocol=protocol, source_ranges=()),
        load_balancer(family, route, more(LB_IP, 4), protocol=protocol, source_ranges=everybody),
        cluster_ip(family, route, protocol=protocol, source_ranges=only_out),
        node_port(route, protocol=protocol, source_ranges=only_out),
    ]


_MAKERS: dict[str, Callable[[int, str], list[Frontend]]] = {
    "every kind": _every_kind,
    "no endpoints": _empty,
    "source ranges": _ranges,
}
NAMES = tuple(_MAKERS)


def snapshot(name: str, place: Place, protocol: str) -> Desired:
    """One picture, on this node."""
    return wanted.desired(place, *_MAKERS[name](place.family, protocol))
