"""The Kubernetes objects as they are written, as far as we read them, and the reading itself.

Two ways lead into the same structures. Well-formed JSON is decoded in one step straight into them. When a
piece has a wrong type, the object is decoded again without types and converted piece by piece, so that one
bad endpoint costs one endpoint. Unknown fields are ignored; ``null`` is the same as absent, as Go's encoder
writes empty lists that way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from meshlib.errors import DataError

#: Called once per refused piece: where it stands, and why. Counting and events are the caller's.
Skip = Callable[[str, str], None]
Json = bytes | bytearray | memoryview | msgspec.Raw
W = TypeVar("W", bound=msgspec.Struct)

# ValidationError and DecodeError are MsgspecErrors; a deep nesting is a RecursionError, lone surrogates and
# bad UTF-8 are UnicodeErrors, numbers beyond the range are ValueErrors or OverflowErrors.
_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeError, ValueError, OverflowError, MemoryError)


class Meta(msgspec.Struct, rename="camel"):
    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class ServiceMeta(msgspec.Struct, rename="camel"):
    """Metadata of a Service, with its age."""

    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None


class SliceMeta(msgspec.Struct, rename="camel"):
    """Metadata of a slice, without the annotations, which are larger than all the rest and never used."""

    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    labels: dict[str, str] | None = None


class Conditions(msgspec.Struct, gc=False):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Reference(msgspec.Struct, gc=False):
    name: str | None = None
    uid: str | None = None


class HintTarget(msgspec.Struct, gc=False):
    name: str


class Hints(msgspec.Struct, rename="camel", gc=False):
    for_zones: list[HintTarget] | None = None
    for_nodes: list[HintTarget] | None = None


class WireEndpoint(msgspec.Struct, rename="camel", gc=False):
    addresses: list[str] | None = None
    conditions: Conditions | None = None
    hostname: str | None = None
    target_ref: Reference | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: Hints | None = None
    topology: dict[str, str] | None = None  #: v1beta1


class WirePort(msgspec.Struct, rename="camel", gc=False):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None
    app_protocol: str | None = None


class WireSlice(msgspec.Struct, rename="camel"):
    metadata: SliceMeta
    address_type: str = "IPv4"
    ports: list[WirePort] | None = None
    endpoints: list[WireEndpoint] | None = None


class EndpointAddress(msgspec.Struct, rename="camel", gc=False):
    ip: str
    hostname: str | None = None
    node_name: str | None = None
    target_ref: Reference | None = None


class Subset(msgspec.Struct, rename="camel"):
    addresses: list[EndpointAddress] | None = None
    not_ready_addresses: list[EndpointAddress] | None = None
    ports: list[WirePort] | None = None


class WireEndpoints(msgspec.Struct):
    metadata: Meta
    subsets: list[Subset] | None = None


class WireServicePort(msgspec.Struct, rename="camel"):
    port: int
    name: str | None = None
    protocol: str | None = None
    target_port: int | str | None = None
    node_port: int | None = None
    app_protocol: str | None = None


class ClientIP(msgspec.Struct, rename="camel"):
    timeout_seconds: int | None = None


class AffinityConfig(msgspec.Struct):
    client_ip: ClientIP | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(msgspec.Struct, rename="camel"):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ports: list[WireServicePort] | None = None
    selector: dict[str, str] | None = None
    external_name: str | None = None
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    publish_not_ready_addresses: bool | None = None
    load_balancer_source_ranges: list[str] | None = None
    health_check_node_port: int | None = None


class Ingress(msgspec.Struct, rename="camel"):
    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(msgspec.Struct):
    ingress: list[Ingress] | None = None


class ServiceStatus(msgspec.Struct, rename="camel"):
    load_balancer: LoadBalancerStatus | None = None


class WireService(msgspec.Struct):
    metadata: ServiceMeta
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class Taint(msgspec.Struct):
    key: str | None = None


class NodeSpec(msgspec.Struct, rename="camel"):
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeAddress(msgspec.Struct):
    type: str = ""
    address: str = ""


class NodeStatus(msgspec.Struct):
    addresses: list[NodeAddress] | None = None


class NodeMeta(msgspec.Struct, rename="camel"):
    name: str | None = None
    labels: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class WireNode(msgspec.Struct):
    metadata: NodeMeta
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class CidrSpec(msgspec.Struct):
    cidrs: list[str] | None = None


class WireServiceCidr(msgspec.Struct):
    metadata: NodeMeta
    spec: CidrSpec | None = None


class TriggerAnnotation(msgspec.Struct):
    """The one annotation of slices that is read, and only by who measures how long a change takes."""

    time: str | None = msgspec.field(default=None, name="endpoints.kubernetes.io/last-change-trigger-time")


class TriggerMeta(msgspec.Struct):
    annotations: TriggerAnnotation | None = None


class Triggered(msgspec.Struct):
    metadata: TriggerMeta | None = None


def reason_of(error: BaseException) -> str:
    """One line for an error of the decoder."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def typed(raw: Json, into: type[W], what: str) -> W:
    """Decode JSON into a structure as a whole; raises DataError."""
    try:
        return msgspec.json.decode(raw, type=into)
    except _UNREADABLE as error:
        raise DataError(what, reason_of(error)) from None


def untyped(raw: Json, what: str) -> Any:
    """Decode JSON without types; raises DataError when it is no JSON at all."""
    try:
        return msgspec.json.decode(raw)
    except _UNREADABLE as error:
        raise DataError(what, reason_of(error)) from None


def converted(obj: object, into: type[W], what: str) -> W:
    """Convert an object made of dicts and lists into a structure as a whole; raises DataError."""
    try:
        return msgspec.convert(obj, into)
    except _UNREADABLE as error:
        raise DataError(what, reason_of(error)) from None


def converted_list(holder: dict[str, Any], key: str, into: type[W], where: str, skip: Skip) -> list[W]:
    """Convert the entries of a list one by one; each entry that does not fit is skipped and told."""
    entries = holder.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list):
        skip(f"{where}.{key}", "is not a list")
        return []
    good: list[W] = []
    for position, entry in enumerate(entries):
        try:
            good.append(msgspec.convert(entry, into))
        except _UNREADABLE as error:
            skip(f"{where}.{key}[{position}]", reason_of(error))
    return good


def as_mapping(obj: object, what: str) -> dict[str, Any]:
    """The object itself when it is a mapping; raises DataError."""
    if isinstance(obj, dict):
        return obj
    raise DataError(what, "is not an object")
