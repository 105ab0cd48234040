"""The command line against a real Kubernetes API server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from meshlib.cli.app import meshlib
from tests.components.kube import KubeCluster


def run(*arguments: str) -> Result:
    return CliRunner().invoke(meshlib, list(arguments))


def apply(kube: KubeCluster, manifests: str) -> list[dict[str, Any]]:
    """What kubectl apply does for us: every document is accepted by the real API server."""
    plurals = {"Role": "roles", "RoleBinding": "rolebindings", "NetworkPolicy": "networkpolicies"}
    created = []
    for document in yaml.safe_load_all(manifests):
        path = f"/apis/{document['apiVersion']}/namespaces/{document['metadata']['namespace']}"
        created.append(kube.request("POST", f"{path}/{plurals[document['kind']]}", document))
    return created


@pytest.fixture
def caller(
    kube_v1beta1: KubeCluster, namespace: Callable[[KubeCluster], str], tmp_path: Path
) -> tuple[str, str]:
    """(namespace, kubeconfig of its service account ``app``, which may do nothing yet)."""
    name = namespace(kube_v1beta1)
    token = kube_v1beta1.service_account(name, "app")
    return name, str(kube_v1beta1.write_kubeconfig(tmp_path / "config", token, name))


class Watching:
    """``meshlib resolve --watch -o json`` as a program, ended with Ctrl-C. The test's own time limit ends a wait."""

    def __init__(self, target: str, kubeconfig: str) -> None:
        command = [sys.executable, "-m", "meshlib", "resolve", target, "-w", "-o", "json"]
        self.running = subprocess.Popen(
            [*command, "--kubeconfig", kubeconfig], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            self.running.send_signal(signal.SIGINT)
            _, errors = self.running.communicate(timeout=20)
        finally:
            if self.running.poll() is None:
                self.running.kill()
                self.running.communicate()
        if failed is None:
            assert (self.running.returncode, errors) == (0, "")

    def read(self) -> dict[str, Any]:
        """The next state."""
        assert self.running.stdout is not None
        found: dict[str, Any] = json.loads(self.running.stdout.readline())
        return found

    def until(self, reason: str, *eligible: str) -> dict[str, Any]:
        """Read states until the one with these endpoints and this reason."""
        while True:
            found = self.read()
            addresses = [row["address"] for row in found["endpoints"] if row["eligible"]]
            if sorted(addresses) == sorted(eligible) and reason in found["reason"]:
                return found


def findings(kubeconfig: str, namespace: str, *more: str) -> tuple[dict[str, Any], int]:
    result = run("doctor", "-o", "json", "--kubeconfig", kubeconfig, "-n", namespace, *more)
    return json.loads(result.output), result.exit_code


def kubernetes_lacks(found: dict[str, Any]) -> list[dict[str, str]]:
    return [one for one in found["findings"] if one["area"] == "kubernetes" and one["level"] == "lack"]


def test_rbac_gives_exactly_what_discovery_needs(kube_v1beta1: KubeCluster, caller: tuple[str, str]) -> None:
    """Before: 403 and doctor says so. The printed manifests are accepted; after them doctor and resolve are content."""
    namespace, kubeconfig = caller
    kube_v1beta1.create_service(namespace, "orders", port=80, selector={})
    kube_v1beta1.put_slice(namespace, "orders-1", "orders", ["10.1.2.3"])
    target = f"k8s:///orders.{namespace}:http"

    (lack,) = kubernetes_lacks(findings(kubeconfig, namespace)[0])
    assert "EndpointSlices and Services" in lack["what"]
    assert run("resolve", target, "--kubeconfig", kubeconfig, "--timeout", "3").exit_code == 3

    printed = run("rbac", "--from", f"{namespace}/app", "--to", f"{namespace}/orders")
    created = apply(kube_v1beta1, printed.stdout)
    assert [one["kind"] for one in created] == ["Role", "RoleBinding", "NetworkPolicy"]

    found, code = findings(kubeconfig, namespace, "--exit-code")
    assert kubernetes_lacks(found) == []
    assert code == (1 if found["lacks"] else 0)
    result = run("resolve", target, "--kubeconfig", kubeconfig, "-o", "json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert [(row["address"], row["port"], row["eligible"]) for row in answer["endpoints"]] == [
        ("10.1.2.3", 8080, True)
    ]
    assert answer["source"]["name"].startswith("kubernetes")


def test_the_fix_that_doctor_prints_is_the_fix(kube_v1beta1: KubeCluster, caller: tuple[str, str]) -> None:
    """Applying doctor's own fix, for the account that the API server named, makes the lack go away."""
    namespace, kubeconfig = caller
    (lack,) = kubernetes_lacks(findings(kubeconfig, namespace)[0])
    manifests = lack["fix"].partition("<<'EOF'\n")[2].removesuffix("EOF")
    apply(kube_v1beta1, manifests)
    assert kubernetes_lacks(findings(kubeconfig, namespace)[0]) == []


def test_a_missing_watch_right_is_found(kube_v1beta1: KubeCluster, caller: tuple[str, str]) -> None:
    """A Role with list alone passes a real list; doctor asks for the watch as well."""
    namespace, kubeconfig = caller
    rules = [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]},
    ]
    kube_v1beta1.grant(namespace, "app", rules)
    (lack,) = kubernetes_lacks(findings(kubeconfig, namespace)[0])
    assert "EndpointSlices in" in lack["what"]
    # Applying it replaces a Role of that name: what was granted already must not be taken away.
    role = next(yaml.safe_load_all(lack["fix"].partition("<<'EOF'\n")[2].removesuffix("EOF")))
    granted = {(*rule["apiGroups"], *rule["resources"]) for rule in role["rules"]}
    assert granted == {("discovery.k8s.io", "endpointslices"), ("", "services")}


