"""The facts of a whole cluster from a real API server: what the node agent is told, and what it is never told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshlib.agent.compile import compile_desired
from meshlib.agent.desired import Action
from meshlib.agent.settings import AgentSettings
from meshlib.errors import AccessDenied
from meshlib.model.events import SourceFailed
from meshlib.model.service import ServiceKey
from tests.components.process import wait_for
from tests.integration.cluster_support import cluster

Namespace = Callable[[Any], str]


@pytest.mark.acceptance(102)
def test_everything_is_told_at_once_and_then_what_changes(
    kube_v1beta1: Any, namespace: Namespace, tmp_path: Path
) -> None:
    """With the real controllers: one complete change first, holding Services and endpoints; then single Services."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    kube.create_node("node-a", zone="zone-1", ip="192.0.2.10")
    made = kube.create_service(ns, "orders")
    kube.create_pod(ns, "orders-1", {"app": "orders"}, "10.0.0.1")
    kube.wait_endpoints(ns, "orders", ["10.0.0.1"])
    with cluster(kube, tmp_path, "node-a") as (_, source, told):
        told.wait(ns, "orders", {"10.0.0.1"})
        first = told.changes[0]
        assert first.complete
        assert first.services[ServiceKey(ns, "orders")].slices
        assert first.node is not None
        assert (first.node.name, first.node.zone, first.node.addresses) == (
            "node-a",
            "zone-1",
            ("192.0.2.10",),
        )
        service = told.facts.services[ServiceKey(ns, "orders")].service
        assert service is not None
        assert service.created == made["metadata"]["creationTimestamp"]

        before = len(told.changes)
        kube.create_service(ns, "fresh", selector={"app": "orders"})
        told.wait(ns, "fresh", {"10.0.0.1"})
        kube.create_pod(ns, "orders-2", {"app": "orders"}, "10.0.0.2")
        told.wait(ns, "orders", {"10.0.0.1", "10.0.0.2"})
        assert all(not change.complete for change in told.changes[before:])
        triggers = [change.triggers.get(ServiceKey(ns, "fresh"), ()) for change in told.changes[before:]]
        assert any(abs(time.time() - when) < 60 for times in triggers for when in times)
        kube.delete_pod(ns, "orders-1")
        told.wait(ns, "orders", {"10.0.0.2"})
        kube.request("DELETE", f"/api/v1/namespaces/{ns}/services/orders")
        told.wait(ns, "orders", None)
        assert source.describe()["api_version"] == "discovery.k8s.io/v1beta1"
        assert source.live


