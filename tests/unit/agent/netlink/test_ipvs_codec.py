"""IPVS on the wire: our bytes against pyroute2's for every command, and real dumps read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.generic import ipvs as peer

from meshlib.agent.netlink.exchange import Answers, parse_error
from meshlib.agent.netlink.generic import find_family, parse_family
from meshlib.agent.netlink.ipvs import (
    HASH_PORT,
    Codec,
    Connections,
    RealKey,
    RealServer,
    ServiceKey,
    Timeouts,
    VirtualServer,
)
from meshlib.agent.netlink.messages import (
    DONE,
    Malformed,
    Message,
    Request,
    attribute,
    encode_message,
    parse_attributes,
    parse_messages,
)

CAPTURED: dict[str, Any] = json.loads((Path(__file__).parent / "captured.json").read_text())
CODEC = Codec(0x1C)
V4 = ServiceKey("TCP", "10.96.0.10", 80)
V6 = ServiceKey("UDP", "fd96::10", 53)
REAL4, REAL6 = RealKey("10.1.0.1", 8080), RealKey("fd01::1", 5353)


def captured(name: str) -> list[Message]:
    """The messages of one exchange with a real kernel, without the end of a dump."""
    datagrams = (bytes.fromhex(each) for each in CAPTURED[name])
    return [each for data in datagrams for each in parse_messages(data) if each.type != DONE]


def theirs(command: int, service: dict[str, Any] | None, dest: dict[str, Any] | None = None) -> bytes:
    """The same command in pyroute2's words, whole message."""
    message = peer.ipvsmsg()
    message["cmd"], message["version"] = command, 1
    message["attrs"] = []
    if service is not None:
        message["attrs"].append(("IPVS_CMD_ATTR_SERVICE", {"attrs": list(service.items())}))
    if dest is not None:
        message["attrs"].append(("IPVS_CMD_ATTR_DEST", {"attrs": list(dest.items())}))
    message["header"].update({"type": 0x1C, "flags": NLM_F_REQUEST | NLM_F_ACK, "sequence_number": 7})
    message.encode()
    return bytes(message.data)


def canonical(data: bytes) -> Any:
    """Header and attributes as values; nests without their flag, attributes by number."""
    (message,) = parse_messages(data)
    head, body = message.payload[:4], message.payload[4:]
    nests = {kind: dict(parse_attributes(value)) for kind, value in parse_attributes(body)}
    for kind, address in ((1, 3), (2, 1)):  # pyroute2 leaves out the zeros behind an IPv4 address
        if address in nests.get(kind, {}):
            nests[kind][address] = nests[kind][address].ljust(16, b"\0")
    return (message.type, message.flags, message.sequence), head, nests


def ours(request: Request) -> bytes:
    return encode_message(request, 7, NLM_F_ACK)


def identity(key: ServiceKey) -> dict[str, Any]:
    protocol = {"TCP": 6, "UDP": 17}[key.protocol]
    return {
        "IPVS_SVC_ATTR_AF": 10 if ":" in key.address else 2,
        "IPVS_SVC_ATTR_PROTOCOL": protocol,
        "IPVS_SVC_ATTR_ADDR": key.address,
        "IPVS_SVC_ATTR_PORT": key.port,
    }


def behaviour(scheduler: str, flags: int, timeout: int, netmask: str) -> dict[str, Any]:
    return {
        "IPVS_SVC_ATTR_SCHED_NAME": scheduler,
        "IPVS_SVC_ATTR_FLAGS": {"flags": flags, "mask": 0xFFFFFFFF},
        "IPVS_SVC_ATTR_TIMEOUT": timeout,
        "IPVS_SVC_ATTR_NETMASK": netmask,
    }


