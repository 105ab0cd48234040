"""Service: the stable name in front of endpoints, with the fields that decide who may receive traffic."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from meshlib.errors import UnknownPort

#: Annotations that only the kernel path reads: the IPVS scheduler, and whether a client's affinity must end on time.
KERNEL_SCHEDULER = "meshlib.dev/ipvs-scheduler"
KERNEL_AFFINITY = "meshlib.dev/kernel-affinity"
KERNEL_ANNOTATIONS = frozenset({KERNEL_SCHEDULER, KERNEL_AFFINITY})
#: How far the roll-out of the client path may go for this Service (``policies.rollout``).
ROLLOUT_MODE = "meshlib.dev/mode"


class ServiceType(enum.Enum):
    """``spec.type``; HEADLESS is ClusterIP with ``clusterIP: None``, NAMES are sets made by DNS or static text."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"
    HEADLESS = "Headless"
    NAMES = "Names"


class TrafficPolicy(enum.Enum):
    """internalTrafficPolicy / externalTrafficPolicy."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One entry of ``spec.ports``. Slices are joined by ``name`` and ``protocol``, never by number.

    ``verbatim``: not a port of the Service but the pods' own port ``port``, taken as it is on every endpoint,
    whatever the slices list: what a headless Service means by host name (decision D2).
    """

    name: str
    port: int
    protocol: str = "TCP"
    target_port: int | str | None = None
    node_port: int = 0
    app_protocol: str = ""
    verbatim: bool = False

    def __str__(self) -> str:
        protocol = "" if self.protocol == "TCP" else f"/{self.protocol}"
        return f"{self.port}{protocol}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True, slots=True, order=True)
class ServiceKey:
    """Namespace and name; DNS, static and file sets use a namespace of ``""`` where they have none."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Service:
    """The facts of one Service that either path needs."""

    key: ServiceKey
    type: ServiceType = ServiceType.CLUSTER_IP
    ports: tuple[ServicePort, ...] = ()
    cluster_ips: tuple[str, ...] = ()  #: primary family first
    ip_families: tuple[int, ...] = ()  #: 4 and/or 6, primary first; empty: take what the slices have
    external_name: str = ""
    session_affinity_seconds: int = 0  #: 0: none; else the sliding timeout of ``sessionAffinity: ClientIP``
    internal_traffic_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_traffic_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    publish_not_ready_addresses: bool = False
    has_selector: bool = True
    uid: str = ""
    resource_version: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = field(default=())  #: only keys below ``meshlib.dev/``
    #: ``spec.externalIPs`` as the tenant claims them; trusted by nobody (decision D14)
    external_ips: tuple[str, ...] = ()
    #: label ``service.kubernetes.io/service-proxy-name``: another proxy serves this one, do not go around it
    proxy_name: str = ""
    # What follows is for the kernel path alone.
    #: ``status.loadBalancer.ingress[].ip`` of the entries that the node is to serve itself (ipMode unset or VIP), as
    #: they stand there; trusted by nobody (decision D14)
    load_balancer_ips: tuple[str, ...] = ()
    #: ``spec.loadBalancerSourceRanges`` without white space around them; not yet parsed
    source_ranges: tuple[str, ...] = ()
    health_check_node_port: int = 0
    created: str = (
        ""  #: metadata.creationTimestamp (RFC 3339): the older of two Services that claim one address wins
    )

    @property
    def headless(self) -> bool:
        return self.type is ServiceType.HEADLESS


def resolve_port(service: Service, port: int | str | None, *, by_host: bool = False) -> ServicePort:
    """The Service port that a target means; raises UnknownPort listing what exists.

    A number is the Service's own port (``spec.ports[].port``), a text the name of one, None the only one
    there is. ``by_host`` tells that the target came from a host name (``Target.by_host``): for a headless
    Service the number is then the pods' port verbatim, as it is for everyone who asks DNS (decision D2). TCP
    wins over other protocols with the same number.
    """
    if service.headless and by_host and isinstance(port, int):
        return ServicePort(name="", port=port, target_port=port, verbatim=True)
    if port is None:
        found = list(service.ports)
        if len(found) > 1:
            raise UnknownPort(f"Service {service.key} has several ports, name one: {_listed(service)}")
    elif isinstance(port, int):
        found = [entry for entry in service.ports if entry.port == port]
    else:
        found = [entry for entry in service.ports if entry.name == port]
    if not found:
        asked = "" if port is None else f" {port!r}" if isinstance(port, str) else f" {port}"
        raise UnknownPort(f"Service {service.key} has no port{asked}; it has: {_listed(service)}")
    return min(found, key=lambda entry: entry.protocol != "TCP")


def _listed(service: Service) -> str:
    return ", ".join(map(str, service.ports)) or "none"
