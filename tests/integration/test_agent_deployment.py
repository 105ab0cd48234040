"""What runs the agent: the printed DaemonSet and the files of examples/agent, judged by the programs that read them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner

from meshlib.agent.assembly import kubernetes_settings
from meshlib.agent.engine.node import NodeEngine
from meshlib.agent.facts import Host
from meshlib.agent.load import load_settings
from meshlib.agent.settings import AgentSettings
from meshlib.cli.agent.offline import _fill
from meshlib.cli.app import meshlib
from meshlib.model.cluster import ClusterChange
from meshlib.model.service import ServiceKey
from tests.components.kube import KubeCluster
from tests.components.process import NotAvailable, leave_out, program

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "agent"
PAGE = ROOT / "docs" / "node-agent.md"


def printed(*words: str) -> str:
    done = CliRunner().invoke(meshlib, ["agent", "manifests", *words])
    assert done.exit_code == 0, done.output
    return done.output


def daemon_set(text: str) -> Any:
    (found,) = [each for each in yaml.safe_load_all(text) if each["kind"] == "DaemonSet"]
    return found["spec"]


def test_the_example_is_what_is_printed() -> None:
    """Nobody edits it by hand."""
    assert printed() == (EXAMPLES / "daemonset.yaml").read_text()


def test_rights_and_mounts() -> None:
    """The running pod: one capability, a read-only root, two mounts; privileges only where it ends; reads only."""
    text = printed()
    spec = daemon_set(text)
    pod = spec["template"]["spec"]
    (agent,), (prepare,) = pod["containers"], pod["initContainers"]
    assert agent["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert agent["securityContext"]["readOnlyRootFilesystem"] is True
    assert agent["securityContext"]["allowPrivilegeEscalation"] is False
    assert "privileged" not in agent["securityContext"]
    assert {mount["mountPath"] for mount in agent["volumeMounts"]} == {"/etc/meshlib", "/run/meshlib-agent"}
    assert prepare["args"] == ["agent", "prepare"]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert (pod["hostNetwork"], pod["priorityClassName"]) == (True, "system-node-critical")
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for each in (agent, prepare) for mount in each["volumeMounts"]} == names
    (role,) = [each for each in yaml.safe_load_all(text) if each["kind"] == "ClusterRole"]
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}


def test_settings_arrive(tmp_path: Path) -> None:
    """What is given is in the file that the pod reads, whatever it holds; the probes follow the health address."""
    text = printed(
        *("--set", "cluster_cidrs=10.1.0.0/16,fd00::/48", "--set", "health_address=0.0.0.0:10266"),
        *("--set", 'api_server=https://192.0.2.1:6443/"\\', "--set", "take_over=true", "-n", "mesh"),
    )
    documents = list(yaml.safe_load_all(text))
    (config,) = [each for each in documents if each["kind"] == "ConfigMap"]
    file = tmp_path / "agent.toml"
    file.write_text(config["data"]["agent.toml"])
    assert tomllib.loads(file.read_text())["take_over"] is True
    found = load_settings(file=file).settings
    assert found.cluster_cidrs == ("10.1.0.0/16", "fd00::/48")
    assert found.api_server == 'https://192.0.2.1:6443/"\\'
    probe = daemon_set(text)["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]
    assert probe == {"path": "/livez", "port": 10266}
    assert {each["metadata"].get("namespace", "mesh") for each in documents} == {"mesh"}


@pytest.mark.parametrize(
    "words", [("-n", "a b"), ("--image", "x\ny"), ("--image", "a: b"), ("--set", "health_address=")]
)
def test_what_would_break_the_text_is_refused(words: tuple[str, ...]) -> None:
    """Names that YAML would read otherwise, and a DaemonSet without probes."""
    assert CliRunner().invoke(meshlib, ["agent", "manifests", *words]).exit_code == 2


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Every directive is one that systemd knows, and the program exists where it says."""
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("no systemd-analyze here")
    unit = (EXAMPLES / "meshlib-agent.service").read_text().replace("/usr/local/bin/meshlib", "/bin/true")
    path = tmp_path / "meshlib-agent.service"
    path.write_text(unit)
    done = subprocess.run([found, "verify", str(path)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "meshlib-agent" in line]
    assert ours == []


def alert_names() -> list[str]:
    document = yaml.safe_load((EXAMPLES / "alerts.yaml").read_text())
    return [rule["alert"] for group in document["groups"] for rule in group["rules"]]


def test_prometheus_accepts_the_rules() -> None:
    """promtool reads them, and every metric in them is one that the agent or Prometheus has."""
    from meshlib.agent.modes import Chosen
    from meshlib.agent.ops.metrics import Metrics
    from meshlib.agent.status import Status

    text = (EXAMPLES / "alerts.yaml").read_text()
    page = Metrics(Chosen("nftables", {}, {}), Status, lambda: 0.0).page().decode()
    known = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    known |= {f"{name}_bucket" for name in known}
    assert set(re.findall(r"\b(?:meshlib_agent|kubeproxy)_\w+", text)) <= known
    try:
        promtool = program("promtool", package="prometheus")
    except NotAvailable as error:
        leave_out("kernel", error)
        raise
    done = subprocess.run(
        [promtool, "check", "rules", str(EXAMPLES / "alerts.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_rules_fire(tmp_path: Path) -> None:
    """Of a node that is stuck, held and changed by others, the right ones fire; of a node that is well, none does."""
    try:
        promtool = program("promtool", package="prometheus")
    except NotAvailable as error:
        leave_out("kernel", error)
        raise
    family = 'ip_family="IPv4"'
    cases = tmp_path / "cases.yaml"
    rows = [
        ("meshlib_agent_generation{instance='bad',%s}", "5+1x60"),
        ("meshlib_agent_generation_applied{instance='bad',%s}", "5+0x60"),
        ("meshlib_agent_sync_failures_total{instance='bad',%s}", "0+1x60"),
        ("meshlib_agent_held_removals{instance='bad',%s}", "40x60"),
        ("meshlib_agent_drift_total{instance='bad',what='missing',%s}", "0+5x60"),
        ("meshlib_agent_generation{instance='good',%s}", "5+1x60"),
        ("meshlib_agent_generation_applied{instance='good',%s}", "5+1x60"),
        ("meshlib_agent_sync_failures_total{instance='good',%s}", "0x60"),
        ("meshlib_agent_held_removals{instance='good',%s}", "0x60"),
        ("meshlib_agent_drift_total{instance='good',what='missing',%s}", "0x60"),
    ]
    series = [{"series": name % family, "values": values} for name, values in rows]
    tests = [
        {
            "alertname": name,
            "eval_time": "50m",
            "exp_alerts": [{"exp_labels": {"severity": severity, "instance": "bad", "ip_family": "IPv4"}}],
        }
        for name, severity in (
            ("MeshlibAgentStuck", "critical"),
            ("MeshlibAgentRemovalsHeld", "warning"),
            ("MeshlibAgentDrift", "warning"),
        )
    ]
    rules = yaml.safe_load((EXAMPLES / "alerts.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule.pop("annotations")  # their texts are not what is tested
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    cases.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(tmp_path / "rules.yaml")],
                "evaluation_interval": "1m",
                "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": tests}],
            }
        )
    )
    done = subprocess.run(
        [promtool, "test", "rules", str(cases)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_paragraph() -> None:
    """Whoever is woken finds what it means and what to do under its name."""
    headings = set(re.findall(r"^\*\*(Meshlib\w+)\*\*", PAGE.read_text(), re.MULTILINE))
    assert headings == set(alert_names())


@pytest.mark.kube
def test_a_real_api_server_takes_it(
    kube_v1: KubeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts every object; the ServiceAccount's rights are enough for the agent's source, and no more than that."""
    documents = list(yaml.safe_load_all(printed("--set", "mode=nftables")))
    for each in documents:
        if each["kind"] == "DaemonSet":
            kube_v1.request("POST", "/apis/apps/v1/namespaces/kube-system/daemonsets", each)
        else:
            kube_v1.apply(each)
    kube_v1.create_node("node-1", ip="192.0.2.1")
    kube_v1.create_namespace("shop")
    web = {"ports": [{"name": "http", "port": 80}], "clusterIP": "10.96.7.7"}
    kube_v1.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": web}
    )
    token = kube_v1.service_account("kube-system", "meshlib-agent")
    monkeypatch.setenv("KUBECONFIG", str(kube_v1.write_kubeconfig(tmp_path / "config", token)))
    options = AgentSettings(node_name="node-1")
    told: list[ClusterChange | Host] = []

    class Recorder(NodeEngine):
        def __init__(self) -> None:
            pass

        def tell(self, news: ClusterChange | Host) -> None:
            told.append(news)

        def take(self) -> None:
            pass

    asyncio.run(_fill(Recorder(), kubernetes_settings(options), options, None, 30.0))
    (change,) = told[:1]
    assert isinstance(change, ClusterChange)
    assert change.complete
    assert ServiceKey("shop", "web") in change.services
    assert change.node is not None
    assert change.node.addresses == ("192.0.2.1",)
    with httpx.Client(base_url=kube_v1.url, verify=False) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        assert client.get("/api/v1/nodes").status_code == 200
        assert client.get("/api/v1/secrets").status_code == 403
        assert client.delete("/api/v1/namespaces/shop/services/web").status_code == 403
