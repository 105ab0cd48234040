"""meshlib doctor: the checks before a deployment that need no cluster, each on the condition that it looks for."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
from collections.abc import Iterable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from meshlib.cli.doctor import reach
from meshlib.cli.doctor.clock import check_clock, check_token
from meshlib.cli.doctor.doubled import check_aliases, check_environment_balancing, check_source
from meshlib.cli.doctor.findings import Finding, Level
from meshlib.cli.doctor.libraries import check_proxies
from meshlib.cli.doctor.limits import check_limits
from meshlib.cli.doctor.neighbours import mesh_of
from meshlib.cli.doctor.place import check_dev_file
from meshlib.cli.doctor.reach import balanced_twice, check_targets, may_select, policies_between
from meshlib.cli.doctor.versions import check_bounds, check_kubernetes, check_python, numbers
from meshlib.clients.grpc.ours import whose
from meshlib.model.endpoint import Endpoint
from meshlib.model.target import Target, TargetDefaults
from meshlib.runtime import dev_file
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.components.silent import silent_address

NOW = 1_700_000_000.0


def one(findings: Iterable[Finding]) -> tuple[Level, str]:
    (found,) = findings
    return found.level, f"{found.what} | {found.fix}"


@pytest.mark.parametrize(
    ("ahead", "level", "words"),
    [
        (0.0, Level.OK, "agree"),
        (-2.0, Level.OK, "agree"),
        (11.0, Level.NOTE, "10 s ahead of"),
        (301.0, Level.LACK, "300 s ahead of"),
        (-300.0, Level.LACK, "300 s behind"),
    ],
)
def test_clocks_are_compared(ahead: float, level: Level, words: str) -> None:
    """Within the header's whole seconds nothing is said; beyond what API servers forgive it is a lack."""
    found, what = one(check_clock(formatdate(NOW, usegmt=True), NOW + ahead, NOW + ahead))
    assert (found, words in what) == (level, True), what


def test_a_slow_answer_is_no_difference_of_clocks() -> None:
    """Ten minutes on its way, and the Date anywhere in between."""
    for date in (NOW + 1, NOW + 300, NOW + 599):
        assert one(check_clock(formatdate(date, usegmt=True), NOW, NOW + 600))[0] is Level.OK


@pytest.mark.parametrize("date", ["", "yesterday", "Tue, 99 Nov 2023 22:13:20 GMT"])
def test_no_date_to_compare_with(date: str) -> None:
    """A proxy may have taken it."""
    assert one(check_clock(date, NOW, NOW))[0] is Level.NOTE


def token(**claims: Any) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in ({}, claims)
    ]
    return ".".join([*parts, "signature"])


@pytest.mark.parametrize(
    ("claims", "level", "words"),
    [
        ({"exp": NOW + 3600}, Level.OK, "60 min"),
        ({"exp": NOW + 60}, Level.NOTE, "expires in 60 s"),
        ({"exp": NOW - 60}, Level.LACK, "expired 60 s ago"),
        ({"exp": NOW + 3600, "nbf": NOW + 600}, Level.LACK, "valid only in 600 s"),
        ({}, Level.NOTE, "never expires"),
    ],
)
def test_a_token_is_looked_at(claims: dict[str, float], level: Level, words: str) -> None:
    """How long it lives, whether it does already, and whether it ever ends; none of it is shown."""
    found = list(check_token(token(**claims), NOW))
    assert found[0].level is level
    assert words in found[0].what


@pytest.mark.parametrize("text", ["", "abc", "a.b.c", "a.W10.c"])
def test_other_tokens_are_left_alone(text: str) -> None:
    """Static tokens and those of exec plugins say nothing about themselves."""
    assert list(check_token(text, NOW)) == []


def test_versions() -> None:
    """What is outside of the bounds of meshlib's own package, an untested Python, an old or silent API server."""
    assert list(check_bounds()) == []
    assert list(check_bounds(["click>=8.1", "not-there>=1", "click>=99; extra == 'x'"])) == []
    for bounds in (">=99", ">=1,<2"):
        level, what = one(check_bounds([f"click{bounds}"]))
        assert level is Level.LACK
        assert f"pip install 'click{bounds}'" in what
    assert list(check_python()) == []
    assert one(check_python((3, 99)))[0] is Level.NOTE
    assert one(check_python((3, 2)))[0] is Level.LACK
    assert one(check_kubernetes({"gitVersion": "v1.33.1+k3s1"})) == (Level.OK, "Kubernetes 1.33 | ")
    assert one(check_kubernetes({"gitVersion": "v1.9.0"}))[0] is Level.NOTE
    assert one(check_kubernetes(None))[0] is Level.NOTE
    assert numbers("0.27.0rc1") == numbers("0.27") < numbers("0.27.1") < numbers("0.100")
    assert numbers("nonsense") == ()


