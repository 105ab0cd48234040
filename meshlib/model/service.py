"""Service: the stable name in front of endpoints, with the fields that decide who may receive traffic."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class ServiceType(enum.Enum):
    """``spec.type``; HEADLESS is ClusterIP with ``clusterIP: None``, and NAMES are sets made by DNS, file or static text."""

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
    """One entry of ``spec.ports``. Slices are joined by ``name`` and ``protocol``, never by number."""

    name: str
    port: int
    protocol: str = "TCP"
    target_port: int | str | None = None
    node_port: int = 0
    app_protocol: str = ""


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

    @property
    def headless(self) -> bool:
        return self.type is ServiceType.HEADLESS
