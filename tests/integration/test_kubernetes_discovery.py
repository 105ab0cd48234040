"""The Kubernetes resolver against a real API server: what it publishes while pods, tokens and servers change."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshlib.errors import AccessDenied
from meshlib.model.events import EntrySkipped
from meshlib.model.service import ServiceType
from meshlib.model.update import DoesNotExist, Failure, Snapshot
from tests.components.process import wait_for
from tests.integration.kubernetes_support import MeshLoop, Seen, account_files, mesh, ready

Namespace = Callable[[Any], str]


def admin(kube: Any, folder: Path) -> dict[str, Any]:
    """Settings of a client that may do everything."""
    return {
        "api_server": kube.url,
        "service_account_dir": str(account_files(folder / "sa", kube.ca_file, kube.admin_token)),
    }


def ips(count: int, net: int = 0) -> list[str]:
    return [f"10.{net}.{number // 250}.{number % 250 + 1}" for number in range(count)]


def put_many(kube: Any, ns: str, service: str, addresses: list[str], per_slice: int = 100) -> None:
    for start in range(0, len(addresses), per_slice):
        kube.put_slice(ns, f"{service}-{start // per_slice}", service, addresses[start : start + per_slice])


def test_pods_become_ready_terminate_and_are_replaced(
    kube_v1beta1: Any, namespace: Namespace, tmp_path: Path
) -> None:
    """With the real controllers: readiness, termination (serving kept), replacement under the same address."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    kube.create_node("node-a", zone="zone-1")
    kube.create_service(ns, "orders")
    with mesh(**admin(kube, tmp_path)) as loop:
        seen = loop.watch(f"k8s:///orders.{ns}:http")
        seen.wait_addresses(set())
        assert loop.describe(seen)["api_version"] == "discovery.k8s.io/v1beta1"
        kube.create_pod(ns, "orders-1", {"app": "orders"}, "10.0.0.1")
        kube.create_pod(ns, "orders-2", {"app": "orders"}, "10.0.0.2", ready=False)
        seen.wait_addresses({"10.0.0.1"})
        kube.set_pod_ready(ns, "orders-2", True)
        seen.wait_addresses({"10.0.0.1", "10.0.0.2"})
        entry = next(e for s in seen.snapshot.slices for e in s.endpoints if e.address == "10.0.0.1")  # type: ignore[union-attr]
        assert (entry.node, entry.zone, entry.name) == ("node-a", "zone-1", "orders-1")
        kube.terminate_pod(ns, "orders-1")
        seen.wait_addresses({"10.0.0.2"})
        left = [e for s in seen.snapshot.slices for e in s.endpoints if e.address == "10.0.0.1"]  # type: ignore[union-attr]
        assert [(e.serving, e.terminating) for e in left] == [(True, True)]
        kube.delete_pod(ns, "orders-1")
        kube.create_pod(ns, "orders-3", {"app": "orders"}, "10.0.0.1")
        seen.wait_addresses({"10.0.0.1", "10.0.0.2"})
        again = next(e for s in seen.snapshot.slices for e in s.endpoints if e.address == "10.0.0.1")  # type: ignore[union-attr]
        assert again.uid
        assert again.uid != entry.uid


def test_service_edited_deleted_and_recreated(kube_v1: Any, namespace: Namespace, tmp_path: Path) -> None:
    """Ports change, the Service goes and returns, and an ExternalName is published as such."""
    kube, ns = kube_v1, namespace(kube_v1)
    service = kube.create_service(ns, "orders")
    kube.put_slice(ns, "orders-1", "orders", ["10.0.0.1"])
    with mesh(**admin(kube, tmp_path)) as loop:
        seen = loop.watch(f"k8s:///orders.{ns}:80")
        seen.wait_addresses({"10.0.0.1"})
        kube.create_service(ns, "orders", port=81)
        wait_for(lambda: seen.snapshot and seen.snapshot.service.ports[0].port == 81, what="the new port")
        kube.delete(service)
        seen.wait_for(DoesNotExist)
        kube.create_service(ns, "orders", port=82)
        seen.wait_addresses({"10.0.0.1"})
        kube.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "mail", "namespace": ns},
                "spec": {"type": "ExternalName", "externalName": "mail.example.com"},
            }
        )
        mail = loop.watch(f"k8s:///mail.{ns}:25")
        assert mail.wait_for(Snapshot).service.type is ServiceType.EXTERNAL_NAME
        missing = loop.watch(f"k8s:///missing.{ns}:25")
        assert "there is no Service" in missing.wait_for(DoesNotExist).reason


