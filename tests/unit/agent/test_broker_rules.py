"""Which messages the programmer passes on: everything that our backends send, and nothing else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.broker.rules import GENERIC, NETFILTER, ROUTE, Known, refusal
from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.generic import find_family
from meshlib.agent.netlink.ipvs import Codec, ServiceKey, VirtualServer
from meshlib.agent.netlink.messages import Request, attribute, encode_message

IPVS = 0x1E
KNOWN = Known(ipvs_family=IPVS, device=7)


def sent(*requests: Request) -> bytes:
    return b"".join(encode_message(request, 1) for request in requests)


def nf(command: int, *attributes: bytes, subsystem: int = 10) -> Request:
    return Request(subsystem << 8 | command, 0, b"\x02\0\0\0" + b"".join(attributes))


def route(
    table: int = 255, protocol: int = 0x6D, kind: int = 2, length: int = 32, extra: bytes = b""
) -> Request:
    return Request(24, 0, struct.pack("=BBBBBBBBI", 2, length, 0, 0, table, protocol, 254, kind, 0) + extra)


def test_what_the_backends_send_passes() -> None:
    """Virtual servers, our tables, our routes."""
    codec = Codec(IPVS)
    key = ServiceKey("TCP", "10.96.0.1", 80)
    batch = sent(
        codec.add_service(key, VirtualServer(prefix=32)), codec.remove_service(key), codec.get_info()
    )
    assert refusal(GENERIC, batch, KNOWN) == ""
    assert refusal(GENERIC, sent(find_family("IPVS")), Known()) == ""
    table = attribute(1, b"meshlib\0")
    assert (
        refusal(NETFILTER, sent(Request(0x10, 0, b"\0\0\0\x0a"), nf(0, table), nf(12, table)), Known()) == ""
    )
    bound = sent(
        rtnl.add_route("10.96.0.1", "192.0.2.1", 1),
        rtnl.remove_route("fd00::1", 1),
        rtnl.list_routes(4),
        rtnl.list_addresses(6),
        rtnl.list_links(),
    )
    assert refusal(ROUTE, bound, Known()) == ""
    device = sent(
        rtnl.add_dummy("meshlib0"),
        rtnl.set_link_up(7),
        rtnl.add_address("10.96.0.1", 7),
        rtnl.remove_address("10.96.0.1", 7),
        rtnl.remove_link(7),
    )
    assert refusal(ROUTE, device, KNOWN) == ""


@pytest.mark.parametrize(
    ("protocol", "request_", "words"),
    [
        (GENERIC, Request(IPVS, 0, b"\x11\x01\0\0"), "IPVS command 17"),
        (GENERIC, Request(IPVS, 0, b"\x09\x01\0\0"), "IPVS command 9"),
        (GENERIC, Request(0x33, 0, b"\x01\x01\0\0"), "which is not IPVS"),
        (GENERIC, Request(16, 0, b"\x01\x01\0\0"), "generic netlink controller"),
        (NETFILTER, nf(0, attribute(1, b"filter\0")), "table 'filter', which is not ours"),
        (NETFILTER, nf(2), "unnamed"),
        (NETFILTER, nf(12, attribute(1, b"meshlib\0"), attribute(1, b"filter\0")), "'filter'"),
        (NETFILTER, nf(12, attribute(1, b"filter\0"), attribute(1, b"meshlib\0")), "not ours"),
        # The kernel prefers a table's number to its name.
        (NETFILTER, nf(2, attribute(1, b"meshlib\0"), attribute(4, bytes(7) + b"\1")), "by its number"),
        (NETFILTER, Request(0x0A00, 0, b"\x01\0\0\0" + attribute(1, b"meshlib\0")), "table of family 1"),
        (NETFILTER, nf(2, subsystem=1), "connection tracking command 2"),
        (NETFILTER, nf(0, subsystem=1), "connection tracking command 0"),
        (NETFILTER, nf(0, subsystem=4), "netfilter subsystem 4"),
        (ROUTE, route(table=254), "a route that is not one of ours"),
        (ROUTE, route(protocol=3), "a route that is not one of ours"),
        (ROUTE, route(kind=1), "a route that is not one of ours"),
        (ROUTE, route(length=0), "a route that is not one of ours"),
        (ROUTE, route(length=24), "a route that is not one of ours"),
        (ROUTE, route(extra=attribute(15, struct.pack("=I", 254))), "a route that is not one of ours"),
        (ROUTE, Request(16, 0, bytes(16) + attribute(3, b"eth0\0")), "a device that is not ours"),
        (ROUTE, rtnl.add_dummy("eth9"), "a device that is not ours"),
        (ROUTE, rtnl.set_link_up(1), "a device that is not ours"),
        (ROUTE, rtnl.remove_link(2), "a device that is not ours"),
        (ROUTE, rtnl.add_address("192.0.2.1", 2), "an address of a device that is not ours"),
        (ROUTE, Request(28, 0, bytes(12)), "routing message 28"),
        (9, Request(1000, 0, b""), "netlink protocol 9"),
    ],
)
def test_what_is_refused(protocol: int, request_: Request, words: str) -> None:
    """Alone, and behind a message that is allowed."""
    assert words in refusal(protocol, sent(request_), KNOWN)
    good = {GENERIC: find_family("IPVS"), NETFILTER: nf(0, attribute(1, b"meshlib\0")), ROUTE: route()}
    if protocol in good:
        assert words in refusal(protocol, sent(good[protocol], request_), KNOWN)


@given(st.sampled_from([ROUTE, NETFILTER, GENERIC]), st.binary(max_size=120))
def test_any_bytes_are_judged(protocol: int, data: bytes) -> None:
    """Rubbish is refused in words; nothing is raised."""
    assert isinstance(refusal(protocol, data, KNOWN), str)


def test_a_length_that_lies() -> None:
    """What the kernel would read beyond the message is not passed on."""
    good = sent(nf(0, attribute(1, b"meshlib\0")))
    assert refusal(NETFILTER, good[:-4], Known())
    assert refusal(NETFILTER, b"\xff\xff" + good[2:], Known())
    assert refusal(NETFILTER, good + b"\0" * 8, Known())
    assert refusal(NETFILTER, b"", Known())
