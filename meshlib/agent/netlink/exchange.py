"""Exchange: which requests were sent together, and what became of each. Pure; the socket feeds it with datagrams.

The kernel works through the messages of one send in order, and a refused one does not stop those behind it. Only what
is refused is answered, unless an acknowledgement is asked for. So one acknowledgement, of the last message, says that
all before it were read, and the refusals say which of them failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from errno import errorcode
from struct import Struct
from typing import NamedTuple

from meshlib.agent.netlink.messages import (
    ACK,
    ACK_TLVS,
    CAPPED,
    DONE,
    DUMP_INTERRUPTED,
    ERROR,
    HEADER,
    NOOP,
    OVERRUN,
    REQUEST,
    Malformed,
    Message,
    Request,
    number,
    parse_attributes,
    parse_messages,
    string,
)

#: Refusals of one send must fit into the receive buffer together: with the 208 kB that a socket has by default 250 fit
#: and 300 do not. Larger sends than 32 kB are no faster, as measured.
MOST_MESSAGES = 200
MOST_BYTES = 32 * 1024

_INT = Struct("=i")


class Refusal(NamedTuple):
    """Why the kernel did not carry a request out. ``text`` is its own explanation, where it gave one."""

    errno: int
    text: str

    def __str__(self) -> str:
        name = errorcode.get(self.errno, str(self.errno))
        return f"{name}: {self.text}" if self.text else name


class Chunk(NamedTuple):
    """Requests that are sent in one go: ``size`` of them from index ``start`` on, numbered from ``first``."""

    data: bytes
    start: int
    size: int
    first: int


def chunks(
    requests: Iterable[Request], first: int, most_messages: int = MOST_MESSAGES, most_bytes: int = MOST_BYTES
) -> Iterator[Chunk]:
    """Cut requests into sends, with an acknowledgement asked for on the last of each.

    ``first`` is the sequence number of the first request; those that follow count up.
    """
    pack = HEADER.pack
    data = bytearray()
    start = size = last = 0
    for kind, flags, payload in requests:
        length = 16 + len(payload)
        if size and (size >= most_messages or len(data) + length > most_bytes):
            yield _chunk(data, last, start, size, first)
            start, size, data = start + size, 0, bytearray()
        last = len(data)
        data += pack(length, kind, REQUEST | flags, first + start + size & 0xFFFFFFFF, 0)
        data += payload
        if length % 4:
            data += bytes(-length % 4)
        size += 1
    if size:
        yield _chunk(data, last, start, size, first)


def _chunk(data: bytearray, last: int, start: int, size: int, first: int) -> Chunk:
    length, kind, flags, sequence, port = HEADER.unpack_from(data, last)
    HEADER.pack_into(data, last, length, kind, flags | ACK, sequence, port)
    return Chunk(bytes(data), start, size, first + start & 0xFFFFFFFF)


@dataclass(slots=True)
class Answers:
    """What came back for ``count`` requests numbered from ``first``: refusals by index, replies, and whether the
    acknowledgement of the last (or the end of a dump) is there."""

    first: int
    count: int
    complete: bool = False
    interrupted: bool = False  #: the table changed while it was dumped; entries may be missing or come twice
    refusals: dict[int, Refusal] = field(default_factory=dict)
    replies: list[Message] = field(default_factory=list)

    def feed(self, data: bytes) -> None:
        """One datagram. Answers to earlier requests (after a lost one) are passed over.

        Raises Malformed, also for an answer to a request that was never sent.
        """
        for message in parse_messages(data):
            index = message.sequence - self.first & 0xFFFFFFFF
            if index >= self.count:
                if index < 0x80000000:
                    raise Malformed(f"an answer to request {message.sequence}, which was not sent")
                continue
            if message.flags & DUMP_INTERRUPTED:
                self.interrupted = True
            if message.type == ERROR:
                refusal = parse_error(message)
                if refusal is not None:
                    self.refusals[index] = refusal
                if index == self.count - 1:
                    self.complete = True
            elif message.type == DONE:
                code = number(message.payload[:4], 4) if message.payload else 0
                if code:
                    self.refusals[index] = Refusal(0x100000000 - code, "the dump ended early")
                self.complete = True
            elif message.type == OVERRUN:
                raise Malformed("the kernel reports an overrun inside a datagram")
            elif message.type != NOOP:
                self.replies.append(message)


def parse_error(message: Message) -> Refusal | None:
    """What an ERROR message says; None for an acknowledgement."""
    payload = message.payload
    if len(payload) < 20:
        raise Malformed(f"an error message of {len(payload)} bytes; it has 20 at least")
    (code,) = _INT.unpack_from(payload)
    if code > 0:
        raise Malformed(f"an error message with the positive code {code}")
    if code == 0:
        return None
    text = ""
    if message.flags & ACK_TLVS:
        copied = 16 if message.flags & CAPPED else max(16, HEADER.unpack_from(payload, 4)[0])
        for kind, value in parse_attributes(payload, 4 + (copied + 3 & ~3)):
            if kind == 1:
                text = string(value)
    return Refusal(-code, text)
