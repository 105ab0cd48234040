"""Decode a Kubernetes Service, from JSON or from the objects that a manifest holds."""

from __future__ import annotations

from sys import intern
from typing import NoReturn

from meshlib.errors import DataError
from meshlib.model.address import canonical, family
from meshlib.model.names import MAX_PORT, is_host_name, is_label
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType, TrafficPolicy
from meshlib.model.wire import Json, ServiceSpec, WireService, WireServicePort, converted, typed

PROTOCOLS = frozenset({"TCP", "UDP", "SCTP"})
ANNOTATION_PREFIX = "meshlib.dev/"
HEADLESS_LABEL = "service.kubernetes.io/headless"
PROXY_LABEL = "service.kubernetes.io/service-proxy-name"
_DEFAULT_AFFINITY = 10800  # seconds; the API's default for sessionAffinityConfig.clientIP.timeoutSeconds
_MAX_AFFINITY = 86400
_FAMILIES = {"IPv4": 4, "IPv6": 6}


def service_from_json(raw: Json) -> Service:
    """Decode one Service; raises DataError naming the field. A Service is used as a whole or not at all."""
    return _service(typed(raw, WireService, "Service"))


def service_from_object(obj: object) -> Service:
    """The same from dicts and lists (YAML, or JSON that is already decoded)."""
    return _service(converted(obj, WireService, "Service"))


def _service(wire: WireService) -> Service:
    meta, spec = wire.metadata, wire.spec or ServiceSpec()
    if not meta.name or not is_label(meta.name) or not is_label(meta.namespace or "default"):
        raise DataError(
            "Service",
            f"metadata.name {meta.name!r:.80} in namespace {meta.namespace!r:.80} is not a Service name",
        )
    # One object for what thousands of Services and their slices have in common.
    key = ServiceKey(intern(meta.namespace or "default"), intern(meta.name))
    where = f"Service {key}"
    labels = meta.labels or {}
    cluster_ips = _cluster_ips(spec, where)
    return Service(
        key=key,
        type=_type(spec, labels, where),
        ports=tuple([_port(port, where, n) for n, port in enumerate(spec.ports or ())]),
        cluster_ips=cluster_ips,
        ip_families=_families(spec, cluster_ips, where),
        external_name=_external_name(spec, where),
        session_affinity_seconds=_affinity(spec, where),
        internal_traffic_policy=_policy(spec.internal_traffic_policy, where, "internalTrafficPolicy"),
        external_traffic_policy=_policy(spec.external_traffic_policy, where, "externalTrafficPolicy"),
        publish_not_ready_addresses=bool(spec.publish_not_ready_addresses),
        has_selector=bool(spec.selector),
        uid=meta.uid or "",
        resource_version=meta.resource_version or "",
        labels=tuple(sorted(labels.items())),
        annotations=tuple(
            sorted((k, v) for k, v in (meta.annotations or {}).items() if k.startswith(ANNOTATION_PREFIX))
        ),
        external_ips=tuple(spec.external_ips or ()),
        proxy_name=labels.get(PROXY_LABEL, ""),
        load_balancer_ips=_ingress(wire),
        source_ranges=tuple([text.strip() for text in spec.load_balancer_source_ranges or ()]),
        health_check_node_port=_health_port(spec.health_check_node_port, where),
        created=meta.creation_timestamp or "",
    )


def _ingress(wire: WireService) -> tuple[str, ...]:
    """Addresses whose traffic may end on the node. ``Proxy`` wants it to pass the load balancer (KEP-1860)."""
    if wire.status is None or wire.status.load_balancer is None:
        return ()
    listed = wire.status.load_balancer.ingress
    if not listed:
        return ()
    return tuple(entry.ip for entry in listed if entry.ip and entry.ip_mode in (None, "", "VIP"))


def _health_port(number: int | None, where: str) -> int:
    if not number:
        return 0
    if not 1 <= number <= MAX_PORT:
        _fail(f"{where} spec.healthCheckNodePort", number, "a port (1-65535)")
    return number


def _fail(where: str, value: object, expected: str) -> NoReturn:
    raise DataError(where, f"{value!r:.80} is not {expected}")


def _type(spec: ServiceSpec, labels: dict[str, str], where: str) -> ServiceType:
    if spec.type == "ExternalName":
        return ServiceType.EXTERNAL_NAME
    # The label makes kube-proxy leave the Service alone, so its clusterIP answers nowhere: the pods are all
    # there is.
    if spec.cluster_ip == "None" or HEADLESS_LABEL in labels:
        return ServiceType.HEADLESS
    match spec.type or "ClusterIP":
        case "ClusterIP":
            return ServiceType.CLUSTER_IP
        case "NodePort":
            return ServiceType.NODE_PORT
        case "LoadBalancer":
            return ServiceType.LOAD_BALANCER
        case other:
            _fail(f"{where} spec.type", other, "a type of Service")


def _port(port: WireServicePort, where: str, number: int) -> ServicePort:
    if not 1 <= port.port <= MAX_PORT:
        _fail(f"{where} spec.ports[{number}].port", port.port, "a port (1-65535)")
    protocol = port.protocol or "TCP"
    if protocol not in PROTOCOLS:
        _fail(f"{where} spec.ports[{number}].protocol", protocol, "TCP, UDP or SCTP")
    if port.name and not is_label(port.name):
        _fail(f"{where} spec.ports[{number}].name", port.name, "a port name")
    return ServicePort(
        name=intern(port.name or ""),
        port=port.port,
        protocol=intern(protocol),
        target_port=port.target_port,
        node_port=port.node_port or 0,
        app_protocol=port.app_protocol or "",
    )


def _cluster_ips(spec: ServiceSpec, where: str) -> tuple[str, ...]:
    listed = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    try:
        return tuple(canonical(text) for text in listed if text and text != "None")
    except DataError as error:
        raise DataError(f"{where} spec.clusterIP", str(error)) from None


def _families(spec: ServiceSpec, cluster_ips: tuple[str, ...], where: str) -> tuple[int, ...]:
    if not spec.ip_families:  # an object of an API server before dual-stack: the family of its address
        return tuple(dict.fromkeys(map(family, cluster_ips)))
    for name in spec.ip_families:
        if name not in _FAMILIES:
            _fail(f"{where} spec.ipFamilies", name, "IPv4 or IPv6")
    return tuple(dict.fromkeys(_FAMILIES[name] for name in spec.ip_families))


def _external_name(spec: ServiceSpec, where: str) -> str:
    if spec.type != "ExternalName":
        return ""
    name = (spec.external_name or "").lower()
    if not is_host_name(name):
        _fail(f"{where} spec.externalName", spec.external_name, "a host name")
    return name


def _affinity(spec: ServiceSpec, where: str) -> int:
    match spec.session_affinity or "None":
        case "None":
            return 0
        case "ClientIP":
            config = spec.session_affinity_config
            seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
            if seconds is None:
                return _DEFAULT_AFFINITY
            if not 1 <= seconds <= _MAX_AFFINITY:
                _fail(
                    f"{where} spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    seconds,
                    f"1 to {_MAX_AFFINITY}",
                )
            return seconds
        case other:
            _fail(f"{where} spec.sessionAffinity", other, "None or ClientIP")


def _policy(text: str | None, where: str, field: str) -> TrafficPolicy:
    match text or "Cluster":
        case "Cluster":
            return TrafficPolicy.CLUSTER
        case "Local":
            return TrafficPolicy.LOCAL
        case other:
            _fail(f"{where} spec.{field}", other, "Cluster or Local")
