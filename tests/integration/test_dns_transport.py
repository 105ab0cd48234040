"""The DNS transport against a server that misbehaves in ways no real one does on demand."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from meshlib.discovery.dns import transport
from meshlib.discovery.dns.names import ResolvConf
from meshlib.discovery.dns.records import Kind, Question, RecordType
from meshlib.discovery.dns.transport import Asker
from tests.components.process import free_port

#: Replies to one datagram: none, one or several.
Udp = Callable[[dns.message.Message], list[bytes]]
Tcp = Callable[[dns.message.Message, asyncio.StreamWriter], Awaitable[None]]

NAME = Question("orders.test", RecordType.A)


class FakeServer(asyncio.DatagramProtocol):
    """Plays bytes over UDP and TCP on one port; remembers the queries."""

    def __init__(self, udp: Udp, tcp: Tcp | None) -> None:
        self.udp, self.tcp = udp, tcp
        self.seen: list[dns.message.Message] = []
        self.ports: list[int] = []
        self.by_tcp = 0
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        message = dns.message.from_wire(data)
        self.seen.append(message)
        self.ports.append(addr[1])
        for reply in self.udp(message):
            self.transport.sendto(reply, addr)

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            message = dns.message.from_wire(await reader.readexactly(length))
            self.by_tcp += 1
            assert self.tcp is not None
            await self.tcp(message, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(udp: Udp, tcp: Tcp | None = None) -> AsyncIterator[tuple[FakeServer, Asker, str]]:
    port = free_port()
    loop = asyncio.get_running_loop()
    made, server = await loop.create_datagram_endpoint(
        lambda: FakeServer(udp, tcp), local_addr=("127.0.0.1", port)
    )
    listener = await asyncio.start_server(server.serve_tcp, "127.0.0.1", port) if tcp else None
    try:
        yield server, Asker(lambda: ResolvConf(attempts=1, timeout=1), time.monotonic), f"127.0.0.1:{port}"
    finally:
        made.close()
        if listener is not None:
            listener.close()
        await asyncio.sleep(0.01)


def reply(
    query: dns.message.Message, *addresses: str, rcode: int = dns.rcode.NOERROR, tc: bool = False
) -> bytes:
    message = dns.message.make_response(query)
    message.set_rcode(dns.rcode.Rcode(rcode))
    if tc:
        message.flags |= dns.flags.TC
    if addresses:
        message.answer.append(dns.rrset.from_text(query.question[0].name, 5, "IN", "A", *addresses))
    return message.to_wire(max_size=65535)


def framed(wire: bytes) -> bytes:
    return struct.pack("!H", len(wire)) + wire


def at(server: str, kind: RecordType = RecordType.A) -> Question:
    return Question("orders.test", kind, server)


def test_wrong_ids_and_foreign_questions_are_ignored() -> None:
    """R8: forged packets before the real one are passed over, not believed and not an error."""

    def udp(query: dns.message.Message) -> list[bytes]:
        forged = dns.message.make_query("orders.test", "A")
        other = dns.message.make_query("evil.test", "A", id=query.id)
        return [
            reply(forged, "10.6.6.6"),
            reply(other, "10.6.6.7"),
            b"\x00" * 5,
            query.to_wire(),
            reply(query, "10.0.0.1"),
        ]

    async def body() -> None:
        async with serving(udp) as (_, ask, server):
            answer = await ask(at(server))
            assert answer.addresses == ("10.0.0.1",)
            assert ask.ignored == 4

    asyncio.run(body())


def test_only_forged_packets_end_in_a_timeout() -> None:
    """Nothing that fits: UNKNOWN after the try's time, as if nobody had answered."""

    def udp(query: dns.message.Message) -> list[bytes]:
        return [reply(dns.message.make_query("orders.test", "A"), "10.6.6.6")]

    async def body() -> None:
        async with serving(udp) as (_, ask, server):
            answer = await ask(at(server))
            assert (answer.kind, answer.rcode) == (Kind.UNKNOWN, "TIMEOUT")

    asyncio.run(body())


