"""What the two processes say to each other: frames of MessagePack over a socket pair. Pure.

A request is answered by one reply, in order. Numbers of sockets are the programmer's; errors are errno and text.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

import msgspec

#: Bytes of a frame: a full load of 10,000 Services is some MB; more than this is an attack or a bug.
MAX_FRAME = 1 << 28
_LENGTH = Struct("=I")


class Open(msgspec.Struct, tag=True, frozen=True):
    """Make a netlink socket. Answered by Opened."""

    protocol: int
    groups: list[int] = []


class Send(msgspec.Struct, tag=True, frozen=True):
    """Send one datagram to the kernel. Answered by Done."""

    socket: int
    data: bytes


class Receive(msgspec.Struct, tag=True, frozen=True):
    """Take one datagram of the kernel's. Answered by Datagram, or by Failed with EAGAIN when there is none."""

    socket: int
    size: int
    flags: int


class Option(msgspec.Struct, tag=True, frozen=True):
    """Set a socket option. Answered by Done."""

    socket: int
    level: int
    name: int
    value: int | bytes


class Close(msgspec.Struct, tag=True, frozen=True):
    """Close a socket. Answered by Done."""

    socket: int


class Opened(msgspec.Struct, tag=True, frozen=True):
    socket: int


class Done(msgspec.Struct, tag=True, frozen=True):
    pass


class Datagram(msgspec.Struct, tag=True, frozen=True):
    data: bytes
    sender: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    errno: int
    text: str


Request = Open | Send | Receive | Option | Close
Reply = Opened | Done | Datagram | Failed
_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytes:
    """A message with its length before it."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def read_request(body: bytes) -> Request:
    """Raises msgspec.DecodeError (ValidationError for the wrong shape)."""
    return _requests.decode(body)


def read_reply(body: bytes) -> Reply:
    """Raises msgspec.DecodeError."""
    return _replies.decode(body)


class Frames:
    """Bytes in, bodies of frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are complete now. Raises ValueError for one that is too long."""
        self._buffer += data
        while len(self._buffer) >= 4:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            if len(self._buffer) < 4 + length:
                return
            body = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            yield body
