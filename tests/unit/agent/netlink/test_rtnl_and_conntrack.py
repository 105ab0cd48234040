"""Routes, devices, addresses and remembered flows: our bytes against pyroute2's, and real dumps read."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from meshlib.agent.netlink import conntrack, rtnl
from meshlib.agent.netlink.conntrack import Entry, Tuple
from meshlib.agent.netlink.exchange import parse_error
from meshlib.agent.netlink.messages import (
    DONE,
    Malformed,
    Message,
    Request,
    encode_message,
    parse_attributes,
    parse_messages,
)
from meshlib.agent.netlink.rtnl import PROTOCOL, AddressChange, HostAddress, Link, LocalRoute

CAPTURED: dict[str, Any] = json.loads((Path(__file__).parent / "captured.json").read_text())


def captured(name: str) -> list[Message]:
    """The messages of one exchange with a real kernel, without the end of a dump."""
    datagrams = (bytes.fromhex(each) for each in CAPTURED[name])
    return [each for data in datagrams for each in parse_messages(data) if each.type != DONE]


def theirs(message: Any, kind: int, flags: int, fields: dict[str, Any], attributes: dict[str, Any]) -> bytes:
    """pyroute2's bytes."""
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = list(attributes.items())
    message["header"].update({"type": kind, "flags": NLM_F_REQUEST | NLM_F_ACK | flags, "sequence_number": 7})
    message.encode()
    return bytes(message.data)


def canonical(data: bytes, head: int) -> Any:
    """Header, the family's own header, attributes by number."""
    (message,) = parse_messages(data)
    return (
        (message.type, message.flags, message.sequence),
        message.payload[:head],
        dict(parse_attributes(message.payload, head)),
    )


def ours(request: Request) -> bytes:
    return encode_message(request, 7, NLM_F_ACK)


def _route(family: int, scope: int) -> dict[str, Any]:
    length = 32 if family == socket.AF_INET else 128
    fields = {"family": family, "dst_len": length, "table": 255, "proto": PROTOCOL, "scope": scope, "type": 2}
    return {**fields, "src_len": 0, "tos": 0, "flags": 0}


@pytest.mark.parametrize(
    ("request_", "kind", "flags", "fields", "attributes"),
    [
        (
            rtnl.add_route("10.96.0.10", "10.0.0.1", 1),
            24,
            NLM_F_CREATE | NLM_F_EXCL,
            _route(socket.AF_INET, 254),
            {"RTA_DST": "10.96.0.10", "RTA_OIF": 1, "RTA_PREFSRC": "10.0.0.1"},
        ),
        (
            rtnl.add_route("fd96::10", "", 1, replace=True),
            24,
            NLM_F_CREATE | NLM_F_REPLACE,
            _route(socket.AF_INET6, 0),
            {"RTA_DST": "fd96::10", "RTA_OIF": 1},
        ),
        (
            rtnl.remove_route("10.96.0.10", 1),
            25,
            0,
            _route(socket.AF_INET, 254),
            {"RTA_DST": "10.96.0.10", "RTA_OIF": 1},
        ),
    ],
)
def test_routes_are_what_pyroute2_says(
    request_: Request, kind: int, flags: int, fields: dict[str, Any], attributes: dict[str, Any]
) -> None:
    """Header, own header and attributes."""
    assert canonical(ours(request_), 12) == canonical(theirs(rtmsg(), kind, flags, fields, attributes), 12)


@pytest.mark.parametrize(
    ("request_", "kind", "flags", "family", "address"),
    [
        (rtnl.add_address("10.96.0.10", 3), 20, NLM_F_CREATE | NLM_F_EXCL, socket.AF_INET, "10.96.0.10"),
        (rtnl.remove_address("fd96::10", 3), 21, 0, socket.AF_INET6, "fd96::10"),
    ],
)
def test_addresses_are_what_pyroute2_says(
    request_: Request, kind: int, flags: int, family: int, address: str
) -> None:
    """Of the size of one host."""
    length = 32 if family == socket.AF_INET else 128
    fields = {"family": family, "prefixlen": length, "flags": 0, "scope": 0, "index": 3}
    peer = theirs(ifaddrmsg(), kind, flags, fields, {"IFA_LOCAL": address, "IFA_ADDRESS": address})
    assert canonical(ours(request_), 8) == canonical(peer, 8)


def test_a_dummy_device_is_what_pyroute2_says() -> None:
    """Down, without ARP."""
    fields = {"family": 0, "ifi_type": 0, "index": 0, "flags": 0x80, "change": 0x81}
    attributes = {"IFLA_IFNAME": "meshlib0", "IFLA_LINKINFO": {"attrs": [("IFLA_INFO_KIND", "dummy")]}}
    peer = theirs(ifinfmsg(), 16, NLM_F_CREATE | NLM_F_EXCL, fields, attributes)
    mine = canonical(ours(rtnl.add_dummy("meshlib0")), 16)
    other = canonical(peer, 16)
    assert mine[:2] == other[:2]
    assert {kind: value.rstrip(b"\0") for kind, value in mine[2].items()} == {
        kind: value.rstrip(b"\0") for kind, value in other[2].items()
    }