def test_formerr_on_edns_is_asked_again_without() -> None:
    """A server that cannot read EDNS is asked without it, and remembered."""

    def udp(query: dns.message.Message) -> list[bytes]:
        if query.edns >= 0:
            bare = dns.message.Message(id=query.id)
            bare.flags = dns.flags.QR
            bare.set_rcode(dns.rcode.FORMERR)
            return [bare.to_wire()]
        return [reply(query, "10.0.0.1")]

    async def body() -> None:
        async with serving(udp) as (fake, ask, server):
            for _ in range(2):
                assert (await ask(at(server))).addresses == ("10.0.0.1",)
            assert [query.edns for query in fake.seen] == [0, -1, -1]
            assert fake.seen[0].payload == 1232

    asyncio.run(body())


def test_truncated_answers_are_never_used() -> None:
    """R6: TC with partial records goes to TCP, and the next query goes there directly while the answer is large."""
    many = tuple(f"10.0.{n // 250}.{n % 250 + 1}" for n in range(300))

    async def tcp(query: dns.message.Message, writer: asyncio.StreamWriter) -> None:
        writer.write(framed(reply(query, *many)))
        await writer.drain()

    async def body() -> None:
        async with serving(lambda query: [reply(query, "10.6.6.6", tc=True)], tcp) as (fake, ask, server):
            for _ in range(2):
                assert (await ask(at(server))).addresses == tuple(sorted(many))
            assert len(fake.seen) == 1
            assert fake.by_tcp == 2

    asyncio.run(body())


def test_lying_tc_without_tcp_is_unknown() -> None:
    """TC and no TCP listener: the partial records are still not used."""

    async def body() -> None:
        async with serving(lambda query: [reply(query, "10.6.6.6", tc=True)]) as (_, ask, server):
            answer = await ask(at(server))
            assert (answer.kind, answer.rcode) == (Kind.UNKNOWN, "UNREACHABLE")

    asyncio.run(body())


def test_tc_over_tcp_is_garbage() -> None:
    """A server that truncates even over TCP is not believed."""

    async def tcp(query: dns.message.Message, writer: asyncio.StreamWriter) -> None:
        writer.write(framed(reply(query, "10.6.6.6", tc=True)))
        await writer.drain()

    async def body() -> None:
        async with serving(lambda query: [reply(query, tc=True)], tcp) as (_, ask, server):
            assert (await ask(at(server))).rcode == "GARBAGE"

    asyncio.run(body())