def test_proxies_around_which_the_cluster_goes() -> None:
    """NO_PROXY with the cluster's names makes a note of it an ok; without, or with half of them, it stays one."""
    proxy = {"https_proxy": "http://proxy:3128", "grpc_proxy": "http://proxy:3128"}
    for around, level in (
        ("", Level.NOTE),
        ("example.com,.svc", Level.NOTE),
        (".svc,.cluster.local", Level.OK),
        ("*", Level.OK),
    ):
        found, what = one(check_proxies({**proxy, "NO_PROXY": around}))
        assert found is level, around
        assert "https_proxy, grpc_proxy" in what


def test_channels_that_balance_for_themselves(tmp_path: Path) -> None:
    """By their options in the program's source, with the line; and such a channel is indeed left to gRPC."""
    source = tmp_path / "app"
    (source / ".venv").mkdir(parents=True)
    (source / "broken.py").write_text("def (")
    assert [each.level for each in check_source([source])] == [Level.OK]
    code = 'import grpc\noptions = [("grpc.lb_policy_name", "round_robin")]\n'
    for place in (source / "channels.py", source / ".venv" / "installed.py"):
        place.write_text(code)
    level, what = one(check_source([source]))
    assert level is Level.NOTE
    assert f"{source / 'channels.py'}:2: grpc.lb_policy_name" in what
    assert whose("orders.shop.svc:80", [("grpc.lb_policy_name", "round_robin")], {}) is None
    assert list(check_source([])) == []


def test_balancing_of_others() -> None:
    """xDS in the environment; an alias that leads to a Service's one address; an endpoint that is one."""
    assert one(check_environment_balancing({"GRPC_XDS_BOOTSTRAP": "/etc/xds.json"}))[0] is Level.NOTE
    assert list(check_environment_balancing({})) == []
    aliases = {
        "orders": Target.parse("dns:///orders.shop.svc.cluster.local:80"),
        "stock": Target.parse("k8s:///stock.shop:80"),
        "books": Target.parse("dns:///books.example:80"),
    }
    level, what = one(check_aliases(aliases, TargetDefaults()))
    assert level is Level.NOTE
    assert "k8s:///orders.shop:80" in what
    endpoints = [
        Endpoint(address="10.96.1.2", port=80),
        Endpoint(address="10.0.0.1", port=80),
        Endpoint(address="10.96.1.3", port=80, name="Service shop/a"),
    ]
    vips = {"10.96.1.2": "shop/stock", "10.96.1.3": "shop/a"}
    level, what = one(balanced_twice("k8s:///orders.shop:80", endpoints, vips))
    assert level is Level.LACK
    assert "k8s:///stock.shop:PORT" in what