def test_a_refused_token_is_told(kube_v1beta1: KubeCluster, tmp_path: Path) -> None:
    """401 is something else than 403, with another fix."""
    kubeconfig = str(kube_v1beta1.write_kubeconfig(tmp_path / "config", "not-a-token"))
    (lack,) = kubernetes_lacks(findings(kubeconfig, "default")[0])
    assert "401" in lack["what"]
    assert "not-a-token" not in json.dumps(lack)


def test_an_unreachable_server_is_told(kube_v1beta1: KubeCluster, tmp_path: Path) -> None:
    """A port where nobody listens: one lack, and how to allow the way."""
    path = kube_v1beta1.write_kubeconfig(tmp_path / "config")
    config = yaml.safe_load(path.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path.write_text(yaml.safe_dump(config))
    (lack,) = kubernetes_lacks(findings(str(path), "default")[0])
    assert "does not answer" in lack["what"]
    assert "NetworkPolicy" in lack["fix"]


def test_resolve_says_why_an_endpoint_gets_nothing(
    kube_v1beta1: KubeCluster, caller: tuple[str, str]
) -> None:
    """Not ready, and refused by the address policy: each with its reason or counted."""
    namespace, kubeconfig = caller
    apply(kube_v1beta1, run("rbac", "--from", f"{namespace}/app", "--to", f"{namespace}/orders").stdout)
    kube_v1beta1.create_service(namespace, "orders", port=80, selector={})
    endpoints = [
        {"addresses": ["10.1.2.3"], "conditions": {"ready": True}},
        {"addresses": ["10.1.2.4"], "conditions": {"ready": False}},
        {"addresses": ["127.0.0.1"], "conditions": {"ready": True}},
    ]
    kube_v1beta1.put_slice(namespace, "orders-1", "orders", endpoints)
    result = run("resolve", f"orders.{namespace}.svc:80", "--kubeconfig", kubeconfig, "-o", "json")
    answer = json.loads(result.output)
    rows = {row["address"]: row for row in answer["endpoints"]}
    assert rows["10.1.2.3"]["eligible"]
    assert not rows["10.1.2.4"]["eligible"]
    assert "not ready" in rows["10.1.2.4"]["reason"]
    assert "127.0.0.1" not in rows
    assert answer["skipped"] >= 1


def test_watch_follows_the_api_server(kube_v1beta1: KubeCluster, caller: tuple[str, str]) -> None:
    """A line for each change that another client makes, until Ctrl-C: added, not ready, gone, Service deleted, back."""
    namespace, kubeconfig = caller
    apply(kube_v1beta1, run("rbac", "--from", f"{namespace}/app", "--to", f"{namespace}/orders").stdout)
    service = kube_v1beta1.create_service(namespace, "orders", port=80, selector={})
    kube_v1beta1.put_slice(namespace, "orders-1", "orders", ["10.1.2.3"])
    with Watching(f"k8s:///orders.{namespace}:http", kubeconfig) as watching:
        watching.until("", "10.1.2.3")
        kube_v1beta1.put_slice(namespace, "orders-1", "orders", ["10.1.2.3", "10.1.2.4"])
        watching.until("", "10.1.2.3", "10.1.2.4")
        waiting = {"addresses": ["10.1.2.3"], "conditions": {"ready": False}}
        kube_v1beta1.put_slice(namespace, "orders-1", "orders", [waiting, "10.1.2.4"])
        watching.until("", "10.1.2.4")
        kube_v1beta1.put_slice(namespace, "orders-1", "orders", [])
        watching.until("no endpoint that may receive traffic")
        kube_v1beta1.delete(service)
        watching.until("there is no Service")
        kube_v1beta1.create_service(namespace, "orders", port=80, selector={})
        kube_v1beta1.put_slice(namespace, "orders-2", "orders", ["10.1.2.5"])
        watching.until("", "10.1.2.5")


def test_watch_shows_that_the_api_server_is_down(
    own_kube: Callable[..., KubeCluster], tmp_path: Path
) -> None:
    """The set stays, and says that it is stale and why; after the restart, with what changed since, it is not."""
    kube = own_kube()
    kube.create_service("default", "orders", port=80, selector={})
    kube.put_slice("default", "orders-1", "orders", ["10.1.2.3"])
    with Watching("k8s:///orders.default:http", str(kube.write_kubeconfig(tmp_path / "config"))) as watching:
        assert not watching.until("", "10.1.2.3")["stale"]
        kube.kill_api()
        found = watching.read()
        while not found["stale"]:
            found = watching.read()
        assert found["error"]
        assert [row["address"] for row in found["endpoints"]] == ["10.1.2.3"]
        kube.start_api()
        kube.put_slice("default", "orders-1", "orders", ["10.1.2.4"])
        while found["stale"] or found["endpoints"][0]["address"] != "10.1.2.4":
            found = watching.read()
        assert found["error"] == ""