def destination(real: RealKey, weight: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"IPVS_DEST_ATTR_ADDR": real.address, "IPVS_DEST_ATTR_PORT": real.port}
    if weight is not None:
        found |= {
            "IPVS_DEST_ATTR_FWD_METHOD": 0,
            "IPVS_DEST_ATTR_WEIGHT": weight,
            "IPVS_DEST_ATTR_U_THRESH": 0,
            "IPVS_DEST_ATTR_L_THRESH": 0,
        }
    family = 10 if ":" in real.address else 2
    return {**found, "IPVS_DEST_ATTR_ADDR_FAMILY": family}


RR4 = behaviour("rr", 0, 0, "255.255.255.255")
#: An IPv6 prefix length in the machine's order, as pyroute2 can say it.
RR6 = behaviour("mh", HASH_PORT, 0, "128.0.0.0")


@pytest.mark.parametrize(
    ("request_", "command", "service", "dest"),
    [
        (CODEC.add_service(V4, VirtualServer()), 1, {**identity(V4), **RR4}, None),
        (
            CODEC.add_service(V4, VirtualServer("wlc", 1, 10800, 24)),
            1,
            {**identity(V4), **behaviour("wlc", 1, 10800, "255.255.255.0")},
            None,
        ),
        (
            CODEC.add_service(V6, VirtualServer("mh", HASH_PORT, 0, 128)),
            1,
            {**identity(V6), **RR6},
            None,
        ),
        (CODEC.set_service(V4, VirtualServer()), 2, {**identity(V4), **RR4}, None),
        (CODEC.remove_service(V6), 3, identity(V6), None),
        (CODEC.get_service(V4), 4, identity(V4), None),
        (CODEC.list_services(), 4, None, None),
        (CODEC.add_destination(V4, REAL4, RealServer(3)), 5, identity(V4), destination(REAL4, 3)),
        (CODEC.add_destination(V6, REAL6, RealServer()), 5, identity(V6), destination(REAL6, 1)),
        (CODEC.set_destination(V4, REAL4, RealServer(0)), 6, identity(V4), destination(REAL4, 0)),
        (CODEC.remove_destination(V4, REAL4), 7, identity(V4), destination(REAL4)),
        (CODEC.remove_destination(V6, REAL6), 7, identity(V6), destination(REAL6)),
        (CODEC.list_destinations(V6), 8, identity(V6), None),
        (CODEC.get_timeouts(), 13, None, None),
        (CODEC.get_info(), 15, None, None),
    ],
)
def test_every_command_is_what_pyroute2_says(
    request_: Request, command: int, service: dict[str, Any] | None, dest: dict[str, Any] | None
) -> None:
    """Header, command and every attribute, for both families."""
    assert canonical(ours(request_)) == canonical(theirs(command, service, dest))


def test_timeouts_are_told_as_three_numbers() -> None:
    """Seconds, in attributes 4, 5 and 6 beside no nest (pyroute2 has no numbers there)."""
    body = struct.pack("=BBxx HHI HHI HHI", 12, 1, 8, 4, 900, 8, 5, 30, 8, 6, 7)
    assert CODEC.set_timeouts(Timeouts(900, 30, 7)) == Request(0x1C, 0, body)


def test_the_family_is_found_by_name() -> None:
    """Asked in the controller's words, answered by a real kernel; another family's answer is refused."""
    assert find_family("IPVS").payload.endswith(b"IPVS\0\0\0\0")
    (answer,) = (each for each in captured("family") if each.type == 0x10)
    assert parse_family(answer, "IPVS") == 0x1C
    with pytest.raises(Malformed, match="not about the family"):
        parse_family(answer, "other")


def test_services_of_a_real_kernel() -> None:
    """Both families in one dump; the one by firewall mark is left out, and HASHED is not among the flags."""
    assert CODEC.services(captured("services")) == {
        ServiceKey("TCP", "10.96.0.10", 80): VirtualServer("wlc", 1, 300, 32),
        ServiceKey("UDP", "10.96.0.10", 53): VirtualServer("rr", 0, 0, 32),
        ServiceKey("TCP", "fd96::10", 80): VirtualServer("mh", HASH_PORT, 0, 128),
    }