def test_scale_across_slices(kube_v1: Any, namespace: Namespace, tmp_path: Path) -> None:
    """0 -> 3 -> 200 -> 0 over several slices: every step is seen, and no address that was never written."""
    kube, ns = kube_v1, namespace(kube_v1)
    kube.create_service(ns, "orders")
    with mesh(**admin(kube, tmp_path)) as loop:
        seen = loop.watch(f"k8s:///orders.{ns}:http")
        seen.wait_addresses(set())
        for count in (3, 200):
            put_many(kube, ns, "orders", ips(count))
            seen.wait_addresses(set(ips(count)))
        for entry in kube.slices(ns, "orders"):
            kube.put_slice(ns, entry["metadata"]["name"], "orders", [])
        seen.wait_addresses(set())
        published = {a for _, u in seen.updates if isinstance(u, Snapshot) for a in ready(u)}
        assert published == set(ips(200))


def test_five_thousand_endpoints(kube_v1: Any, namespace: Namespace, tmp_path: Path) -> None:
    """5,000 endpoints in 50 slices: listed at once, and one change among them arrives alone."""
    kube, ns = kube_v1, namespace(kube_v1)
    kube.create_service(ns, "big")
    put_many(kube, ns, "big", ips(5000))
    with mesh(**admin(kube, tmp_path)) as loop:
        seen = loop.watch(f"k8s:///big.{ns}:http")
        seen.wait_addresses(set(ips(5000)), 20)
        assert len(seen.snapshot.slices) == 50  # type: ignore[union-attr]
        kube.put_slice(ns, "big-7", "big", ips(5000)[701:800])
        seen.wait_addresses(set(ips(5000)) - {ips(5000)[700]})
        assert loop.describe(seen)["relists"] == 0


@pytest.mark.slow
def test_api_server_killed_restarted_compacted_and_paused(own_kube: Any, tmp_path: Path) -> None:
    """Through SIGKILL, a restart that lost its history (410), and SIGSTOP the last good state never goes, and what
    changed meanwhile is found afterwards."""
    kube = own_kube("v1")
    ns = kube.create_namespace()
    kube.create_service(ns, "orders")
    kube.put_slice(ns, "orders-1", "orders", ["10.0.0.1"])
    with mesh(**admin(kube, tmp_path)) as loop:
        seen = loop.watch(f"k8s:///orders.{ns}:http")
        seen.wait_addresses({"10.0.0.1"})
        kube.kill_api()
        wait_for(lambda: loop.describe(seen)["stale"], what="the failure to be noticed")
        assert seen.addresses == {"10.0.0.1"}
        kube.start_api()
        kube.put_slice(ns, "orders-1", "orders", ["10.0.0.1", "10.0.0.2"])
        seen.wait_addresses({"10.0.0.1", "10.0.0.2"}, 60)
        kube.compact(forget=True)
        kube.put_slice(ns, "orders-1", "orders", ["10.0.0.2", "10.0.0.3"])
        seen.wait_addresses({"10.0.0.2", "10.0.0.3"}, 70)
        kube.pause_api()
        time.sleep(8)
        assert seen.addresses == {"10.0.0.2", "10.0.0.3"}
        kube.resume_api()
        kube.wait_ready()
        kube.put_slice(ns, "orders-1", "orders", ["10.0.0.4"])
        seen.wait_addresses({"10.0.0.4"}, 60)
        assert all(ready(u) for _, u in seen.updates if isinstance(u, Snapshot))
        assert not any(isinstance(u, DoesNotExist) for _, u in seen.updates)


