"""meshlib doctor as an init container has it: its checks of the cluster, on a real API server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from meshlib.cli.app import meshlib
from meshlib.cli.doctor import cluster, reach
from meshlib.cli.doctor.cluster import check_cluster
from meshlib.cli.doctor.findings import Finding, Level
from meshlib.cli.doctor.together import Asked, examine_cluster
from meshlib.model.target import TargetDefaults
from meshlib.runtime.config import load_config
from tests.components.backends import Backends
from tests.components.kube import READER_RULES, KubeCluster
from tests.components.pages import all_blocks
from tests.components.silent import silent_address

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "HOSTNAME": "web-1"}
LOOKING = [
    {"apiGroups": [""], "resources": ["pods", "services", "namespaces"], "verbs": ["get"]},
    {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list"]},
]


class Place:
    """A namespace with a Service ``orders``, and the service account ``app`` that may discover it."""

    def __init__(self, kube: KubeCluster, namespace: str, folder: Path) -> None:
        self.kube, self.namespace = kube, namespace
        self.token = kube.service_account(namespace, "app")
        kube.grant(namespace, "app", READER_RULES)
        self.kubeconfig = str(kube.write_kubeconfig(folder / "config", self.token, namespace))
        kube.create_service(namespace, "orders", port=80, selector={"app": "orders"})
        self.target = f"k8s:///orders.{namespace}:http"

    def serve(self, *addresses: str) -> None:
        by_port: dict[str, list[str]] = {}
        for address in addresses:
            host, _, port = address.rpartition(":")
            by_port.setdefault(port, []).append(host)
        for port, hosts in by_port.items():
            ports = [{"name": "http", "port": int(port), "protocol": "TCP"}]
            self.kube.put_slice(self.namespace, f"orders-{port}", "orders", hosts, ports)

    def policy(self, name: str, direction: str, selector: dict[str, Any]) -> None:
        self.kube.request(
            "POST",
            f"/apis/networking.k8s.io/v1/namespaces/{self.namespace}/networkpolicies",
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {"podSelector": selector, "policyTypes": [direction]},
            },
        )

    def pod(self, *containers: str, annotations: dict[str, str] | None = None) -> None:
        self.kube.request(
            "POST",
            f"/api/v1/namespaces/{self.namespace}/pods",
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "web-1", "labels": {"app": "web"}, "annotations": annotations or {}},
                "spec": {"containers": [{"name": name, "image": "example.invalid/x"} for name in containers]},
            },
        )

    def look(self, *targets: str, environ: dict[str, str] | None = None, **settings: Any) -> list[Finding]:
        config = load_config(
            {
                "discovery": {"k8s": {"kubeconfig": self.kubeconfig}},
                "address": {"allow_loopback": True},
                "sync_timeout": 30,
                **settings,
            },
            environ={},
        )
        asked = Asked((self.namespace,), targets)
        defaults = TargetDefaults(namespace=self.namespace)
        return asyncio.run(examine_cluster(config, defaults, POD if environ is None else environ, asked))


@pytest.fixture
def place(
    kube_v1: KubeCluster,
    namespace: Callable[[KubeCluster], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    monkeypatch.setattr(cluster, "TIMEOUT", 60.0)  # a slow machine is not what is tested
    monkeypatch.setattr(reach, "SYNC", 60.0)
    monkeypatch.setattr(reach, "CONNECT", 60.0)
    return Place(kube_v1, namespace(kube_v1), tmp_path)


def told(findings: list[Finding], area: str, level: Level | None = None) -> str:
    return "\n".join(
        f"{one.what} | {one.fix}" for one in findings if one.area == area and level in (None, one.level)
    )


def test_all_is_well(place: Place, backends: Backends) -> None:
    """Version, clocks, token, rights and the endpoints of the target: nothing lacks."""
    place.serve(*(one.address for one in backends.http(3)))
    found = place.look(place.target, environ={})
    assert [one for one in found if one.level is Level.LACK] == []
    assert "our clock and the API server's agree" in told(found, "clock", Level.OK)
    assert "our token is valid for" in told(found, "clock", Level.OK)
    assert "Kubernetes 1." in told(found, "kubernetes", Level.OK)
    assert "3 endpoints, 3 tried, all connected" in told(found, "targets", Level.OK)
    assert "3 are planned" in told(found, "limits")


@pytest.mark.parametrize("hours", [-2, 2])
def test_our_clock_is_wrong(place: Place, hours: int) -> None:
    """Two hours off, beside the real server's Date: said in both directions, and what it does to the token."""
    settings = {"kubeconfig": place.kubeconfig}
    wall = lambda: time.time() + hours * 3600  # noqa: E731 - a clock, for one call
    found = asyncio.run(check_cluster(settings, {}, [place.namespace], wall=wall))
    lacks = told(found, "clock", Level.LACK)
    assert ("ahead of" if hours > 0 else "behind") in lacks
    assert ("our token expired" if hours > 0 else "our token is valid only in") in lacks