def test_slow_drip_over_tcp_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte at a time for ever: the exchange has one bound, not one per byte."""
    monkeypatch.setattr(transport, "TCP_TIMEOUT", 0.5)

    async def tcp(query: dns.message.Message, writer: asyncio.StreamWriter) -> None:
        for byte in framed(reply(query, *(f"10.0.0.{n}" for n in range(1, 200)))):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async def body() -> None:
        async with serving(lambda query: [reply(query, tc=True)], tcp) as (_, ask, server):
            async with asyncio.timeout(10):
                assert (await ask(at(server))).rcode == "TIMEOUT"

    asyncio.run(body())


@pytest.mark.parametrize("sent", [b"", b"\x00", b"\x00\x05ab", b"\xff\xffabc"])
def test_broken_tcp_streams(sent: bytes) -> None:
    """A stream that ends early is garbage, not a crash and not a hang."""

    async def tcp(query: dns.message.Message, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()

    async def body() -> None:
        async with serving(lambda query: [reply(query, tc=True)], tcp) as (_, ask, server):
            assert (await ask(at(server))).rcode == "GARBAGE"

    asyncio.run(body())


def test_every_query_has_its_own_port_and_id() -> None:
    """R8: ports and ids are not reused, so a forger has to guess both each time."""

    async def body() -> None:
        async with serving(lambda query: [reply(query, "10.0.0.1")]) as (fake, ask, server):
            for _ in range(20):
                assert (await ask(at(server))).addresses == ("10.0.0.1",)
            assert len(set(fake.ports)) > 10
            assert len({query.id for query in fake.seen}) > 15

    asyncio.run(body())


def test_nobody_listens() -> None:
    """A closed port is noticed at once (ICMP), and waiting for it is hopeless."""

    async def body() -> None:
        ask = Asker(lambda: ResolvConf(attempts=2), time.monotonic)
        answer = await ask(at(f"127.0.0.1:{free_port()}"))
        assert (answer.kind, answer.rcode, answer.hopeless) == (Kind.UNKNOWN, "UNREACHABLE", True)
        assert ask.sent == 1, "a refusal is not asked again at once"

    asyncio.run(body())


def test_next_server_when_the_first_fails() -> None:
    """R9: the second server answers for a dead first one, which is then asked last."""

    async def body() -> None:
        async with serving(lambda query: [reply(query, "10.0.0.1")]) as (fake, _, server):
            port = int(server.rpartition(":")[2])
            conf = ResolvConf(servers=("127.0.0.9", "127.0.0.1"), attempts=1, timeout=1)
            ask = Asker(lambda: conf, time.monotonic, port)
            for _ in range(3):
                assert (await ask(NAME)).server == server
            assert ask.sent == 4, "the dead one was tried once only"
            assert len(fake.seen) == 3

    asyncio.run(body())


def test_confirmation_prefers_another_server() -> None:
    """``avoid``: the server whose negative is to be confirmed is asked last."""

    async def body() -> None:
        async with serving(lambda query: [reply(query, "10.0.0.1")]) as (_, _, server):
            port = int(server.rpartition(":")[2])
            conf = ResolvConf(servers=("127.0.0.1", "127.0.0.9"), attempts=1)
            ask = Asker(lambda: conf, time.monotonic, port)
            answer = await ask(NAME, avoid=server)
            assert answer.server == server, "the other one is dead, so it is asked after all"
            assert ask.board.states[f"127.0.0.9:{port}"].failures == 1

    asyncio.run(body())


def test_servfail_from_one_server_is_not_the_end() -> None:
    """SERVFAIL goes on to the next server; if all say so the answer names each."""

    async def body() -> None:
        async with serving(lambda query: [reply(query, rcode=dns.rcode.SERVFAIL)]) as (fake, ask, server):
            answer = await ask(at(server))
            assert (answer.kind, answer.rcode, answer.hopeless) == (Kind.UNKNOWN, "SERVFAIL", False)
            assert server in answer.detail
            assert len(fake.seen) == 1

    asyncio.run(body())


def test_cname_without_its_end_is_chased() -> None:
    """A server that gives only the CNAME is asked for its end; the lower TTL counts."""

    def udp(query: dns.message.Message) -> list[bytes]:
        message = dns.message.make_response(query)
        name = query.question[0].name
        if name.to_text() == "orders.test.":
            message.answer.append(dns.rrset.from_text(name, 3, "IN", "CNAME", "end.test."))
        else:
            message.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "10.0.0.1"))
        return [message.to_wire()]

    async def body() -> None:
        async with serving(udp) as (_, ask, server):
            answer = await ask(at(server))
            assert (answer.addresses, answer.ttl, answer.canonical) == (("10.0.0.1",), 3, "end.test")

    asyncio.run(body())


def test_cname_loop_over_several_replies_ends() -> None:
    """A chain that goes round over replies ends without an answer, after each name once."""

    def udp(query: dns.message.Message) -> list[bytes]:
        message = dns.message.make_response(query)
        name = query.question[0].name
        other = "b.test." if name.to_text() != "b.test." else "a.test."
        message.answer.append(dns.rrset.from_text(name, 3, "IN", "CNAME", other))
        return [message.to_wire()]

    async def body() -> None:
        async with serving(udp) as (fake, ask, server):
            answer = await ask(at(server))
            assert (answer.kind, answer.rcode) == (Kind.UNKNOWN, "GARBAGE"), (
                "a loop says nothing about endpoints"
            )
            assert [query.question[0].name.to_text() for query in fake.seen] == [
                "orders.test.",
                "b.test.",
                "a.test.",
            ]

    asyncio.run(body())
