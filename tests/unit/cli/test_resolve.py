"""meshlib resolve on sources that need no server: static lists and manifest folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshlib.cli.app import meshlib
from meshlib.runtime import mesh

MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: orders-a, uid: a}, zone: eu-1}
- {addresses: [10.0.0.2], conditions: {ready: false}, targetRef: {kind: Pod, name: orders-b, uid: b}, zone: eu-2}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.8, ports: [{name: http, port: 80}]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.yaml").write_text(MANIFESTS)
    return tmp_path


def resolve(*arguments: str) -> Result:
    return CliRunner().invoke(meshlib, ["resolve", *arguments])


def as_json(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(resolve(*arguments, "-o", "json").output)
    return found


def test_who_gets_traffic_who_not_and_why(folder: Path) -> None:
    """Both endpoints are listed, the ready one eligible, the other one not, with the reason."""
    found = as_json(f"file://{folder}#shop/orders:http")
    ready, not_ready = found["endpoints"]
    assert (ready["address"], ready["port"], ready["eligible"], ready["name"]) == (
        "10.0.0.1",
        8080,
        True,
        "orders-a",
    )
    assert (not_ready["address"], not_ready["eligible"]) == ("10.0.0.2", False)
    assert "not ready" in not_ready["reason"]
    assert found["way"] == "pods"
    assert found["events"]["endpoints_changed"] >= 1
    assert found["source"]["name"].startswith("file")
    assert found["age"] >= 0


def test_the_application_s_exporters_are_not_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look by hand is no process to be measured."""
    monkeypatch.setenv("MESHLIB_EXPORTERS", "nobody_has_it")
    started: list[object] = []
    monkeypatch.setattr(mesh, "start_configured", lambda names, place: started.append(names))
    assert resolve(f"file://{folder}#shop/orders:http").exit_code == 0
    assert started == [()]


def test_json_keys_are_stable(folder: Path) -> None:
    """The keys of the JSON form are part of the interface."""
    found = as_json(f"file://{folder}#shop/orders:http")
    assert set(found) == {
        *("target", "authority", "way", "reason", "verdict", "locality", "synced", "stale", "age", "error"),
        *("source", "skipped", "events", "endpoints"),
    }
    assert set(found["endpoints"][0]) == {
        *("address", "port", "eligible", "reason", "name", "node", "zone", "weight", "slice"),
    }


def test_table_shows_the_same(folder: Path) -> None:
    """The form for people has every endpoint, the reason, the source and its age."""
    result = resolve(f"file://{folder}#shop/orders:http")
    assert result.exit_code == 0
    assert "1 of 2 may receive traffic" in result.output
    assert "10.0.0.1:8080" in result.output
    assert "orders-b" in result.output
    assert "calls take: pods" in result.output
    assert "source: file" in result.output


def test_known_to_be_empty_exits_with_1(folder: Path) -> None:
    """A Service without endpoints is an answer, and a bad one."""
    result = resolve(f"file://{folder}#shop/empty:http")
    assert result.exit_code == 1
    assert "0 of 0" in result.output


def test_unknown_service_exits_with_1(folder: Path) -> None:
    """The source answered: there is no such Service."""
    result = resolve(f"file://{folder}#shop/none:http", "--timeout", "3")
    assert result.exit_code == 1
    assert "error:" in result.output


def test_unknown_port_lists_the_ports(folder: Path) -> None:
    """Exit code 1, and the ports that the Service has."""
    result = resolve(f"file://{folder}#shop/orders:grpc")
    assert result.exit_code == 1
    assert "http" in result.output.split("error:")[1]


def test_a_missing_source_exits_with_3(tmp_path: Path) -> None:
    """Nothing could be learned: neither yes nor no."""
    result = resolve(f"file://{tmp_path}/absent#shop/orders:http", "--timeout", "1")
    assert result.exit_code == 3
    assert "absent" in result.output


def test_bad_target_points_at_the_part() -> None:
    """Exit code 2 and a caret below what is wrong."""
    result = resolve("k8s:///orders:99999")
    assert result.exit_code == 2
    assert "^^^^^" in result.output


def test_static_list_with_weights() -> None:
    """A static list is resolved at once; weights are shown."""
    found = as_json("static:///10.0.0.1:80,10.0.0.2:80;weight=3")
    assert [(row["address"], row["weight"]) for row in found["endpoints"]] == [
        ("10.0.0.1", 1),
        ("10.0.0.2", 3),
    ]
