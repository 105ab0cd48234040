"""The parser's end: sockets that are held by the programmer's process, used like sockets."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from meshlib.agent.broker.wire import (
    Close,
    Datagram,
    Failed,
    Frames,
    Open,
    Opened,
    Option,
    Receive,
    Reply,
    Request,
    Send,
    frame,
    read_reply,
)


class BrokerGone(OSError):
    """The programmer's process has ended; without it nothing can be programmed."""


class Broker:
    """The connection to the programmer. From any thread; ``lock`` keeps requests and replies together."""

    def __init__(self, connection: socket.socket, lock: AbstractContextManager[object]) -> None:
        self._connection = connection
        self._lock = lock
        self._frames = Frames()

    def ask(self, request: Request) -> Reply:
        """Raises OSError with what the kernel or the programmer said, BrokerGone when it has ended."""
        with self._lock:
            try:
                self._connection.sendall(frame(request))
                reply = self._reply()
            except OSError as error:
                raise BrokerGone(errno.EPIPE, f"the programmer's process has ended: {error}") from error
        if isinstance(reply, Failed):
            if reply.errno == errno.EAGAIN:
                raise BlockingIOError(reply.errno, reply.text)
            raise OSError(reply.errno, reply.text)
        return reply

    def _reply(self) -> Reply:
        while True:
            data = self._connection.recv(1 << 20)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
            for body in self._frames.feed(data):
                return read_reply(body)

    def socket(self, protocol: int, groups: Sequence[int] = ()) -> BrokeredSocket:
        """A netlink socket of the programmer's. Raises OSError."""
        reply = self.ask(Open(protocol, list(groups)))
        if not isinstance(reply, Opened):
            raise BrokerGone(errno.EPROTO, f"the programmer answered {type(reply).__name__} to Open")
        return BrokeredSocket(self.ask, reply.socket)

    def close(self) -> None:
        """The programmer ends."""
        self._connection.close()


class BrokeredSocket:
    """As much of a socket as ``NetlinkSocket`` uses. One thread at a time."""

    def __init__(self, ask: Callable[[Request], Reply], number: int) -> None:
        self._ask = ask
        self._number = number
        self._open = True

    def sendto(self, data: bytes, address: tuple[int, int]) -> None:
        """To the kernel, whatever the address says."""
        self._ask(Send(self._number, data))

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, tuple[int, int]]:
        """One datagram and its sender (0: the kernel). Raises BlockingIOError when there is none (in time)."""
        reply = self._ask(Receive(self._number, size, flags))
        if not isinstance(reply, Datagram):
            raise BrokerGone(errno.EPROTO, f"the programmer answered {type(reply).__name__} to Receive")
        return reply.data, (reply.sender, 0)

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        """Those that the programmer knows; the rest is refused with EPERM."""
        self._ask(Option(self._number, level, name, value))

    def close(self) -> None:
        """Safe to call twice, and after the programmer has ended."""
        if self._open:
            self._open = False
            with contextlib.suppress(BrokerGone):  # its sockets went with it
                self._ask(Close(self._number))
