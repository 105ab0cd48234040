"""The programmer's process: holds the netlink sockets and the capability, and passes on what the rules allow.

It reads nothing from outside but frames of the parser, makes no other sockets (the kernel sees to that, see
``privileges``), and ends when the parser does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

import msgspec

from meshlib.agent.broker import rules
from meshlib.agent.broker.wire import (
    Close,
    Datagram,
    Done,
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
    read_request,
)
from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.generic import find_family, parse_family
from meshlib.agent.netlink.ipvs import FAMILY
from meshlib.agent.netlink.messages import Malformed
from meshlib.agent.netlink.socket import GENERIC, NetlinkSocket

#: Sockets at once: three protocols, two families, and a margin.
MAX_SOCKETS = 32
#: Bytes of one receive.
MAX_RECEIVE = 1 << 20
#: Seconds that a receive may take; the kernel answers before a send returns.
PATIENCE = 10
_SOL_NETLINK = 270
#: Buffer sizes, and how netlink tells of errors. Not: multicast groups later, or anything of another level.
_OPTIONS = frozenset(
    {
        (socket.SOL_SOCKET, 32),
        (socket.SOL_SOCKET, 33),
        (_SOL_NETLINK, 10),
        (_SOL_NETLINK, 11),
        (_SOL_NETLINK, 12),
    }
)
_ALLOWED_FLAGS = socket.MSG_DONTWAIT


class Programmer:
    """Answers one request after the other. One thread."""

    def __init__(self) -> None:
        self._sockets: dict[int, tuple[int, socket.socket]] = {}
        self._next = 1
        self._ipvs: int | None = None

    def answer(self, request: Request) -> Reply:
        """Raises nothing that the kernel says."""
        try:
            return self._do(request)
        except OSError as error:
            return Failed(error.errno or errno.EIO, str(error))
        except KeyError:
            return Failed(errno.EBADF, "there is no such socket")

    def close(self) -> None:
        """Close all sockets."""
        for _, one in self._sockets.values():
            one.close()
        self._sockets.clear()

    def _do(self, request: Request) -> Reply:
        match request:
            case Open():
                return self._open(request)
            case Send():
                protocol, one = self._sockets[request.socket]
                why = rules.refusal(protocol, request.data, self._known(protocol))
                if why:
                    return Failed(errno.EPERM, f"the programmer does not pass on {why}")
                one.sendto(request.data, (0, 0))
                return Done()
            case Receive():
                _, one = self._sockets[request.socket]
                size = min(max(request.size, 0), MAX_RECEIVE)
                data, sender = one.recvfrom(size, request.flags & _ALLOWED_FLAGS)
                return Datagram(data, sender[0])
            case Option():
                _, one = self._sockets[request.socket]
                if (request.level, request.name) not in _OPTIONS:
                    return Failed(errno.EPERM, f"the programmer does not set option {request.name}")
                one.setsockopt(request.level, request.name, request.value)
                return Done()
            case Close():
                self._sockets.pop(request.socket)[1].close()
                return Done()

    def _known(self, protocol: int) -> rules.Known:
        if protocol == GENERIC:
            if self._ipvs is None:
                self._ipvs = _ipvs_family()
            return rules.Known(ipvs_family=self._ipvs)
        return rules.Known(device=_own_device()) if protocol == rules.ROUTE else rules.Known()

    def _open(self, request: Open) -> Reply:
        if request.protocol not in rules.PROTOCOLS:
            return Failed(errno.EPERM, f"the programmer opens no netlink protocol {request.protocol}")
        if len(self._sockets) >= MAX_SOCKETS:
            return Failed(errno.EMFILE, f"{MAX_SOCKETS} sockets are open")
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, request.protocol)
        try:
            made.bind((0, 0))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", PATIENCE, 0))
            for group in request.groups if request.protocol == rules.ROUTE else ():
                made.setsockopt(_SOL_NETLINK, 1, group)
        except BaseException:
            made.close()
            raise
        number, self._next = self._next, self._next + 1
        self._sockets[number] = (request.protocol, made)
        return Opened(number)


def _ipvs_family() -> int | None:
    """The number that the kernel gave to IPVS's family; None: it has none (yet)."""
    try:
        with NetlinkSocket(GENERIC) as netlink:
            (answer,) = netlink.request(find_family(FAMILY))
            return parse_family(answer, FAMILY)
    except (OSError, Malformed):
        return None


def _own_device() -> int | None:
    """The number of our device; None: there is none. Asked each time: somebody may have removed it."""
    try:
        with NetlinkSocket(rules.ROUTE) as netlink:
            links = rtnl.parse_links(netlink.dump(rtnl.list_links()))
    except (OSError, Malformed):
        return None
    return next((link.number for link in links if link.name == rules.DEVICE), None)


def serve(connection: socket.socket) -> None:
    """Until the other side closes. Raises OSError, ValueError when what comes are no frames of ours."""
    programmer = Programmer()
    frames = Frames()
    try:
        while data := connection.recv(1 << 20):
            for body in frames.feed(data):
                try:
                    request = read_request(body)
                except msgspec.DecodeError as error:
                    raise ValueError(f"not a request: {error}") from error
                connection.sendall(frame(programmer.answer(request)))
    finally:
        programmer.close()
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def main(descriptor: int) -> None:
    """The process' whole life, on the socket it was started with."""
    from meshlib.agent.broker.privileges import confine_programmer

    confine_programmer()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parser has ended
        serve(socket.socket(fileno=descriptor))
    os._exit(0)
