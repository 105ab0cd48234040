"""meshlib rbac: valid manifests, from checked names only."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from meshlib.cli.app import meshlib


def documents(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(meshlib, ["rbac", *arguments])
    assert result.exit_code == 0, result.output
    return list(yaml.safe_load_all(result.stdout))


def test_one_role_and_binding_per_namespace() -> None:
    """Two Services of one namespace share a Role; another namespace has its own; the subject is the caller."""
    found = documents(
        *(
            "--from",
            "web/frontend",
            "--to",
            "shop/orders",
            "shop/stock",
            "--to",
            "pay/bills",
            "--no-network-policy",
        )
    )
    assert [(one["kind"], one["metadata"]["namespace"]) for one in found] == [
        *(("Role", "pay"), ("RoleBinding", "pay"), ("Role", "shop"), ("RoleBinding", "shop")),
    ]
    for role, binding in zip(found[::2], found[1::2], strict=True):
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "frontend", "namespace": "web"}]
        assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}


def test_network_policy() -> None:
    """The policy is for the calling pods, towards the API server only."""
    found = documents(
        *(
            "--from",
            "web/frontend",
            "--to",
            "shop/orders",
            "--pod-label",
            "app=web",
            "--api-server",
            "10.96.0.1/32",
        )
    )[-1]
    assert found["kind"] == "NetworkPolicy"
    assert found["metadata"]["namespace"] == "web"
    assert found["spec"]["podSelector"] == {"matchLabels": {"app": "web"}}
    assert found["spec"]["policyTypes"] == ["Egress"]
    (rule,) = found["spec"]["egress"]
    assert {port["port"] for port in rule["ports"]} == {443, 6443}
    assert rule["to"] == [{"ipBlock": {"cidr": "10.96.0.1/32"}}]


def test_network_policy_without_labels_and_networks() -> None:
    """Without --pod-label it is for every pod of the namespace, without --api-server to anywhere on those ports."""
    spec = documents("--from", "web/frontend", "--to", "shop/orders")[-1]["spec"]
    assert spec["podSelector"] == {}
    assert "to" not in spec["egress"][0]


def test_the_danger_of_the_network_policy_is_told() -> None:
    """A pod's first egress policy forbids it the rest: said on stderr, because the manifests go into a pipe."""
    client = ("rbac", "--from", "web/frontend", "--to", "shop/orders")
    result = CliRunner().invoke(meshlib, client)
    assert "every pod of web" in result.stderr
    assert "--no-network-policy" in result.stderr
    assert "DNS" not in result.stdout
    assert CliRunner().invoke(meshlib, [*client, "--no-network-policy"]).stderr == ""


@pytest.mark.parametrize("value", ["true", "123", "1e3", "no", "null", "~x~"])
def test_label_values_stay_text(value: str) -> None:
    """YAML must not read a label as another type; what is no label value is refused."""
    result = CliRunner().invoke(
        meshlib, ["rbac", "--from", "a/b", "--to", "c/d", "--pod-label", f"app={value}"]
    )
    if value == "~x~":
        assert result.exit_code == 2
    else:
        policy = list(yaml.safe_load_all(result.stdout))[-1]
        assert policy["spec"]["podSelector"]["matchLabels"] == {"app": value}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--from", "frontend", "--to", "shop/orders"),
        ("--from", "web/frontend", "--to", "orders"),
        ("--from", "web/frontend\nkind: ClusterRole", "--to", "shop/orders"),
        ("--from", "web/frontend", "--to", "shop/orders: {}"),
        ("--from", "web/frontend", "--to", "../etc/passwd"),
        ("--from", "Web/Frontend", "--to", "shop/orders"),
        ("--from", "web/frontend", "--to", "shop/orders", "--api-server", "everywhere"),
        ("--from", "web/frontend", "--to", "shop/orders", "--pod-label", 'app="x"'),
        ("--from", "web/frontend"),
        ("--to", "shop/orders"),
    ],
)
def test_bad_names_are_refused(arguments: tuple[str, ...]) -> None:
    """Nothing that is not a name gets into YAML that somebody pipes into kubectl."""
    assert CliRunner().invoke(meshlib, ["rbac", *arguments]).exit_code == 2


@pytest.mark.parametrize("name", ["123", "true", "null", "1e3", "no"])
def test_names_that_yaml_would_read_as_something_else(name: str) -> None:
    """Namespaces and accounts may have such names; in the manifests they stay text."""
    role, binding, policy = documents("--from", f"{name}/{name}", "--to", f"{name}/orders")
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == name
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": name}]
    assert policy["metadata"]["namespace"] == name