@pytest.mark.acceptance(33)
def test_the_own_node_is_followed(kube_v1: Any, namespace: Namespace, tmp_path: Path) -> None:
    """Zone label, pod ranges and the autoscaler's taint reach the facts; a deleted Node keeps serving as leaving."""
    kube, ns = kube_v1, namespace(kube_v1)
    name = f"node-{ns}"
    kube.create_node(name, zone="zone-1", ip="192.0.2.11")
    with cluster(kube, tmp_path, name) as (_, _, told):
        wait_for(lambda: told.facts.node.zone == "zone-1", what="the zone")
        patch = {"headers": {"content-type": "application/merge-patch+json"}}
        zone = {"metadata": {"labels": {"topology.kubernetes.io/zone": "zone-2"}}}
        kube.request("PATCH", f"/api/v1/nodes/{name}", zone, **patch)
        wait_for(lambda: told.facts.node.zone == "zone-2", what="the new zone")
        assert not told.facts.node.leaving
        taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule", "value": "1"}
        spec = {"spec": {"podCIDRs": ["10.1.0.0/24"], "podCIDR": "10.1.0.0/24", "taints": [taint]}}
        kube.request("PATCH", f"/api/v1/nodes/{name}", spec, **patch)
        wait_for(lambda: told.facts.node.leaving, what="the taint")
        assert told.facts.node.pod_ranges == ("10.1.0.0/24",)
        kube.request("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, **patch)
        wait_for(lambda: not told.facts.node.leaving, what="the taint to go")
        kube.request("DELETE", f"/api/v1/nodes/{name}")
        wait_for(lambda: told.facts.node.leaving, what="the deletion")
        assert told.facts.node.addresses == ("192.0.2.11",)


@pytest.mark.acceptance(17)
def test_an_endpoint_that_moves_between_slices_never_vanishes(
    kube_v1: Any, namespace: Namespace, tmp_path: Path
) -> None:
    """Removed from one slice and added to another in a second write: told at every moment; a real removal is told."""
    kube, ns = kube_v1, namespace(kube_v1)
    kube.create_service(ns, "orders", selector={})
    kube.put_slice(ns, "a", "orders", ["10.0.0.1", "10.0.0.2"])
    kube.put_slice(ns, "b", "orders", ["10.0.0.3"])
    with cluster(kube, tmp_path) as (_, _, told):
        told.wait(ns, "orders", {"10.0.0.1", "10.0.0.2", "10.0.0.3"})
        start = len(told.history)
        for _ in range(3):
            kube.put_slice(ns, "a", "orders", ["10.0.0.1"])
            kube.put_slice(ns, "b", "orders", ["10.0.0.3", "10.0.0.2"])
            kube.put_slice(ns, "b", "orders", ["10.0.0.3"])
            kube.put_slice(ns, "a", "orders", ["10.0.0.1", "10.0.0.2"])
        kube.put_slice(ns, "a", "orders", ["10.0.0.2"])
        told.wait(ns, "orders", {"10.0.0.2", "10.0.0.3"})
        for facts in told.history[start:]:
            held = told.addresses(ns, "orders", facts)
            assert held is not None
            assert {"10.0.0.2", "10.0.0.3"} <= held


@pytest.mark.acceptance(25)
def test_slices_without_a_service_name_and_of_headless_services_are_left_out(
    kube_v1: Any, namespace: Namespace, tmp_path: Path
) -> None:
    """An empty service-name label is refused with a word; slices labelled headless stay at the server."""
    kube, ns = kube_v1, namespace(kube_v1)
    kube.create_service(ns, "orders", selector={})
    kube.create_service(ns, "quiet", selector={}, headless=True)
    kube.put_slice(ns, "nameless", "", ["10.0.0.9"])
    kube.put_slice(ns, "quiet", "quiet", ["10.0.0.8"], labels={"service.kubernetes.io/headless": ""})
    kube.put_slice(ns, "a", "orders", ["10.0.0.1"])
    with cluster(kube, tmp_path) as (loop, source, told):
        told.wait(ns, "orders", {"10.0.0.1"})
        assert told.addresses(ns, "quiet") == set()
        assert any("empty label" in getattr(event, "reason", "") for event in loop.events)
        assert source.describe()["skipped"] >= 1


@pytest.mark.acceptance(1, 2)
def test_proxy_labels_come_and_go_on_a_live_service(
    kube_v1beta1: Any, namespace: Namespace, tmp_path: Path
) -> None:
    """From the API server to Desired: another proxy's label takes the frontends away, without it they are back."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    kube.create_node("node-a")
    kube.create_service(ns, "orders")
    kube.create_pod(ns, "orders-1", {"app": "orders"}, "10.0.0.1")
    kube.wait_endpoints(ns, "orders", ["10.0.0.1"])
    path, patch = f"/api/v1/namespaces/{ns}/services/orders", {"content-type": "application/merge-patch+json"}

    with cluster(kube, tmp_path, "node-a") as (_, _, told):

        def served() -> bool:
            desired = compile_desired(told.facts, AgentSettings(), 4)
            mine = [each for each in desired.frontends if each.owner.service == ServiceKey(ns, "orders")]
            return [each.route.action for each in mine] == [Action.FORWARD]

        wait_for(served, what="the frontend")
        for label in ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"):
            kube.request("PATCH", path, {"metadata": {"labels": {label: "x"}}}, headers=patch)
            wait_for(lambda: not served(), what=f"{label} to take effect")
            kube.request("PATCH", path, {"metadata": {"labels": {label: None}}}, headers=patch)
            wait_for(served, what=f"the frontend without {label}")


@pytest.mark.acceptance(100)
def test_an_api_server_that_goes_away_takes_nothing_with_it(
    own_kube: Callable[..., Any], tmp_path: Path
) -> None:
    """Killed and started again: nothing is told meanwhile, and afterwards the next change as if nothing had been."""
    kube = own_kube("v1", controllers=False)
    kube.create_namespace("shop")
    kube.create_service("shop", "orders", selector={})
    kube.put_slice("shop", "a", "orders", ["10.0.0.1"])
    with cluster(kube, tmp_path) as (loop, source, told):
        told.wait("shop", "orders", {"10.0.0.1"})
        kube.kill_api()
        wait_for(
            lambda: any(isinstance(each, SourceFailed) for each in loop.events), what="the failure to be told"
        )
        assert told.addresses("shop", "orders") == {"10.0.0.1"}
        assert source.describe()["stale"]
        kube.start_api()
        kube.put_slice("shop", "a", "orders", ["10.0.0.1", "10.0.0.2"])
        told.wait("shop", "orders", {"10.0.0.1", "10.0.0.2"})
        assert sum(change.complete for change in told.changes) == 1
        assert all(told.addresses("shop", "orders", facts) for facts in told.history)


@pytest.mark.acceptance(102)
def test_nothing_is_told_without_permission_for_slices(own_kube: Callable[..., Any], tmp_path: Path) -> None:
    """Services readable, slices not: nothing is told (an unsynced view is no empty one), and the remedy is named."""
    kube = own_kube("v1", controllers=True)
    kube.create_service("default", "orders", selector={})
    kube.put_slice("default", "a", "orders", ["10.0.0.1"])
    token = kube.service_account("default", "agent")

    def grant(groups: list[dict[str, Any]]) -> None:
        rules = [{**each, "verbs": ["list", "watch"]} for each in groups]
        version = "rbac.authorization.k8s.io/v1"
        kube.apply(
            {"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": "agent"}, "rules": rules}
        )
        kube.apply(
            {
                "apiVersion": version,
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "agent"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "agent"},
                "subjects": [{"kind": "ServiceAccount", "name": "agent", "namespace": "default"}],
            }
        )

    services = {"apiGroups": [""], "resources": ["services"]}
    slices = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"]}
    grant([services])
    with cluster(kube, tmp_path, "node-a", token) as (loop, source, told):

        def denied() -> list[SourceFailed]:
            failures = [each for each in loop.events if isinstance(each, SourceFailed)]
            return [each for each in failures if "endpointslices" in str(each.error)]

        failed = wait_for(denied, timeout=30, what="the refusal")
        assert isinstance(failed[0].error, AccessDenied)
        assert "ClusterRole" in failed[0].error.fix
        wait_for(lambda: source.describe()["services"] > 0, what="the Services")
        assert not told.changes
        grant([services, slices])
        told.wait("default", "orders", {"10.0.0.1"})
        # The Node stays forbidden: it is known by its name.
        assert told.facts.node.name == "node-a"


def test_an_api_without_slices_gives_the_same_facts(own_kube: Callable[..., Any], tmp_path: Path) -> None:
    """No discovery.k8s.io at all: Endpoints of the real controller, with the same words."""
    kube = own_kube("endpoints")
    kube.create_node("node-a")
    kube.create_service("default", "orders")
    kube.create_pod("default", "orders-1", {"app": "orders"}, "10.0.0.1")
    with cluster(kube, tmp_path, "node-a") as (_, source, told):
        told.wait("default", "orders", {"10.0.0.1"})
        assert source.describe()["api_version"] == "v1 Endpoints"
        kube.set_pod_ready("default", "orders-1", False)

        def unready() -> bool:
            slices = told.facts.services[ServiceKey("default", "orders")].slices
            return not any(each.ready for slice_ in slices for each in slice_.endpoints)

        wait_for(unready, what="the endpoint to be not ready")
