"""Context: what the compilation of every Service of one family looks at beside the Service itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from meshlib.agent.compile.claims import ClaimRules
from meshlib.agent.desired import Place
from meshlib.agent.facts import Host
from meshlib.agent.settings import AgentSettings, networks
from meshlib.model.address import family as family_of
from meshlib.model.cluster import Node
from meshlib.model.vantage import VantagePoint


@dataclass(frozen=True, slots=True)
class Context:
    """Equal contexts give equal compilations of an equal Service."""

    family: int
    settings: AgentSettings
    place: Place
    vantage: VantagePoint
    rules: ClaimRules


def make_context(
    settings: AgentSettings, family: int, node: Node, host: Host, service_ranges: tuple[str, ...] = ()
) -> Context:
    """The Node's own word counts where there is one; the settings stand in for a node without a cluster.
    ``service_ranges``: of the cluster's ServiceCIDR objects, in addition to the settings'."""
    ranges = tuple(dict.fromkeys((*settings.service_cidrs, *service_ranges)))
    addresses = _of_family(node.addresses or settings.node_addresses, family)
    own_pods = _texts(node.pod_ranges or settings.pod_cidrs, family)
    cluster_pods = _texts(settings.cluster_cidrs, family)
    pods = {"node": own_pods, "cluster": cluster_pods, "none": ()}[settings.detect_local]
    place = Place(
        family=family,
        node_addresses=_node_port_addresses(settings, family, addresses, host),
        pod_ranges=pods,
        masquerade_bit=settings.masquerade_bit,
        source=addresses[0] if addresses else "",
        # Where we serve but some Services, the others' addresses are not unused.
        service_ranges=() if settings.service_proxy_name else _texts(ranges, family),
    )
    rules = ClaimRules(
        family=family,
        external=settings.external_ip_cidrs,
        nodes=settings.node_cidrs,
        own=frozenset(addresses),
        pods=tuple(dict.fromkeys((*own_pods, *cluster_pods))),
        services=ranges,
        allow_nodes=settings.allow_node_addresses,
    )
    vantage = VantagePoint(node.name or settings.node_name, node.zone or settings.zone, (family,))
    return Context(family, settings, place, vantage, rules)


def _of_family(addresses: Iterable[str], family: int) -> tuple[str, ...]:
    return tuple(address for address in addresses if family_of(address) == family)


def _texts(cidrs: tuple[str, ...], family: int) -> tuple[str, ...]:
    return tuple(map(str, networks(cidrs, family)))


def _node_port_addresses(
    settings: AgentSettings, family: int, own: tuple[str, ...], host: Host
) -> tuple[str, ...]:
    """The node's first address, or the host's addresses inside the configured networks; never a loopback one.

    IPVS cannot answer on loopback addresses: the reply would leave the loopback interface's rules.
    """
    if not settings.node_port_addresses:
        return own[:1]
    wanted = networks(settings.node_port_addresses, family)
    present = _of_family(host.addresses, family) or own
    inside = {
        address
        for address in present
        if not (parsed := ip_address(address)).is_loopback and any(parsed in net for net in wanted)
    }
    first = [address for address in own[:1] if address in inside]
    return tuple(first + sorted(inside.difference(first)))
