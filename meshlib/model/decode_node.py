"""Decode a Kubernetes Node, as far as the node's own agent needs it."""

from __future__ import annotations

from ipaddress import ip_network

from meshlib.errors import DataError
from meshlib.model.address import canonical
from meshlib.model.cluster import Node
from meshlib.model.names import MAX_NAME
from meshlib.model.wire import Json, NodeSpec, NodeStatus, Skip, WireNode, converted, typed

ZONE_LABEL = "topology.kubernetes.io/zone"
#: The cluster autoscaler's word for a node that is about to go (KEP-3836: load balancers shall drain it).
LEAVING_TAINT = "ToBeDeletedByClusterAutoscaler"
#: Which kinds of address a node is reached by from inside the cluster, best first; host names are none.
_ADDRESS_TYPES = ("InternalIP", "ExternalIP")


def node_from_json(raw: Json, skip: Skip) -> Node:
    """Decode one Node; ``skip(where, reason)`` is told of addresses and ranges that are left out. Raises DataError."""
    return _node(typed(raw, WireNode, "Node"), skip)


def node_from_object(obj: object, skip: Skip) -> Node:
    """The same from dicts and lists (YAML, or JSON that is already decoded)."""
    return _node(converted(obj, WireNode, "Node"), skip)


def _node(wire: WireNode, skip: Skip) -> Node:
    meta, spec, status = wire.metadata, wire.spec or NodeSpec(), wire.status or NodeStatus()
    if not meta.name or len(meta.name) > MAX_NAME or not meta.name.isprintable():
        raise DataError("Node", f"metadata.name {meta.name!r:.80} is not a node's name")
    where = f"Node {meta.name}"
    zone = (meta.labels or {}).get(ZONE_LABEL, "")
    return Node(
        name=meta.name,
        zone=zone if zone.isprintable() and len(zone) <= MAX_NAME else "",
        addresses=_addresses(status, where, skip),
        pod_ranges=_ranges(spec, where, skip),
        leaving=meta.deletion_timestamp is not None
        or any(taint.key == LEAVING_TAINT for taint in spec.taints or ()),
    )


def _addresses(status: NodeStatus, where: str, skip: Skip) -> tuple[str, ...]:
    found: list[str] = []
    for wanted in _ADDRESS_TYPES:
        for entry in status.addresses or ():
            if entry.type != wanted:
                continue
            try:
                found.append(canonical(entry.address))
            except DataError as error:
                skip(f"{where} status.addresses", str(error))
    return tuple(dict.fromkeys(found))


def _ranges(spec: NodeSpec, where: str, skip: Skip) -> tuple[str, ...]:
    found: list[str] = []
    for text in spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else []):
        try:
            found.append(str(ip_network(text, strict=False)))
        except ValueError:
            skip(f"{where} spec.podCIDRs", f"{text!r:.80} is not a network")
    return tuple(dict.fromkeys(found))
