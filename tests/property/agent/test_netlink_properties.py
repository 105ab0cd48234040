"""Whatever bytes come, a codec answers with a value or with Malformed; what we say comes back as it was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.netlink import conntrack, rtnl
from meshlib.agent.netlink.exchange import Answers, chunks
from meshlib.agent.netlink.generic import parse_family
from meshlib.agent.netlink.ipvs import Codec, RealKey, RealServer, ServiceKey, VirtualServer
from meshlib.agent.netlink.messages import (
    DONE,
    HEADER,
    Malformed,
    Message,
    Request,
    attribute,
    parse_attributes,
    parse_messages,
)

DATA = Path(__file__).parents[2] / "unit" / "agent" / "netlink" / "captured.json"
CAPTURED: dict[str, Any] = json.loads(DATA.read_text())
DATAGRAMS = [bytes.fromhex(each) for name, told in CAPTURED.items() if name != "kernel" for each in told]
CODEC = Codec(0x1C)

READERS: list[Callable[[list[Message]], Any]] = [
    CODEC.services,
    CODEC.destinations,
    lambda told: [CODEC.info(each) for each in told],
    lambda told: [CODEC.timeouts(each) for each in told],
    lambda told: [parse_family(each, "IPVS") for each in told],
    rtnl.parse_routes,
    rtnl.parse_links,
    rtnl.parse_address_changes,
    lambda told: conntrack.parse_entries(told, "UDP"),
]


def read_everything(data: bytes) -> None:
    """Everything that can be done with a datagram; Malformed is the only complaint."""
    with contextlib.suppress(Malformed):
        Answers(1, 1000).feed(data)
    try:
        told = list(parse_messages(data))
    except Malformed:
        return
    for read in READERS:
        with contextlib.suppress(Malformed):
            read(told)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Noise."""
    read_everything(data)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real datagram with some bytes changed, cut off or doubled."""
    data = bytearray(draw(st.sampled_from(DATAGRAMS)))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, len(data)))
    return bytes(data[:cut] if draw(st.booleans()) else data + data[:cut])


@given(damaged())
def test_damaged_answers_of_a_real_kernel(data: bytes) -> None:
    """Torn, or with lengths that lie."""
    read_everything(data)


v4 = st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
v6 = st.integers(0, 2**128 - 1).map(lambda number: str(IPv6Address(number)))
ports = st.integers(0, 65535)
u32 = st.integers(0, 2**32 - 1)
protocols = st.sampled_from(["TCP", "UDP", "SCTP"])
names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=15)


@given(protocols, st.one_of(v4, v6), ports, names, u32, u32, st.data())
def test_a_virtual_server_comes_back_as_it_was(
    protocol: str, address: str, port: int, scheduler: str, flags: int, timeout: int, data: st.DataObject
) -> None:
    """The kernel tells it in the words of the request; HASHED is its own."""
    key = ServiceKey(protocol, address, port)
    prefix = data.draw(st.integers(1, 128 if ":" in address else 32))
    value = VirtualServer(scheduler, flags & ~2, timeout, prefix)
    request = CODEC.add_service(key, value._replace(flags=value.flags | 2))
    assert CODEC.services([Message(0x1C, 0, 1, 0, request.payload)]) == {key: value}


@given(st.one_of(v4, v6), ports, u32, u32, u32, st.tuples(u32, u32, u32), st.randoms(use_true_random=False))
def test_a_destination_comes_back_as_it_was(
    address: str, port: int, weight: int, upper: int, lower: int, counts: tuple[int, int, int], shuffle: Any
) -> None:
    """In whatever order its attributes come."""
    real, value = RealKey(address, port), RealServer(weight, 0, upper, lower)
    request = CODEC.add_destination(ServiceKey("TCP", "10.0.0.1", 1), real, value)
    inner = list(parse_attributes(dict(parse_attributes(request.payload, 4))[2]))
    inner += [(7 + place, count.to_bytes(4, "little")) for place, count in enumerate(counts)]
    shuffle.shuffle(inner)
    body = b"\5\1\0\0" + attribute(2, b"".join(attribute(*each) for each in inner))
    found = CODEC.destinations([Message(0x1C, 0, 1, 0, body)])
    assert found == {real: (value, counts)}


@given(
    st.lists(st.binary(max_size=60), max_size=60),
    u32,
    st.integers(1, 10),
    st.integers(1, 300),
    st.sets(st.integers(0, 59)),
)
def test_cutting_and_answering(
    payloads: list[bytes], first: int, messages: int, size: int, refused: set[int]
) -> None:
    """Every request is sent once and in order, and every refusal finds its request, however they are cut."""
    requests = [Request(0x1C, 0, payload) for payload in payloads]
    sent: list[bytes] = []
    told: set[int] = set()
    for chunk in chunks(requests, first, messages, size):
        assert chunk.start == len(sent)
        answers = Answers(chunk.first, chunk.size)
        found = list(parse_messages(chunk.data))
        assert len(found) == chunk.size <= messages
        for place, message in enumerate(found):
            sent.append(message.payload)
            code = 1 if chunk.start + place in refused else 0
            if code or message.flags & 4:
                head = HEADER.pack(36, 2, 0, message.sequence, 0)
                answers.feed(head + (-code).to_bytes(4, "little", signed=True) + bytes(16))
        assert answers.complete
        told |= {chunk.start + index for index in answers.refusals}
    assert sent == payloads
    assert told == {each for each in refused if each < len(payloads)}


def test_the_end_of_a_dump_is_captured() -> None:
    """The data are whole exchanges: each dump has its end."""
    assert sum(any(each.type == DONE for each in parse_messages(data)) for data in DATAGRAMS) >= 10