def test_local_routes_of_a_real_kernel() -> None:
    """Ours among the host's; broadcast and networks are left out."""
    assert rtnl.parse_routes(captured("routes4")) == [
        LocalRoute("10.0.0.1", "10.0.0.1", 2),
        LocalRoute("10.1.0.1", "10.1.0.1", 2),
        LocalRoute("10.1.0.2", "10.1.0.2", 2),
        LocalRoute("10.96.0.10", "10.0.0.1", PROTOCOL),
        LocalRoute("127.0.0.1", "127.0.0.1", 2),
    ]
    six = rtnl.parse_routes(captured("routes6"))
    assert LocalRoute("fd96::10", "fd00::1", PROTOCOL) in six
    assert [each.protocol for each in six].count(PROTOCOL) == 1


def test_devices_and_addresses_of_a_real_kernel() -> None:
    """With the number of the device; changes as they were told."""
    assert rtnl.parse_links(captured("links")) == [Link(1, "lo", True)]
    assert HostAddress("10.0.0.1", 32, 1) in rtnl.parse_addresses(captured("addresses4"))
    assert HostAddress("fd00::1", 128, 1) in rtnl.parse_addresses(captured("addresses6"))
    assert rtnl.parse_address_changes(captured("address_changes")) == [
        AddressChange(True, HostAddress("10.0.0.2", 32, 1)),
        AddressChange(False, HostAddress("10.0.0.2", 32, 1)),
    ]


def test_the_kernel_explains_a_refusal() -> None:
    """The text of a real refusal is read."""
    (message,) = captured("route_bad_source")
    refusal = parse_error(message)
    assert refusal is not None
    assert (refusal.errno, refusal.text) == (22, "Invalid prefsrc address")


def test_flows_of_a_real_kernel() -> None:
    """UDP entries with their id; those of other protocols are left out."""
    (entry,) = conntrack.parse_entries(captured("conntrack4"), "UDP")
    assert entry.original[:3] == ("10.1.0.1", "10.1.0.1", "UDP")
    assert entry.original.destination_port == entry.reply.source_port == 5353
    assert entry.id
    assert conntrack.parse_entries(captured("conntrack4"), "SCTP") == []


FLOW = Tuple("10.1.0.1", "10.96.0.10", "UDP", 40000, 53)
FLOW6 = Tuple("fd01::1", "fd96::10", "UDP", 40000, 53)


@pytest.mark.parametrize(("flow", "version"), [(FLOW, "V4"), (FLOW6, "V6")])
def test_forgetting_a_flow_is_what_pyroute2_says(flow: Tuple, version: str) -> None:
    """The original direction and the id."""
    reply = Tuple(flow.destination, flow.source, "UDP", 53, 40000)
    request = conntrack.delete_entry(Entry(flow, reply, 0x01020304))
    addresses = [(f"CTA_IP_{version}_SRC", flow.source), (f"CTA_IP_{version}_DST", flow.destination)]
    proto = [("CTA_PROTO_NUM", 17), ("CTA_PROTO_SRC_PORT", 40000), ("CTA_PROTO_DST_PORT", 53)]
    tuple_ = [("CTA_TUPLE_IP", {"attrs": addresses}), ("CTA_TUPLE_PROTO", {"attrs": proto})]
    family = socket.AF_INET if version == "V4" else socket.AF_INET6
    fields = {"nfgen_family": family, "version": 0, "res_id": 0}
    attributes = {"CTA_TUPLE_ORIG": {"attrs": tuple_}, "CTA_ID": 0x01020304}
    peer = canonical(theirs(nfct_msg(), 0x102, 0, fields, attributes), 4)
    mine = canonical(ours(request), 4)
    assert mine[:2] == peer[:2]
    assert mine[2][12] == peer[2][12]
    assert _tree(mine[2][1]) == _tree(peer[2][1])


def _tree(data: bytes) -> Any:
    return {kind: dict(parse_attributes(value)) for kind, value in parse_attributes(data)}


@pytest.mark.parametrize(
    ("parse", "kind", "payload", "complaint"),
    [
        (rtnl.parse_routes, 24, b"\2", "1 of 12 bytes"),
        (rtnl.parse_routes, 20, b"", "type 20 where routes"),
        (rtnl.parse_links, 16, bytes(16), "without a name"),
        (rtnl.parse_links, 24, b"", "where devices"),
        (rtnl.parse_addresses, 20, b"\2", "1 of 8 bytes"),
        (lambda told: conntrack.parse_entries(told, "UDP"), 0x100, b"\2", "of 1 bytes"),
        (lambda told: conntrack.parse_entries(told, "UDP"), 0x100, b"\2\0\0\0", "without attribute 1"),
        (lambda told: conntrack.parse_entries(told, "UDP"), 0x200, b"", "where connections"),
    ],
)
def test_torn_and_foreign_messages(parse: Any, kind: int, payload: bytes, complaint: str) -> None:
    """They are named."""
    with pytest.raises(Malformed, match=complaint):
        parse([Message(kind, 0, 1, 0, payload)])
