"""Asks one question on the network: UDP, then TCP when the reply is truncated, then the next server. References R8, R9.

Every query has a socket of its own: a fresh random port and id against forgery, and no pinning to one backend of the
DNS Service. The socket is connected, so that only the asked server is heard and a dead one is noticed at once (ICMP).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace

from meshlib.discovery.dns.names import ResolvConf
from meshlib.discovery.dns.records import Answer, Kind, Question
from meshlib.discovery.dns.servers import ServerBoard
from meshlib.discovery.dns.wire import EDNS_PAYLOAD, Mismatch, Truncated, decode, query

#: One UDP try. R9 asks for the next server after 1-2 s; RFC 8767's client timer of 1.8 s lies in there too.
UDP_TIMEOUT = 1.8
#: One TCP exchange, connect included: a thousand records over a slow link, and still an end to a dripping server.
TCP_TIMEOUT = 3.0
#: Queries under way at once. Enough for the targets of a process; SRV with many targets must not flood a server (R10).
PARALLEL = 16
#: CNAMEs that a server which does not recurse leaves to us; chains in the field are 1-3 long.
MAX_CHASE = 8

#: Errors of this process or host, which say nothing about the server and may pass soon.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

_Exchange = Callable[[Question, str, bool], Awaitable[Answer]]


class Asker:
    """Asks questions. One per resolver; used on the control loop only.

    ``conf`` gives the current resolv.conf. ``port``: of the servers that resolv.conf names (53, except in tests).
    """

    def __init__(self, conf: Callable[[], ResolvConf], now: Callable[[], float], port: int = 53) -> None:
        self._conf = conf
        self._now = now
        self._port = port
        self._gate = asyncio.Semaphore(PARALLEL)
        self._needs_tcp: set[tuple[str, Question]] = set()
        self.board = ServerBoard()
        self.sent = 0  #: queries put on the wire
        self.ignored = 0  #: datagrams that did not belong to the query

    async def __call__(self, question: Question, avoid: str = "") -> Answer:
        """The answer to one question; never raises for what the network or a server does."""
        answer = await self._ask(question, avoid)
        asked, current = {question.name}, question
        while answer.kind is Kind.NODATA and answer.ttl is None and answer.canonical != current.name:
            # A CNAME whose end the server left out: ask for the end.
            if answer.canonical in asked or len(asked) > MAX_CHASE:
                return _unknown(answer.server, "GARBAGE", f"the CNAMEs of {question.name} lead nowhere")
            asked.add(answer.canonical)
            current = replace(question, name=answer.canonical)
            # The chain's own TTL is short-lived knowledge: a link's TTL bounds the whole (R4).
            link_ttl, answer = answer.chain_ttl, await self._ask(current, avoid)
            if link_ttl is not None and answer.ttl is not None:
                answer = replace(answer, ttl=min(link_ttl, answer.ttl))
        return answer

    async def _ask(self, question: Question, avoid: str) -> Answer:
        conf = self._conf()
        if question.server:
            servers: tuple[str, ...] = (question.server,)
        else:
            servers = tuple(_with_port(server, self._port) for server in conf.servers)
        order = self.board.order(servers, self._now(), avoid, conf.rotate)
        said: dict[str, Answer] = {}
        async with self._gate:
            for _ in range(conf.attempts):
                for server in order:
                    started = self._now()
                    answer = await self._ask_server(question, server, conf)
                    if answer.kind is not Kind.UNKNOWN:
                        self.board.answered(server, self._now() - started)
                        return answer
                    self.board.failed(server, self._now())
                    said[server] = answer
                if all(answer.rcode not in ("TIMEOUT", "GARBAGE") for answer in said.values()):
                    break  # every server spoke: asking the same again at once gives the same
        answers = tuple(said.values())
        # Of several failures the one that a server stated tells more than silence.
        best = next((a for a in answers if a.rcode not in ("TIMEOUT", "UNREACHABLE")), answers[0])
        return replace(
            best,
            detail="; ".join(answer.detail for answer in answers),
            hopeless=all(answer.rcode in ("REFUSED", "UNREACHABLE") for answer in answers),
        )

    async def _ask_server(self, question: Question, server: str, conf: ResolvConf) -> Answer:
        memory = (server, question)
        try:
            if not (conf.use_tcp or memory in self._needs_tcp):
                try:
                    return await self._with_edns(question, server, self._udp, min(conf.timeout, UDP_TIMEOUT))
                except Truncated:
                    self._needs_tcp.add(memory)
            return await self._with_edns(question, server, self._tcp, TCP_TIMEOUT)
        except TimeoutError:
            return _unknown(server, "TIMEOUT", "no reply in time")
        except (Mismatch, Truncated, asyncio.IncompleteReadError) as error:
            return _unknown(server, "GARBAGE", str(error) or type(error).__name__)
        except OSError as error:
            rcode = "LOCAL" if error.errno in _OURS else "UNREACHABLE"
            return _unknown(server, rcode, error.strerror or type(error).__name__)

    async def _with_edns(
        self, question: Question, server: str, exchange: _Exchange, timeout: float
    ) -> Answer:
        """One exchange; again without EDNS when the server shows that it cannot read it (RFC 6891 section 7)."""
        edns = self.board.edns(server, self._now())
        async with asyncio.timeout(timeout):
            answer = await exchange(question, server, edns)
            if edns and answer.rcode in ("FORMERR", "NOTIMP", "BADVERS"):
                answer = await exchange(question, server, False)
                if answer.rcode not in ("FORMERR", "NOTIMP"):
                    self.board.refuses_edns(server, self._now())
            return answer

    async def _udp(self, question: Question, server: str, edns: bool) -> Answer:
        host, port = _split(server)
        sent = query(question, edns)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(_Datagrams, remote_addr=(host, port))
        try:
            transport.sendto(sent.to_wire())
            self.sent += 1
            while True:
                wire = await protocol.receive()
                try:
                    return decode(wire, sent, question, server)
                except Mismatch:
                    self.ignored += 1
        finally:
            transport.close()

    async def _tcp(self, question: Question, server: str, edns: bool) -> Answer:
        host, port = _split(server)
        sent = query(question, edns)
        wire = sent.to_wire()
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(struct.pack("!H", len(wire)) + wire)
            self.sent += 1
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            reply = await reader.readexactly(length)
        finally:
            # The reply is complete or not wanted any more: nothing is left to be sent, so nothing to wait for.
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if length <= EDNS_PAYLOAD:
            self._needs_tcp.discard((server, question))
        return decode(reply, sent, question, server)


class _Datagrams(asyncio.DatagramProtocol):
    """Datagrams of one connected socket, in order; an ICMP error ends the wait."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        self._queue.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        self._queue.put_nowait(exc)

    async def receive(self) -> bytes:
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item


def _with_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _split(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _unknown(server: str, rcode: str, detail: str) -> Answer:
    return Answer(Kind.UNKNOWN, rcode=rcode, server=server, detail=f"{server}: {detail}")