def test_destinations_of_a_real_kernel() -> None:
    """The latest first, with weights and connections; none of an unknown server."""
    assert list(CODEC.destinations(captured("destinations")).items()) == [
        (RealKey("10.1.0.2", 8080), (RealServer(1), Connections(1, 0, 1))),
        (RealKey("10.1.0.1", 8080), (RealServer(3), Connections(0, 0, 0))),
    ]
    assert CODEC.destinations(captured("destinations6")) == {
        RealKey("fd01::1", 8080): (RealServer(1), Connections(0, 0, 0))
    }
    assert captured("destinations_of_none") == []


def _rearranged(message: Message, order: slice) -> Message:
    """The same destination with its attributes in another order."""
    nests = dict(parse_attributes(message.payload, 4))
    inner = list(parse_attributes(nests[2]))[order]
    body = attribute(2, b"".join(attribute(kind, value) for kind, value in inner))
    return message._replace(payload=message.payload[:4] + body)


@pytest.mark.parametrize("name", ["destinations", "destinations6"])
def test_the_order_of_attributes_does_not_matter(name: str) -> None:
    """The usual layout has a fast way, any other the general one: with one result."""
    messages = captured(name)
    backwards = [_rearranged(each, slice(None, None, -1)) for each in messages]
    assert CODEC.destinations(backwards) == CODEC.destinations(messages)


def test_an_old_kernel_tells_less() -> None:
    """Without the tunnel attributes, and without the address family (IPv4 then)."""
    messages = [_rearranged(each, slice(0, 4)) for each in captured("destinations")]
    with pytest.raises(Malformed, match="lacks attribute"):
        CODEC.destinations(messages)
    kept = []
    for each in captured("destinations"):
        nest = dict(parse_attributes(dict(parse_attributes(each.payload, 4))[2]))
        inner = b"".join(attribute(kind, value) for kind, value in nest.items() if kind < 10)
        kept.append(each._replace(payload=each.payload[:4] + attribute(2, inner)))
    assert CODEC.destinations(kept) == CODEC.destinations(captured("destinations"))


def test_info_and_timeouts_of_a_real_kernel() -> None:
    """Version in words, size of the table, seconds."""
    (info,) = (each for each in captured("info") if each.type == 0x1C)
    assert CODEC.info(info) == ("1.2.1", 4096)
    (timeouts,) = (each for each in captured("timeouts") if each.type == 0x1C)
    assert CODEC.timeouts(timeouts) == Timeouts(900, 120, 300)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("add_exists", 17),
        ("no_service", 3),
        ("no_destination", 2),
        ("no_scheduler", 2),
        ("family_unknown", 2),
    ],
)
def test_refusals_of_a_real_kernel(name: str, number: int) -> None:
    """The errno of each, as the kernel says it."""
    (message,) = captured(name)
    refusal = parse_error(message)
    assert refusal is not None
    assert refusal.errno == number


def test_an_acknowledgement_of_a_real_kernel() -> None:
    """It ends the exchange without a refusal."""
    (data,) = (bytes.fromhex(each) for each in CAPTURED["add_ack"])
    (message,) = parse_messages(data)
    assert parse_error(message) is None
    answers = Answers(message.sequence, 1)
    answers.feed(data)
    assert (answers.complete, answers.refusals) == (True, {})


def test_another_family_or_command_is_refused() -> None:
    """Answers that are not what was asked for are named, not read."""
    services, destinations = captured("services"), captured("destinations")
    with pytest.raises(Malformed, match="type 28"):
        Codec(0x1D).services(services)
    with pytest.raises(Malformed, match="command 5 instead of 1"):
        CODEC.services(destinations)
    with pytest.raises(Malformed, match="without attribute 2"):
        CODEC.destinations(
            [each._replace(payload=b"\5\1\0\0" + each.payload[4:8][:0]) for each in destinations]
        )
