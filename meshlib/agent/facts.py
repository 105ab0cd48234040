"""Facts: all that the compiler looks at, as one immutable value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from meshlib.model.cluster import ClusterChange, Node, ServiceFacts
from meshlib.model.service import ServiceKey


@dataclass(frozen=True, slots=True)
class Host:
    """What the host's own kernel says, apart from what we programmed.

    ``addresses``: canonical, of every interface but the loopback and the one that holds virtual addresses; empty: not
    looked up, and the Node's addresses stand for them.
    """

    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """The cluster as a source told it, and the host. ``services`` holds no entry without a Service."""

    services: Mapping[ServiceKey, ServiceFacts] = field(default_factory=dict)
    node: Node = field(default_factory=Node)
    host: Host = field(default_factory=Host)
    service_ranges: tuple[str, ...] = ()  #: of the ServiceCIDR objects

    def after(self, change: ClusterChange) -> Facts:
        """With what a source told. Costs a copy: the incremental compiler does without."""
        services = {**({} if change.complete else self.services), **change.services}
        known = {key: facts for key, facts in services.items() if facts.service is not None}
        ranges = self.service_ranges if change.service_ranges is None else change.service_ranges
        return replace(self, services=known, node=change.node or self.node, service_ranges=ranges)

    def whole(self) -> ClusterChange:
        """Everything about the cluster, told at once."""
        return ClusterChange(self.services, self.node, complete=True, service_ranges=self.service_ranges)
