"""Which addresses that a Service claims are believed (decision D14). Pure.

A ClusterIP is allocated by the API server. externalIPs are written by tenants (CVE-2020-8554), load-balancer addresses
by whoever may write the status: neither may take the address of a node, of pods or of other Services.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

from meshlib.agent.settings import networks
from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy
from meshlib.model.address import family as family_of

_POLICY = AddressPolicy()


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """``own``: this node's addresses; the others are networks in text, of both families."""

    family: int
    external: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()
    pods: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    allow_nodes: bool = False
    _parsed: dict[str, tuple[IPv4Network | IPv6Network, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        for name in ("external", "nodes", "pods", "services"):
            self._parsed[name] = networks(getattr(self, name), self.family)

    def refusal(self, address: str, *, external: bool) -> str:
        """Why a canonical address of our family is not served, or "". ``external``: it comes from externalIPs."""
        try:
            _POLICY.check(address)
        except DataError as error:
            return error.reason.partition(":")[0]
        if external and not self._within(address, "external"):
            return "is outside external_ip_cidrs"
        if not self.allow_nodes and (address in self.own or self._within(address, "nodes")):
            return "is an address of a node"
        if self._within(address, "pods"):
            return "lies in a range of pods"
        if self._within(address, "services"):
            return "lies in a range of ClusterIPs"
        return ""

    def cluster_ip_refusal(self, address: str) -> str:
        """The same for a ClusterIP: the API server's allocation is believed, unless it would cut off this node."""
        return "is an address of this node" if address in self.own else ""

    def _within(self, address: str, name: str) -> bool:
        found = self._parsed[name]
        if not found or family_of(address) != self.family:
            return False
        parsed = ip_address(address)
        return any(parsed in net for net in found)