@pytest.mark.slow
def test_token_rotates_and_expires(own_kube: Any, tmp_path: Path) -> None:
    """A token that expires is replaced by the new one in its file; until there is one the state stays."""
    kube = own_kube("v1")
    ns = kube.create_namespace()
    kube.create_service(ns, "orders")
    kube.put_slice(ns, "orders-1", "orders", ["10.0.0.1"])
    token = kube.service_account(ns, "app", expires_in=2)
    kube.grant(ns, "app")
    folder = account_files(tmp_path / "sa", kube.ca_file, token, ns)
    with mesh(api_server=kube.url, service_account_dir=str(folder)) as loop:
        seen = loop.watch(f"k8s:///orders.{ns}:http")
        seen.wait_addresses({"10.0.0.1"})
        time.sleep(14)  # the token's life and the ten seconds for which the server remembers it
        other = loop.watch(f"k8s:///carts.{ns}:http")
        failed = wait_for(lambda: other.failures, what="a failure that tells of the token")
        assert isinstance(failed[-1].error, AccessDenied)
        assert token not in str(failed) + repr(loop.events) + repr(loop.describe(seen))
        assert seen.addresses == {"10.0.0.1"}
        (folder / "token").write_text(kube.service_account(ns, "app", expires_in=3600))
        other.wait_for(DoesNotExist, 30)


def test_permission_missing_then_granted(kube_v1: Any, namespace: Namespace, tmp_path: Path) -> None:
    """The YAML of the Failure, applied as it is, lets the same running client in."""
    import yaml

    kube, ns = kube_v1, namespace(kube_v1)
    kube.create_service(ns, "orders")
    kube.put_slice(ns, "orders-1", "orders", ["10.0.0.1"])
    token = kube.service_account(ns, "front")
    folder = account_files(tmp_path / "sa", kube.ca_file, token, ns)
    with mesh(api_server=kube.url, service_account_dir=str(folder)) as loop:
        seen = loop.watch(f"k8s:///orders.{ns}:80")
        failure = seen.wait_for(Failure)
        assert failure.hopeless
        for document in yaml.safe_load_all(failure.error.fix):
            kube.apply(document)
        seen.wait_addresses({"10.0.0.1"}, 40)


def test_malicious_addresses(kube_v1beta1: Any, namespace: Namespace, tmp_path: Path) -> None:
    """Loopback, link-local and other addresses that this server accepts (CVE-2021-25737) are never published."""
    kube, ns = kube_v1beta1, namespace(kube_v1beta1)
    kube.create_service(ns, "orders", selector={})
    bad = ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255"]
    kube.put_slice(ns, "orders-evil", "orders", [*bad, "10.0.0.1"])
    with mesh(**admin(kube, tmp_path)) as loop:
        seen = loop.watch(f"k8s:///orders.{ns}:http")
        seen.wait_addresses({"10.0.0.1"})
        assert {e.address for s in seen.snapshot.slices for e in s.endpoints} == {"10.0.0.1"}  # type: ignore[union-attr]
        assert loop.describe(seen)["skipped"] == len(bad)
        assert len([event for event in loop.events if isinstance(event, EntrySkipped)]) == len(bad)


def test_endpoints_only_server(own_kube: Any, tmp_path: Path) -> None:
    """A server without discovery.k8s.io: the real Endpoints controller is followed instead."""
    kube = own_kube("endpoints")
    ns = kube.create_namespace()
    kube.create_node("node-a")
    kube.create_service(ns, "orders")
    kube.create_pod(ns, "orders-1", {"app": "orders"}, "10.0.0.1")
    with mesh(**admin(kube, tmp_path)) as loop:
        seen = loop.watch(f"k8s:///orders.{ns}:http")
        seen.wait_addresses({"10.0.0.1"}, 30)
        assert loop.describe(seen)["api_version"] == "v1 Endpoints"
        kube.create_pod(ns, "orders-2", {"app": "orders"}, "10.0.0.2")
        seen.wait_addresses({"10.0.0.1", "10.0.0.2"}, 30)


