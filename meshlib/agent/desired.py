"""Desired: what a node's kernel shall do, family by family, said without the words of any backend.

Frozen values in a fixed order: equal facts give an equal (and, encoded, a byte-equal) Desired.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from meshlib.model.service import ServiceKey


class PortKey(NamedTuple):
    """One port of one Service: what kube-proxy calls a ServicePort. ``port`` is the port's name, "" is legal."""

    service: ServiceKey
    port: str
    protocol: str

    def __str__(self) -> str:
        return f"{self.service}:{self.port or '-'}/{self.protocol}"


class FrontendKey(NamedTuple):
    """Where traffic arrives. ``address`` "" stands for every node address that node ports are served on."""

    protocol: str  #: TCP, UDP, SCTP
    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address or "*"
        return f"{self.protocol} {host}:{self.port}"


class FrontendKind(enum.Enum):
    """Through which field of the Service a frontend came to be."""

    CLUSTER_IP = "cluster-ip"
    EXTERNAL_IP = "external-ip"
    LOAD_BALANCER = "load-balancer"
    NODE_PORT = "node-port"


class Action(enum.Enum):
    """What happens to a new flow (KEP-2086 and the specification of kube-proxy for the two empty cases)."""

    FORWARD = "forward"
    REJECT = "reject"  #: refused at once: TCP reset or ICMP port unreachable
    DROP = "drop"  #: no answer: a Local policy hides the endpoints that exist elsewhere


class Masquerade(enum.Enum):
    """Whose source address is replaced by the node's. A flow from an endpoint to itself always has it replaced."""

    NEVER = "never"  #: externalTrafficPolicy Local: the client's address is kept
    OFF_NODE = (
        "off-node"  #: unless the source is a pod of this node (or the node): ClusterIP with a known pod range
    )
    ALWAYS = "always"


class Target(NamedTuple):
    """One endpoint of a frontend. ``weight`` is 1 or more."""

    address: str
    port: int
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """An action with its targets, sorted by address and port; none unless the action is FORWARD."""

    action: Action
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address and port of a Service on this node.

    ``route`` is for every source, except that ``inside`` (when set) is for pods of this node and the node itself: the
    short circuit of externalTrafficPolicy Local. Source ranges apply to LOAD_BALANCER alone: None is no restriction, ()
    lets nobody in.
    """

    key: FrontendKey
    kind: FrontendKind
    owner: PortKey
    route: Route
    inside: Route | None = None
    masquerade: Masquerade = Masquerade.NEVER
    affinity_seconds: int = 0  #: 0: none; else sessionAffinity ClientIP, 1 to 86400
    scheduler: str = "rr"  #: only ipvs knows others
    #: the affinity must end on time and be one for all addresses of the Service, which IPVS persistence is not
    exact_affinity: bool = False
    source_ranges: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class HealthPort:
    """A healthCheckNodePort: answers 200 while this node has ready endpoints of the Service (KEP-1669 counts them)."""

    service: ServiceKey
    port: int
    local_endpoints: int  #: distinct addresses, ready, on this node


class Hairpin(NamedTuple):
    """An endpoint on this node that may be sent its own traffic back, which only works masqueraded."""

    address: str
    protocol: str
    port: int


class Note(NamedTuple):
    """Something in the facts that a person should know: a conflict, a refused address, an ignored field."""

    service: ServiceKey
    reason: str  #: a stable word: conflict, refused-address, other-family, ...
    text: str


@dataclass(frozen=True, slots=True)
class Place:
    """What the kernel rules need to know of the node itself, one family."""

    family: int  #: 4 or 6
    node_addresses: tuple[
        str, ...
    ] = ()  #: where node ports are served; the node's own stands first where it is among them
    pod_ranges: tuple[
        str, ...
    ] = ()  #: CIDRs of this node's pods; empty: unknown, nothing is masqueraded OFF_NODE
    masquerade_bit: int = 14  #: 0 to 31; kube-proxy's default
    source: str = (
        ""  #: the node's own address: what its traffic to virtual addresses comes from; "": not known
    )
    #: CIDRs that ClusterIPs come from: an address in them that no frontend has answers nothing. Empty: not known.
    service_ranges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Desired:
    """All of one family. ``frontends`` are sorted by key, and no key comes twice."""

    place: Place
    frontends: tuple[Frontend, ...] = ()
    hairpins: tuple[Hairpin, ...] = ()
    health_ports: tuple[HealthPort, ...] = ()
    notes: tuple[Note, ...] = field(default=(), compare=False)