def test_another_mesh_that_has_not_started(place: Place) -> None:
    """By the pod's own manifest, for an init container; not allowed to read it is a note."""
    assert "could not be read" in told(place.look(), "mesh", Level.NOTE)
    place.kube.grant(place.namespace, "app", LOOKING)
    place.pod("app", "istio-proxy")
    assert "an Istio sidecar is in this pod: meshlib stands back" in told(place.look(), "mesh", Level.NOTE)
    assert "double balancing: an Istio sidecar" in told(place.look(sidecar="ignore"), "mesh", Level.NOTE)
    assert told(place.look(environ={}), "mesh") == ""


def test_an_ambient_mesh(place: Place) -> None:
    """By the annotation of the pod, else the label of the namespace; with how to let meshlib see it."""
    place.kube.grant(place.namespace, "app", LOOKING)
    place.pod("app")
    assert "no other mesh" in told(place.look(), "mesh", Level.OK)
    path = f"/api/v1/namespaces/{place.namespace}"
    headers = {"Content-Type": "application/merge-patch+json"}
    label = {"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}}
    place.kube.request("PATCH", path, label, headers=headers)
    found = told(place.look(), "mesh", Level.NOTE)
    assert "label of the namespace" in found
    assert "mountPath: /etc/podinfo" in found
    annotation = {"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}}
    place.kube.request("PATCH", f"{path}/pods/web-1", annotation, headers=headers)
    assert "an Istio ambient mesh handles" in told(place.look(), "mesh", Level.NOTE)


def test_connections_that_are_dropped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a NetworkPolicy: a lack, with the policies that may be it where they may be read."""
    monkeypatch.setattr(reach, "CONNECT", 0.5)  # it is dropped however long one waits
    with silent_address() as address:
        place.serve(address)
        blind = told(place.look(place.target), "targets", Level.LACK)
        place.kube.grant(place.namespace, "app", LOOKING)
        place.pod("app")
        place.policy("no-egress", "Egress", {"matchLabels": {"app": "web"}})
        place.policy("only-orders", "Ingress", {"matchLabels": {"app": "orders"}})
        place.policy("of-others", "Egress", {"matchLabels": {"app": "stock"}})
        found = told(place.look(place.target), "targets", Level.LACK)
    assert f"1 of 1 endpoints drop connections (no answer from {address})" in blind
    assert "NetworkPolicies could not be read here" in blind
    space = place.namespace
    assert f"may stand in between: {space}/no-egress (egress), {space}/only-orders (ingress)\n" in found


def test_a_service_behind_a_service(place: Place) -> None:
    """A slice that lists another Service's address: kube-proxy would balance once more. (Nothing is connected to.)"""
    other = place.kube.create_service(place.namespace, "stock", port=80)
    seen: dict[str, str] = {}

    async def further(_: Any, cluster: Any) -> list[Finding]:
        seen.update(cluster.vips)
        return []

    asyncio.run(check_cluster({"kubeconfig": place.kubeconfig}, {}, [place.namespace], further))
    assert seen[other["spec"]["clusterIP"]] == f"{place.namespace}/stock"


def test_nobody_is_there(place: Place) -> None:
    """A Service without endpoints, and one that does not exist."""
    found = told(place.look(place.target, f"k8s:///nobody.{place.namespace}:80"), "targets", Level.LACK)
    assert "no endpoint that may receive traffic" in found
    assert f"meshlib resolve k8s:///nobody.{place.namespace}:80" in found


def test_as_an_init_container(place: Place, backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container of docs/doctor.md, with its arguments: 0 lets the pod start, 1 holds it, JSON says why."""
    text = next(
        b.text for b in all_blocks() if b.page == "docs/doctor.md" and b.text.startswith("initContainers:")
    )
    (container,) = yaml.safe_load(text)["initContainers"]
    words = [word.replace("k8s:///orders.shop:http", place.target) for word in container["args"]]
    assert place.target in words
    monkeypatch.setenv("MESHLIB_DISCOVERY", json.dumps({"k8s": {"kubeconfig": place.kubeconfig}}))
    monkeypatch.setenv("MESHLIB_ADDRESS_ALLOW_LOOPBACK", "true")
    monkeypatch.setenv("MESHLIB_SYNC_TIMEOUT", "30")
    result = CliRunner().invoke(meshlib, words)
    found = json.loads(result.stdout)
    assert result.exit_code == 1, result.output
    assert [one["area"] for one in found["findings"] if one["level"] == "lack"] == ["targets"]
    place.serve(*(one.address for one in backends.http(2)))
    result = CliRunner().invoke(meshlib, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["lacks"] == 0
