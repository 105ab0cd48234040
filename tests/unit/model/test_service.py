"""Services: decoding, and which port a caller means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshlib.errors import DataError, UnknownPort
from meshlib.model.decode_service import service_from_json, service_from_object
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType, TrafficPolicy, resolve_port


def manifest(metadata: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    meta = {"name": "orders", "namespace": "shop", **(metadata or {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


FULL = manifest(
    {
        "uid": "u1",
        "resourceVersion": "42",
        "labels": {"team": "a", "service.kubernetes.io/service-proxy-name": "meshlib"},
        "annotations": {"meshlib.dev/picker": "maglev", "kubectl.kubernetes.io/last-applied": "{}"},
        "managedFields": [{"manager": "kubectl"}],
    },
    type="LoadBalancer",
    clusterIP="10.96.0.10",
    clusterIPs=["10.96.0.10", "FD00:96:0::10"],
    ipFamilies=["IPv4", "IPv6"],
    ports=[
        {
            "name": "http",
            "port": 80,
            "targetPort": "web",
            "nodePort": 30080,
            "appProtocol": "kubernetes.io/h2c",
        },
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
    ],
    selector={"app": "orders"},
    sessionAffinity="ClientIP",
    sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
    internalTrafficPolicy="Local",
    externalTrafficPolicy="Local",
    publishNotReadyAddresses=True,
    externalIPs=["198.51.100.4"],
    allocateLoadBalancerNodePorts=True,
)


def test_every_field() -> None:
    """All fields that either path needs are read; the rest is ignored; annotations only below meshlib.dev/."""
    expected = Service(
        key=ServiceKey("shop", "orders"),
        type=ServiceType.LOAD_BALANCER,
        ports=(
            ServicePort("http", 80, "TCP", "web", 30080, "kubernetes.io/h2c"),
            ServicePort("dns", 53, "UDP", 5353),
        ),
        cluster_ips=("10.96.0.10", "fd00:96::10"),
        ip_families=(4, 6),
        session_affinity_seconds=60,
        internal_traffic_policy=TrafficPolicy.LOCAL,
        external_traffic_policy=TrafficPolicy.LOCAL,
        publish_not_ready_addresses=True,
        has_selector=True,
        uid="u1",
        resource_version="42",
        labels=(("service.kubernetes.io/service-proxy-name", "meshlib"), ("team", "a")),
        annotations=(("meshlib.dev/picker", "maglev"),),
        external_ips=("198.51.100.4",),
        proxy_name="meshlib",
    )
    assert service_from_json(json.dumps(FULL).encode()) == expected
    assert service_from_object(FULL) == expected


def test_least_service() -> None:
    """A Service with nothing but a name is a ClusterIP Service without ports, in namespace default."""
    service = service_from_object({"metadata": {"name": "x"}})
    assert service.key == ServiceKey("default", "x")
    assert (service.type, service.ports, service.has_selector) == (ServiceType.CLUSTER_IP, (), False)
    assert service.internal_traffic_policy is TrafficPolicy.CLUSTER
    assert service.session_affinity_seconds == 0
    nulls = {
        "metadata": {"name": "x", "labels": None, "annotations": None},
        "spec": {"ports": None, "selector": None},
    }
    assert service_from_object(nulls) == service


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({"clusterIP": "None"}, ServiceType.HEADLESS),
        ({"clusterIP": "None", "type": "ClusterIP", "clusterIPs": ["None"]}, ServiceType.HEADLESS),
        ({"type": "NodePort"}, ServiceType.NODE_PORT),
        ({"type": "ExternalName", "externalName": "API.example.com"}, ServiceType.EXTERNAL_NAME),
    ],
)
def test_types(spec: dict[str, Any], kind: ServiceType) -> None:
    """The type follows spec.type, and clusterIP None makes it headless."""
    service = service_from_object(manifest(**spec))
    assert service.type is kind
    assert service.headless is (kind is ServiceType.HEADLESS)
    assert service.cluster_ips == ()
    assert service.external_name == ("api.example.com" if kind is ServiceType.EXTERNAL_NAME else "")


def test_defaults_of_older_servers() -> None:
    """Session affinity lasts three hours when no time is given; the family is that of an only clusterIP."""
    service = service_from_object(manifest(sessionAffinity="ClientIP", clusterIP="fd00::1"))
    assert (service.session_affinity_seconds, service.ip_families, service.cluster_ips) == (
        10800,
        (6,),
        ("fd00::1",),
    )


@pytest.mark.parametrize(
    ("obj", "word"),
    [
        (None, "Service"),
        ([], "Service"),
        ({}, "metadata"),
        ({"metadata": {}}, "name"),
        ({"metadata": {"name": "../x"}}, "not a Service name"),
        ({"metadata": {"name": "x", "namespace": "*"}}, "not a Service name"),
        (manifest(type="Magic"), "spec.type"),
        (manifest(ports=[{"port": 0}]), "spec.ports[0].port"),
        (manifest(ports=[{"port": 80}, {"port": 65536, "name": "b"}]), "spec.ports[1].port"),
        (manifest(ports=[{"port": "80"}]), "ports[0].port"),
        (manifest(ports=[{"port": 80, "protocol": "tcp"}]), "protocol"),
        (manifest(ports=[{"port": 80, "name": "Ä"}]), "name"),
        (manifest(ports={}), "ports"),
        (manifest(clusterIP="evil.com/#"), "spec.clusterIP"),
        (manifest(clusterIPs=["127.1"]), "spec.clusterIP"),
        (manifest(ipFamilies=["IPv5"]), "ipFamilies"),
        (manifest(type="ExternalName"), "externalName"),
        (manifest(type="ExternalName", externalName="127.0.0.1"), "externalName"),
        (manifest(sessionAffinity="Cookie"), "sessionAffinity"),
        (
            manifest(
                sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 86401}}
            ),
            "timeoutSeconds",
        ),
        (manifest(internalTrafficPolicy="local"), "internalTrafficPolicy"),
        (manifest(externalTrafficPolicy=1), "externalTrafficPolicy"),
    ],
)
def test_unusable_service_names_the_place(obj: object, word: str) -> None:
    """A Service that cannot be used raises DataError naming the field, from JSON and from objects alike."""
    with pytest.raises(DataError) as from_object:
        service_from_object(obj)
    with pytest.raises(DataError) as from_json:
        service_from_json(json.dumps(obj).encode())
    assert word in str(from_object.value)
    assert word in str(from_json.value)


SHOP = Service(
    ServiceKey("shop", "orders"),
    ports=(
        ServicePort("dns-udp", 53, "UDP"),
        ServicePort("dns", 53),
        ServicePort("http", 80, target_port=8080),
    ),
)
HEADLESS = Service(ServiceKey("shop", "db"), type=ServiceType.HEADLESS, ports=(ServicePort("pg", 5432),))


def test_port_by_number_name_and_default() -> None:
    """A number is a Service port (TCP before UDP), a text its name, None the only one."""
    assert resolve_port(SHOP, 80).name == "http"
    assert resolve_port(SHOP, "http").port == 80
    assert resolve_port(SHOP, 53).name == "dns"
    assert resolve_port(SHOP, "dns-udp").protocol == "UDP"
    assert resolve_port(HEADLESS, None).name == "pg"


@pytest.mark.parametrize(
    ("service", "port"), [(SHOP, 8080), (SHOP, "grpc"), (SHOP, None), (Service(SHOP.key), None)]
)
def test_unknown_port_lists_what_exists(service: Service, port: int | str | None) -> None:
    """The error names the Service and every port that it has."""
    with pytest.raises(UnknownPort) as caught:
        resolve_port(service, port)
    text = str(caught.value)
    assert "shop/orders" in text
    assert all(str(entry) in text for entry in service.ports)
    assert service.ports or "none" in text


def test_headless_by_host_name_takes_the_pod_port() -> None:
    """Decision D2: by host name a headless Service takes any number verbatim, a target only its listed ports."""
    port = resolve_port(HEADLESS, 9999, by_host=True)
    assert (port.port, port.verbatim) == (9999, True)
    assert resolve_port(HEADLESS, "pg", by_host=True).verbatim is False
    with pytest.raises(UnknownPort):
        resolve_port(HEADLESS, 9999)
    with pytest.raises(UnknownPort):
        resolve_port(SHOP, 9999, by_host=True)
