"""What only the kernel path reads: load-balancer status, source ranges, ages, the Node, and trigger times."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshlib.errors import DataError
from meshlib.model.cluster import ABSENT, ClusterChange, Node, ServiceFacts
from meshlib.model.decode_node import node_from_json, node_from_object
from meshlib.model.decode_service import service_from_object
from meshlib.model.decode_trigger import trigger_time
from meshlib.model.service import Service, ServiceKey


def service(spec: dict[str, Any], status: Any = None, **meta: Any) -> Service:
    return service_from_object({"metadata": {"name": "x", **meta}, "spec": spec, "status": status})


@pytest.mark.acceptance(11, 12)
def test_load_balancer_fields() -> None:
    """Addresses by ipMode, ranges without white space, the health port, the age; all empty where absent or null."""
    made = service(
        {"loadBalancerSourceRanges": [" 10.0.0.0/8", "192.0.2.0/24\t"], "healthCheckNodePort": 32000},
        {
            "loadBalancer": {
                "ingress": [
                    {"ip": "203.0.113.5", "ports": []},
                    {"ip": "203.0.113.6", "ipMode": "Proxy"},
                    {"ip": "203.0.113.7", "ipMode": "VIP"},
                    {"hostname": "lb.example.com"},
                ]
            }
        },
        creationTimestamp="2024-01-01T00:00:00Z",
    )
    assert made.load_balancer_ips == ("203.0.113.5", "203.0.113.7")
    assert made.source_ranges == ("10.0.0.0/8", "192.0.2.0/24")
    assert (made.health_check_node_port, made.created) == (32000, "2024-01-01T00:00:00Z")
    for status in (None, {}, {"loadBalancer": None}, {"loadBalancer": {"ingress": None}}):
        bare = service({}, status, creationTimestamp=None)
        assert (bare.load_balancer_ips, bare.source_ranges, bare.created) == ((), (), "")
    with pytest.raises(DataError, match="healthCheckNodePort"):
        service({"healthCheckNodePort": 70000})


def node(**parts: Any) -> dict[str, Any]:
    return {"metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "zone-1"}}, **parts}


def test_node() -> None:
    """Name, zone, addresses (internal first), pod ranges; what cannot be read is skipped and told."""
    skipped: list[tuple[str, str]] = []
    made = node_from_json(
        json.dumps(
            node(
                spec={
                    "podCIDR": "10.1.0.0/24",
                    "podCIDRs": ["10.1.0.7/24", "fd00:1::/64", "junk"],
                    "taints": None,
                },
                status={
                    "addresses": [
                        {"type": "ExternalIP", "address": "203.0.113.9"},
                        {"type": "Hostname", "address": "node-a"},
                        {"type": "InternalIP", "address": "192.0.2.1"},
                        {"type": "InternalIP", "address": "2001:DB8::1"},
                        {"type": "InternalIP", "address": "node-a.internal"},
                    ]
                },
            )
        ).encode(),
        lambda where, reason: skipped.append((where, reason)),
    )
    expected = Node(
        "node-a", "zone-1", ("192.0.2.1", "2001:db8::1", "203.0.113.9"), ("10.1.0.0/24", "fd00:1::/64")
    )
    assert made == expected
    assert [where for where, _ in skipped] == ["Node node-a status.addresses", "Node node-a spec.podCIDRs"]
    old = node_from_object(node(spec={"podCIDR": "10.1.0.0/24"}), lambda where, reason: None)
    assert old.pod_ranges == ("10.1.0.0/24",)


@pytest.mark.acceptance(94)
def test_a_node_that_leaves() -> None:
    """A deletion that has begun, and the autoscaler's taint; other taints say nothing."""

    def leaving(**parts: Any) -> bool:
        return node_from_object(node(**parts), lambda where, reason: None).leaving

    assert not leaving(spec={"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]})
    assert leaving(spec={"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "value": "1"}]})
    assert leaving(metadata={"name": "node-a", "deletionTimestamp": "2024-01-01T00:00:00Z"})


@pytest.mark.parametrize(
    "obj", [{}, {"metadata": {}}, {"metadata": {"name": "a\nb"}}, {"metadata": {"name": 7}}]
)
def test_what_is_no_node(obj: Any) -> None:
    """A Node is used as a whole or not at all."""
    with pytest.raises(DataError):
        node_from_object(obj, lambda where, reason: None)


@pytest.mark.acceptance(21)
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-01-01T00:00:00Z", 1704067200.0),
        ("2024-01-01T01:00:00+01:00", 1704067200.0),
        ("2024-01-01T00:00:00.5Z", 1704067200.5),
        ("2024-01-01T00:00:00.123456789Z", 1704067200.123456),
        ("2024-01-01T00:00:00", 1704067200.0),
        ("yesterday", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_trigger_time(text: Any, seconds: float | None) -> None:
    """Read in every form that Go writes; what is no time is nothing, and never an error."""
    name = "endpoints.kubernetes.io/last-change-trigger-time"
    raw = json.dumps({"metadata": {"name": "a", "annotations": {name: text, "other": "x"}}}).encode()
    assert trigger_time(raw) == (None if seconds is None else pytest.approx(seconds, abs=1e-6))


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b'{"metadata": 7}', b'{"metadata": {"annotations": []}}', b"{}", b"\xff"]
)
def test_trigger_time_of_anything(raw: bytes) -> None:
    """Whatever the object is: no time, no error."""
    assert trigger_time(raw) is None


def test_changes_one_after_the_other() -> None:
    """Later facts replace earlier ones, times add up, and a complete change makes void what was before."""
    a, b = ServiceKey("n", "a"), ServiceKey("n", "b")
    facts = ServiceFacts(Service(a))
    first = ClusterChange({a: facts}, Node("x"), triggers={a: (1.0,)}, lists=1)
    second = ClusterChange({a: ABSENT, b: facts}, triggers={a: (2.0,), b: (3.0,)}, lists=2)
    both = first.then(second)
    assert both.services == {a: ABSENT, b: facts}
    assert both.triggers == {a: (1.0, 2.0), b: (3.0,)}
    assert (both.node, both.lists, both.complete) == (Node("x"), 2, False)
    whole = first.then(ClusterChange({b: facts}, complete=True, lists=3))
    assert (dict(whole.services), whole.node, whole.complete, whole.triggers) == (
        {b: facts},
        Node("x"),
        True,
        {},
    )
    assert ClusterChange(complete=True).then(second).complete
