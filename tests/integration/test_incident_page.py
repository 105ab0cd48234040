"""docs/incident.md: in each situation the command that the page names prints the words that the page tells of."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshlib.cli.app import meshlib
from meshlib.cli.status.view import _way
from tests.components.kube import KubeCluster

PAGE = (Path(__file__).parents[2] / "docs" / "incident.md").read_text()


@pytest.fixture
def shop(
    kube_v1: KubeCluster,
    namespace: Callable[[Any], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[KubeCluster, str]:
    """A real API server with a Service ``orders`` and no endpoints; commands use its kubeconfig."""
    name = namespace(kube_v1)
    kube_v1.create_service(name, "orders", selector={})
    kubeconfig = str(kube_v1.write_kubeconfig(tmp_path / "config"))
    monkeypatch.setenv("MESHLIB_DISCOVERY", json.dumps({"k8s": {"kubeconfig": kubeconfig}}))
    return kube_v1, name


def told(*words: str, says: str, code: int | None = None) -> str:
    """The output of a command, once it has been seen that it and the page have the words."""
    result = CliRunner().invoke(meshlib, list(words))
    assert not isinstance(result.exception, Exception), result.output
    assert says in " ".join(result.output.split()), result.output
    assert says in PAGE, says
    if code is not None:
        assert result.exit_code == code, result.output
    return result.output


def test_whose_request_it_is() -> None:
    """Command 1."""
    told("check-url", "http://10.0.0.1/items", says="untouched")
    told("check-url", "http://orders.shop.svc/items", says="balanced")


def test_the_roll_out_holds_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Command 1."""
    monkeypatch.setenv("MESHLIB_MODE", "off")
    told("check-url", "http://orders.shop.svc/items", says="But the roll-out is at: off")
    monkeypatch.setenv("MESHLIB_MODE", "on")
    monkeypatch.setenv("MESHLIB_PERCENT", "5")
    output = told("check-url", "http://orders.shop.svc/items", says="But the roll-out is at: on at ")
    assert "on at 5 %" in output


def test_nobody_is_ready(shop: tuple[KubeCluster, str]) -> None:
    """Command 2: three pods, none ready."""
    kube, name = shop
    kube.put_slice(
        name,
        "orders-1",
        "orders",
        [{"addresses": [f"10.0.0.{n}"], "conditions": {"ready": False}} for n in (1, 2, 3)],
    )
    output = told("resolve", f"k8s:///orders.{name}:80", says="0 of 3 may receive traffic", code=1)
    assert output.count("not ready") == 3
    assert "`not ready`" in PAGE


def test_the_service_selects_nothing(shop: tuple[KubeCluster, str]) -> None:
    """Command 2: no endpoints at all."""
    told("resolve", f"k8s:///orders.{shop[1]}:80", says="0 of 0 may receive traffic", code=1)


def test_another_port(shop: tuple[KubeCluster, str]) -> None:
    """Command 2: the error has the ports that there are."""
    kube, name = shop
    kube.put_slice(name, "orders-1", "orders", ["10.0.0.1"])
    result = CliRunner().invoke(meshlib, ["resolve", f"k8s:///orders.{name}:81"])
    assert "80" in result.output
    assert result.exit_code != 0
    assert "an error that lists the ports of the Service" in PAGE


def test_no_rights(shop: tuple[KubeCluster, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command 3, and what command 2 says of such a pod."""
    kube, name = shop
    account = kube.service_account(name, "frontend")
    kubeconfig = str(kube.write_kubeconfig(tmp_path / "poor", token=account))
    monkeypatch.setenv("MESHLIB_DISCOVERY", json.dumps({"k8s": {"kubeconfig": kubeconfig}}))
    output = told("doctor", "-n", name, says="no right to list and watch", code=0)
    assert "kind: RoleBinding" in output


def test_the_api_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Command 3, with an address where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("MESHLIB_DISCOVERY", json.dumps({"k8s": {"api_server": server}}))
        told("doctor", says="the API server does not answer", code=0)


def test_nobody_listens(shop: tuple[KubeCluster, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Command 3: an endpoint that refuses."""
    kube, name = shop
    monkeypatch.setenv("MESHLIB_ADDRESS_ALLOW_LOOPBACK", "true")
    with socket.socket() as bound:  # and not listening: nobody else can have the port
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        kube.put_slice(name, "orders-1", "orders", ["127.0.0.1"], ports=[{"name": "http", "port": port}])
        told(
            "doctor", "-n", name, "--target", f"k8s:///orders.{name}:80", says="endpoints take no connection"
        )


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_a_worker_that_holds_back(mode: str) -> None:
    """Command 4: the words for it."""
    shown = _way({"way": "pods", "rollout": {"mode": mode, "percent": 100.0}})
    assert shown.startswith("calls take the bare way")
    assert "| `calls take the bare way` |" in PAGE


def test_the_comparison_is_before_the_switching_off() -> None:
    """Command 5: with mode off both of its requests would go the bare way."""
    assert 0 < PAGE.index("MESHLIB_DISABLED=1") < PAGE.index('mode = "off"')
