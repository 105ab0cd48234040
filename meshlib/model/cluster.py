"""Facts of a whole cluster, as one node needs them: the values that sources of the kernel path hand over. Immutable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from meshlib.model.service import Service, ServiceKey
from meshlib.model.slices import EndpointSlice


@dataclass(frozen=True, slots=True)
class Node:
    """The node that we run on. Empty: not known (then nothing is local, and no hint applies)."""

    name: str = ""
    zone: str = ""  #: label topology.kubernetes.io/zone
    addresses: tuple[str, ...] = ()  #: canonical, both families, internal ones first
    pod_ranges: tuple[str, ...] = ()  #: spec.podCIDRs, both families
    leaving: bool = False  #: being deleted, or about to be (KEP-3836)


class ServiceFacts(NamedTuple):
    """All that is known of one Service. ``service`` None: there is none (any more)."""

    service: Service | None
    slices: tuple[EndpointSlice, ...] = ()


#: Nothing is known by this name.
ABSENT = ServiceFacts(None)


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """What a source tells. Values may cross threads and processes.

    ``services`` holds the whole facts of every Service that changed. ``complete``: they are all there are, and what was
    told before is void. ``node`` None: unchanged. ``triggers``: when the things happened that led to changed slices
    (seconds since 1970, from the endpoint controllers' annotation), for measurements only. ``lists``: how often the
    source has read everything so far; a mass removal counts as confirmed when it outlives some of them.
    ``service_ranges``: the networks of all ServiceCIDR objects, None: unchanged (or never told).
    """

    services: Mapping[ServiceKey, ServiceFacts] = field(default_factory=dict)
    node: Node | None = None
    complete: bool = False
    triggers: Mapping[ServiceKey, tuple[float, ...]] = field(default_factory=dict)
    lists: int = 0
    service_ranges: tuple[str, ...] | None = None

    def then(self, later: ClusterChange) -> ClusterChange:
        """Both as one change, for who was busy meanwhile."""
        ranges = self.service_ranges if later.service_ranges is None else later.service_ranges
        if later.complete:
            return ClusterChange(
                later.services, later.node or self.node, True, later.triggers, later.lists, ranges
            )
        triggers = dict(self.triggers)
        for key, times in later.triggers.items():
            triggers[key] = triggers.get(key, ()) + times
        services = {**self.services, **later.services}
        return ClusterChange(services, later.node or self.node, self.complete, triggers, later.lists, ranges)


#: Called on the source's own thread, with something new each time.
TellCluster = Callable[[ClusterChange], None]
