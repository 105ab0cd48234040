"""Decoding slices and Endpoints: every field, and what bad pieces cost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshlib.errors import DataError
from meshlib.model.address import RELAXED, AddressPolicy
from meshlib.model.decode_slices import (
    slice_from_json,
    slice_from_object,
    slices_from_endpoints_json,
    slices_from_endpoints_object,
)
from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort

POLICY = AddressPolicy()


def manifest(endpoints: Any = (), **fields: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "s1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "orders"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": list(endpoints) if isinstance(endpoints, tuple) else endpoints,
        **fields,
    }


def both_ways(obj: Any) -> tuple[EndpointSlice, list[tuple[str, str]]]:
    """Decode from JSON and from the object; both must agree on the slice and on what was skipped."""
    skipped: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    one = slice_from_json(json.dumps(obj).encode(), POLICY, lambda *told: skipped[0].append(told))
    other = slice_from_object(obj, POLICY, lambda *told: skipped[1].append(told))
    assert one == other
    assert skipped[0] == skipped[1]
    return one, skipped[0]


def test_every_field() -> None:
    """All fields of a v1 slice are read; what is not ours is ignored."""
    slice_, skipped = both_ways(
        {
            "kind": "EndpointSlice",
            "metadata": {
                "name": "s1",
                "namespace": "shop",
                "uid": "u",
                "resourceVersion": "7",
                "generation": 3,
                "labels": {"kubernetes.io/service-name": "orders"},
                "annotations": {"x": "\u0085\u2028"},
            },
            "addressType": "IPv6",
            "ports": [
                {"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"},
                {"port": None},
            ],
            "endpoints": [
                {
                    "addresses": ["FD00::1", "fd00::2"],
                    "conditions": {"ready": False, "serving": True, "terminating": True},
                    "hostname": "db-0",
                    "nodeName": "node-a",
                    "zone": "zone-1",
                    "targetRef": {"kind": "Pod", "name": "db-0-pod", "uid": "pod-uid"},
                    "hints": {
                        "forZones": [{"name": "zone-1"}, {"name": "zone-2"}],
                        "forNodes": [{"name": "node-a"}],
                    },
                    "deprecatedTopology": {"zone": "x"},
                }
            ],
        }
    )
    assert skipped == []
    assert slice_ == EndpointSlice(
        namespace="shop",
        name="s1",
        service=ServiceKey("shop", "orders"),
        family=6,
        ports=(SlicePort("http", 8080, "TCP", "http"), SlicePort("", None)),
        endpoints=(
            SliceEndpoint(
                address="fd00::1",
                uid="pod-uid",
                name="db-0-pod",
                hostname="db-0",
                node="node-a",
                zone="zone-1",
                ready=False,
                serving=True,
                terminating=True,
                hint_zones=("zone-1", "zone-2"),
                hint_nodes=("node-a",),
            ),
        ),
        uid="u",
        resource_version="7",
        generation=3,
    )


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": False, "serving": True}, (False, True, False)),
        ({"ready": True, "serving": False, "terminating": True}, (True, False, True)),
    ],
)
def test_nil_conditions(conditions: dict[str, Any] | None, expected: tuple[bool, bool, bool]) -> None:
    """Nil ready is true, nil serving is ready, nil terminating is false."""
    slice_, _ = both_ways(manifest(({"addresses": ["10.0.0.1"], "conditions": conditions},)))
    (endpoint,) = slice_.endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == expected


def test_topology_of_v1beta1() -> None:
    """Node and zone come from the topology map of v1beta1, unless the slice has its own fields."""
    slice_, _ = both_ways(
        manifest(
            (
                {
                    "addresses": ["10.0.0.1"],
                    "topology": {
                        "kubernetes.io/hostname": "n1",
                        "topology.kubernetes.io/zone": "z1",
                        "x": "y",
                    },
                },
                {"addresses": ["10.0.0.2"], "nodeName": "n2", "topology": {"kubernetes.io/hostname": "n1"}},
                {"addresses": ["10.0.0.3"], "topology": {}},
            )
        )
    )
    assert [(e.node, e.zone) for e in slice_.endpoints] == [("n1", "z1"), ("n2", ""), ("", "")]


GOOD = {"addresses": ["10.0.0.9"]}


@pytest.mark.parametrize(
    "endpoint",
    [
        None, "x", 1, [], {}, {"addresses": None}, {"addresses": []}, {"addresses": "10.0.0.1"}, {"addresses": [None]},
        {"addresses": [""]},
        {"addresses": ["127.0.0.1"]}, {"addresses": ["::ffff:10.0.0.1"]}, {"addresses": ["fd00::1"]},
        {"addresses": ["x" * 4096]}, {"addresses": ["10.0.0.1"], "conditions": {"ready": "true"}},
        {"addresses": ["10.0.0.1"], "conditions": {"ready": 1}}, {"addresses": ["10.0.0.1"], "conditions": "x"},
        {"addresses": ["10.0.0.1"], "targetRef": "x"}, {"addresses": ["10.0.0.1"], "nodeName": 5},
        {"addresses": ["10.0.0.1"], "hints": {"forZones": [None]}}, {"addresses": ["10.0.0.1"], "topology": {"a": 1}},
    ],
)  # fmt: skip
def test_bad_endpoint_costs_only_itself(endpoint: Any) -> None:
    """An endpoint that cannot be used is skipped and told with its place; its neighbours stay."""
    slice_, skipped = both_ways(manifest((GOOD, endpoint, GOOD)))
    assert [e.address for e in slice_.endpoints] == ["10.0.0.9", "10.0.0.9"]
    ((where, reason),) = skipped
    assert "shop/s1" in where
    assert "endpoints[1]" in where
    assert reason


@pytest.mark.parametrize(
    "port",
    [
        {"port": 0}, {"port": -1}, {"port": 65536}, {"port": 10**9}, {"port": "80"}, {"port": 80.5}, {"port": True},
        {"port": 80, "protocol": "tcp"}, {"port": 80, "protocol": 6}, {"port": 80, "name": "n" * 300}, None, "80",
    ],
)  # fmt: skip
def test_bad_port_costs_only_itself(port: Any) -> None:
    """A port that cannot be used is skipped and told; the others stay."""
    slice_, skipped = both_ways(manifest((GOOD,), ports=[port, {"port": 81}]))
    assert slice_.ports == (SlicePort("", 81),)
    assert len(skipped) == 1
    assert "ports[0]" in skipped[0][0]


@pytest.mark.parametrize("name", ["n" * 64000, "node\r\nX-Evil: 1", "node\u2028x", "\x7f"])
@pytest.mark.parametrize("field", ["nodeName", "zone", "hostname", "targetRef"])
def test_names_that_cannot_be_shown_are_dropped(name: str, field: str) -> None:
    """A node, zone, host or pod name that is endless or unprintable is dropped and told; the endpoint stays."""
    value: Any = {"uid": name, "name": "fine"} if field == "targetRef" else name
    slice_, skipped = both_ways(manifest(({"addresses": ["10.0.0.1"], field: value},)))
    (endpoint,) = slice_.endpoints
    assert (endpoint.node, endpoint.zone, endpoint.hostname, endpoint.uid) == ("", "", "", "")
    assert endpoint.name == ("fine" if field == "targetRef" else "")
    assert len(skipped) == 1


def test_unprintable_text_that_json_writes_raw() -> None:
    """Characters beyond ASCII are seen in raw UTF-8 as well as in escapes; printable ones stay."""
    obj = manifest(
        (
            {"addresses": ["10.0.0.1"], "hostname": "a\u2028b"},
            {"addresses": ["10.0.0.2"], "hostname": "größe"},
        )
    )
    told: list[tuple[str, str]] = []
    raw = json.dumps(obj, ensure_ascii=False).encode()
    slice_ = slice_from_json(raw, POLICY, lambda *skipped: told.append(skipped))
    assert [endpoint.hostname for endpoint in slice_.endpoints] == ["", "größe"]
    assert len(told) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("endpoints", {}), ("endpoints", "x"), ("ports", {}), ("ports", 1), ("ports", "80")]
)
def test_list_of_wrong_kind(field: str, value: Any) -> None:
    """Endpoints or ports that are no list are skipped as a whole; null is an empty list."""
    slice_, skipped = both_ways(manifest((GOOD,)) | {field: value})
    assert getattr(slice_, field) == ()
    assert len(skipped) == 1
    empty, told = both_ways(manifest((GOOD,)) | {field: None})
    assert getattr(empty, field) == ()
    assert told == []


def test_slice_without_label_belongs_to_nobody() -> None:
    """A slice without the service-name label decodes, with an empty Service name."""
    slice_, _ = both_ways({"metadata": {"name": "s1"}, "addressType": "IPv4"})
    assert slice_.service == ServiceKey("default", "")


@pytest.mark.parametrize(
    ("obj", "word"),
    [
        (None, "not an object"),
        ([], "not an object"),
        ({}, "metadata"),
        ({"metadata": None}, "metadata"),
        ({"metadata": {"labels": {"a": 1}, "name": "x"}}, "labels"),
        ({"metadata": {}}, "metadata.name"),
        (manifest(addressType="FQDN"), "FQDN"),
        (manifest(addressType="IPv5"), "IPv5"),
        (manifest(addressType=4), "addressType"),
    ],
)
def test_unusable_slice(obj: Any, word: str) -> None:
    """A slice that cannot be used as a whole raises DataError and says why."""
    with pytest.raises(DataError) as from_object:
        slice_from_object(obj, POLICY, lambda *told: None)
    with pytest.raises(DataError) as from_json:
        slice_from_json(json.dumps(obj).encode(), POLICY, lambda *told: None)
    assert word in str(from_object.value)
    assert word in str(from_json.value)


HOSTILE = [
    b"",
    b"null",
    b"{",
    b"\xef\xbb\xbf{}",
    '{"metadata":{"name":"x"}}'.encode("utf-16"),
    b'{"metadata":{"name":"\xff"}}',
    b'{"metadata":{"name":"\\ud800"}}',
    b'{"metadata":' + b"[" * 10000 + b"]" * 10000 + b"}",
    b'{"metadata":{"name":"x"},"x":' + b"[" * 100000 + b"]" * 100000 + b"}",
    b'{"metadata":{"name":"x"},"x":' + b'{"a":' * 10000 + b"1" + b"}" * 10000 + b"}",
    b'{"metadata":{"name":"x","generation":1' + b"0" * 5000 + b"}}",
    b'{"metadata":{"name":"x","generation":NaN}}',
    b'{"metadata":{"name":"x","generation":1e400}}',
    b'{"metadata":{"name":"x"},"endpoints":[{"addresses":["\\ud800"]}],"addressType":"IPv4"}',
]


@pytest.mark.parametrize("raw", HOSTILE, ids=lambda raw: repr(raw[:40]))
def test_hostile_json_is_a_data_error(raw: bytes) -> None:
    """Broken encodings, endless nesting and endless numbers end in DataError, never in another error."""
    for decode in (slice_from_json, slices_from_endpoints_json):
        with pytest.raises(DataError) as caught:
            decode(raw, POLICY, lambda *told: None)
        assert len(str(caught.value)) < 500


def test_hostile_number_costs_one_port() -> None:
    """A number beyond all ranges in one port costs that port."""
    raw = json.dumps(manifest((GOOD,), ports=[{"port": 80}, {"port": 10**400}])).encode()
    told: list[tuple[str, str]] = []
    slice_ = slice_from_json(raw, POLICY, lambda *skipped: told.append(skipped))
    assert slice_.ports == (SlicePort("", 80),)
    assert len(told) == 1


def test_duplicate_keys_take_the_last() -> None:
    """JSON with a key twice is read as Go reads it: the last one counts."""
    raw = b'{"metadata":{"name":"a","name":"b"},"addressType":"IPv4"}'
    assert slice_from_json(raw, POLICY, lambda *told: None).name == "b"


def endpoints(subsets: Any, **metadata: Any) -> dict[str, Any]:
    return {
        "kind": "Endpoints",
        "metadata": {"name": "orders", "namespace": "shop", **metadata},
        "subsets": subsets,
    }


def test_endpoints_object() -> None:
    """Each subset and family becomes a slice of the Service of that name; unready addresses are kept as unready."""
    obj = endpoints(
        [
            {
                "addresses": [
                    {
                        "ip": "10.0.0.1",
                        "hostname": "a",
                        "nodeName": "n1",
                        "targetRef": {"name": "p", "uid": "u"},
                    },
                    {"ip": "fd00::1"},
                ],
                "notReadyAddresses": [{"ip": "10.0.0.2"}],
                "ports": [{"name": "http", "port": 8080}],
            },
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"name": "http", "port": 9090}]},
        ],
        uid="eu",
        resourceVersion="5",
    )
    slices = slices_from_endpoints_object(obj, POLICY, lambda *told: None)
    assert slices == slices_from_endpoints_json(json.dumps(obj).encode(), POLICY, lambda *told: None)
    assert [(s.name, s.family, s.service, s.uid, s.truncated) for s in slices] == [
        ("orders[0]", 4, ServiceKey("shop", "orders"), "eu", False),
        ("orders[0]/IPv6", 6, ServiceKey("shop", "orders"), "eu", False),
        ("orders[1]", 4, ServiceKey("shop", "orders"), "eu", False),
    ]
    first = slices[0]
    assert first.ports == (SlicePort("http", 8080),)
    assert first.endpoints == (
        SliceEndpoint(address="10.0.0.1", uid="u", name="p", hostname="a", node="n1"),
        SliceEndpoint(address="10.0.0.2", ready=False, serving=False),
    )


@pytest.mark.parametrize(("value", "truncated"), [("truncated", True), ("warning", False), ("", False)])
def test_over_capacity(value: str, truncated: bool) -> None:
    """Only ``truncated`` says that addresses are missing."""
    obj = endpoints(
        [{"addresses": [{"ip": "10.0.0.1"}]}], annotations={"endpoints.kubernetes.io/over-capacity": value}
    )
    (slice_,) = slices_from_endpoints_object(obj, POLICY, lambda *told: None)
    assert slice_.truncated is truncated


def test_bad_pieces_of_endpoints() -> None:
    """Bad subsets, addresses and ports are skipped one by one; subset numbers stay."""
    told: list[tuple[str, str]] = []
    obj = endpoints(
        [
            None,
            {
                "addresses": [{"ip": "127.0.0.1"}, {"ip": None}, {"ip": "10.0.0.1"}],
                "ports": [{"port": 0}, {"port": 1}],
            },
            {"addresses": "x"},
        ]
    )
    slices = slices_from_endpoints_json(
        json.dumps(obj).encode(), POLICY, lambda *skipped: told.append(skipped)
    )
    (slice_,) = slices
    assert (slice_.name, slice_.ports) == ("orders[1]", (SlicePort("", 1),))
    assert [e.address for e in slice_.endpoints] == ["10.0.0.1"]
    assert len(told) == 5
    assert slices_from_endpoints_object(endpoints("x"), POLICY, lambda *skipped: told.append(skipped)) == ()
    assert len(told) == 6
    with pytest.raises(DataError, match="name"):
        slices_from_endpoints_object({"metadata": {}}, POLICY, lambda *skipped: None)


def test_policy_is_the_callers() -> None:
    """What is refused depends on the policy that the source has: files may name loopback."""
    obj = manifest(({"addresses": ["127.0.0.1"]},))
    assert slice_from_object(obj, RELAXED, lambda *told: None).endpoints[0].address == "127.0.0.1"
    assert slice_from_object(obj, POLICY, lambda *told: None).endpoints == ()
