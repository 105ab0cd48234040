"""Decode a Kubernetes ServiceCIDR (KEP-1880): networks that ClusterIPs are taken from."""

from __future__ import annotations

from ipaddress import ip_network

from meshlib.model.wire import Json, Skip, WireServiceCidr, typed


def service_cidr_from_json(raw: Json, skip: Skip) -> tuple[str, ...]:
    """Its networks, canonical, in its order; ``skip(where, reason)`` is told of what is none. Raises DataError."""
    wire = typed(raw, WireServiceCidr, "ServiceCIDR")
    found: list[str] = []
    for text in (wire.spec.cidrs if wire.spec is not None else None) or ():
        try:
            found.append(str(ip_network(text)))
        except ValueError:
            skip(f"ServiceCIDR {wire.metadata.name!r:.80} spec.cidrs", f"{text!r:.80} is not a network")
    return tuple(dict.fromkeys(found))