@pytest.mark.parametrize(
    ("pod", "found"),
    [
        ({"spec": {"containers": [{"name": "app"}, {"name": "istio-proxy"}]}}, ["an Istio sidecar"]),
        ({"spec": {"initContainers": [{"name": "linkerd-proxy"}], "containers": []}}, ["a Linkerd sidecar"]),
        (
            {"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}},
            ["an Istio ambient mesh"],
        ),
        ({"metadata": {"annotations": {"ambient.istio.io/redirection": "disabled"}}, "spec": {}}, []),
        ({"spec": {"containers": None}}, []),
    ],
)
def test_a_mesh_by_the_manifest(pod: dict[str, Any], found: list[str]) -> None:
    """Sidecars as containers and as init containers that restart, and ambient's mark."""
    assert mesh_of(pod) == found


def test_network_policies_that_may_stand_in_between() -> None:
    """By direction, and by labels as far as they are known: what contradicts is out, what is unknown stays in."""
    labels = {"app": "orders"}
    assert may_select({}, labels)
    assert may_select({"matchLabels": {"app": "orders", "tier": "web"}}, labels)
    assert not may_select({"matchLabels": {"app": "stock"}}, labels)
    assert may_select(None, labels)
    items = [
        {"metadata": {"namespace": "shop", "name": name}, "spec": spec}
        for name, spec in (
            ("deny", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
            ("old", {"podSelector": {}}),
            ("old-egress", {"podSelector": {}, "egress": [{}]}),
            ("others", {"podSelector": {"matchLabels": {"app": "stock"}}, "policyTypes": ["Egress"]}),
        )
    ]
    assert policies_between(items, "Egress", labels) == ["shop/deny (egress)", "shop/old-egress (egress)"]
    assert len(policies_between(items, "Ingress", labels)) == 3


def test_descriptors_against_the_planned_connections() -> None:
    """The real limit of a process, lowered for it: enough, too few with what to set, and a cap below the plan."""
    program = (
        "import resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))\n"
        "from meshlib.cli.doctor.limits import check_limits\n"
        "for connections in (10, 500):\n"
        "    (found,) = check_limits({'a': 1}, connections, 0)\n"
        "    print(found.level.value, found.what, found.fix, sep=' | ')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    enough, lacks = done.stdout.splitlines()
    assert enough.startswith("ok | 256 descriptors per process, 192 of them for connections; 10 are planned")
    assert lacks.startswith(
        "lack | 256 descriptors per process, 192 of them for connections, and 500 are planned"
    )
    assert "raise the limit to 667" in lacks
    capped = list(check_limits({"a": 10}, 10, 50))
    assert "total_connections = 50 is less than the 100 planned" in capped[-1].what
    assert len(list(check_limits({}, 10, 50))) == 1


async def _nobody(target: Target) -> None:
    return None


def test_targets_are_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real sockets: one that takes connections, one that refuses, one that drops; no policies may be read."""

    async def look(*targets: str) -> list[Finding]:
        with Mesh(config=load_config({"sync_timeout": 60})) as mesh:
            found = await check_targets(mesh, targets, {}, _nobody)
            await asyncio.to_thread(mesh.close)
        assert len(found.endpoints) == sum("static" in target for target in targets)
        return found.findings

    monkeypatch.setattr(reach, "SYNC", 60.0)  # a slow machine is not what is tested
    monkeypatch.setattr(reach, "CONNECT", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # held, and nobody listens
        ports = [each.getsockname()[1] for each in (listener, unused)]
        answered, refused = asyncio.run(look(*(f"static:///127.0.0.1:{port}" for port in ports)))
    assert (answered.level, "all connected" in answered.what) == (Level.OK, True)
    assert (refused.level, "Connection refused" in refused.what) == (Level.LACK, True)
    monkeypatch.setattr(reach, "CONNECT", 0.5)  # what is dropped is so however long one waits
    with silent_address() as silent:
        (dropped,) = asyncio.run(look(f"static:///{silent}"))
    assert (dropped.level, f"no answer from {silent}" in dropped.what) == (Level.LACK, True)
    assert "kubectl get networkpolicy" in dropped.fix
    (unknown,) = asyncio.run(look("nowhere:///orders"))
    assert "nowhere" in unknown.what


def test_one_refused_target_does_not_keep_the_others_from_their_start(tmp_path: Path) -> None:
    """An unknown scheme is a finding of its own; the file beside it is read as ever."""
    (tmp_path / "shop.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\n"
        "spec: {clusterIP: 10.96.0.8, ports: [{name: http, port: 80}]}\n"
    )

    async def look() -> list[Finding]:
        targets = ("nowhere:///orders", f"file://{tmp_path}#shop/orders:http")
        with Mesh(config=load_config({"exporters": [], "status_socket": "off"}, environ={})) as mesh:
            found = await check_targets(mesh, targets, {}, _nobody)
            assert mesh.target(targets[1]).synced
            await asyncio.to_thread(mesh.close)
        return found.findings

    refused, _ = asyncio.run(look())
    assert "nowhere" in refused.what


def test_the_dev_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is in use, that it was ignored, and that it is wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dev_file, "SERVICE_ACCOUNT_DIR", str(tmp_path))  # the tests may run in a pod
    defaults = TargetDefaults()
    assert list(check_dev_file({}, defaults)) == []
    (tmp_path / "meshlib.dev.toml").write_text("[replace]\norders = 9000\n")
    dev = {"MESHLIB_ENV": "dev"}
    assert "meshlib.dev.toml is in use: 1 targets" in one(check_dev_file(dev, defaults))[1]
    assert "ignored here" in one(check_dev_file({**dev, "KUBERNETES_SERVICE_HOST": "x"}, defaults))[1]
    (tmp_path / "meshlib.dev.toml").write_text("[replace]\norders = 0\n")
    assert one(check_dev_file(dev, defaults))[0] is Level.LACK