def test_kubeconfig(kube_v1: Any, namespace: Namespace, tmp_path: Path) -> None:
    """A kubeconfig is read when it is named, with an exec plugin too, and when KUBECONFIG may be used."""
    kube, ns = kube_v1, namespace(kube_v1)
    kube.create_service(ns, "orders")
    kube.put_slice(ns, "orders-1", "orders", ["10.0.0.1"])
    path = kube.write_kubeconfig(tmp_path / "config")
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": kube.admin_token},
    }
    text = path.read_text()
    (tmp_path / "credential.json").write_text(json.dumps(credential))
    plugin = (
        "exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: cat\n"
        f"      args: [{tmp_path}/credential.json]\n      interactiveMode: Never"
    )
    executed = tmp_path / "exec"
    executed.write_text(text.replace(f"token: {kube.admin_token}", plugin))
    assert "command: cat" in executed.read_text()
    environ = {"KUBECONFIG": str(path), "HOME": str(tmp_path)}
    for settings in (
        {"kubeconfig": str(path)},
        {"kubeconfig": str(executed)},
        {"environ": environ, "allow_kubeconfig": True},
    ):
        with mesh(**settings) as loop:
            seen = loop.watch(f"k8s:///orders.{ns}:80")
            seen.wait_addresses({"10.0.0.1"})
            assert (
                "config" in loop.describe(seen)["credentials"] or "exec" in loop.describe(seen)["credentials"]
            )
    with mesh(environ=environ) as loop:
        failure = loop.watch(f"k8s:///orders.{ns}:80").wait_for(Failure)
        assert "is not read unless it is named" in str(failure.error)


def test_concurrent_churn_converges(kube_v1: Any, namespace: Namespace, tmp_path: Path) -> None:
    """Six services change in turn while targets come and go: in the end every target has what the server has."""
    kube, ns = kube_v1, namespace(kube_v1)
    names = [f"svc{number}" for number in range(6)]
    for name in names:
        kube.create_service(ns, name)

    def churn() -> None:
        for step in range(20):
            for number, name in enumerate(names):
                kube.put_slice(ns, f"{name}-{step % 2}", name, ips(step + 1, net=number + 1)[step // 2 :])

    with mesh(**admin(kube, tmp_path)) as loop:
        writer = threading.Thread(target=churn)
        writer.start()
        seen: dict[str, Seen] = {name: loop.watch(f"k8s:///{name}.{ns}:http") for name in names[:3]}
        time.sleep(0.3)
        seen |= {name: loop.watch(f"k8s:///{name}.{ns}:http") for name in names[3:]}
        loop.unwatch(seen.pop("svc0"))
        writer.join()
        for name, each in seen.items():
            each.wait_addresses({e["addresses"][0] for s in kube.slices(ns, name) for e in s["endpoints"]})


def test_resolver_closes_while_everything_is_open(kube_v1: Any, namespace: Namespace, tmp_path: Path) -> None:
    """close() ends watches, tasks and connections within a second, and nothing is published afterwards."""
    kube, ns = kube_v1, namespace(kube_v1)
    kube.create_service(ns, "orders")
    kube.put_slice(ns, "orders-1", "orders", ["10.0.0.1"])
    loop = MeshLoop(**admin(kube, tmp_path))
    seen = loop.watch(f"k8s:///orders.{ns}:http")
    seen.wait_addresses({"10.0.0.1"})
    start, count = time.monotonic(), len(seen.updates)
    loop.close()
    assert time.monotonic() - start < 5
    kube.put_slice(ns, "orders-1", "orders", ["10.0.0.2"])
    time.sleep(0.2)
    assert len(seen.updates) == count
    assert loop.errors == []
