"""Datagrams: UDP listeners, and exchanges carried to endpoints until they fall silent. On one asyncio loop.

A client's address and port and the address that it called make a flow; each flow has a connected socket of its own, so
that answers find back. Where a socket would block, the datagram is lost, as on any full network.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import OrderedDict
from typing import Any

from meshlib.agent.backends.userspace.flow import Find, Flow, MakeSocket, family_of, plain
from meshlib.agent.backends.userspace.room import Room
from meshlib.agent.backends.userspace.translate import WILDCARDS, Bind
from meshlib.agent.desired import Action
from meshlib.pickers.subchannel import Subchannel

#: The largest datagram there is.
_SIZE = 65_535
#: Read at once before others get their turn on the loop.
_MOST_AT_ONCE = 64
#: What the kernel says, in ancillary data, about where a datagram was sent to (linux/in.h, linux/in6.h).
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
#: Lets answers come from an address that only a route makes local, which IPv4 does without asking.
_IPV6_FREEBIND = 78
_ROOM_FOR_INFO = socket.CMSG_SPACE(20)
_INFO4, _INFO6 = struct.Struct("=i4s4s"), struct.Struct("=16si")


class Exchange:
    """One flow. ``used``: when something last went through, in seconds of the loop."""

    def __init__(
        self, listener: DatagramListener, key: tuple[Any, str], upstream: socket.socket, to: Subchannel
    ) -> None:
        self.key = key
        self.local = key[1]
        self.upstream = upstream
        self.subchannel: Subchannel | None = to
        self.used = 0.0
        self._listener = listener

    def abort(self) -> None:
        self._listener.forget(self)


class DatagramListener:
    """A bound socket. ``idle``: seconds of silence after which a flow is forgotten."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bind: Bind,
        find: Find,
        room: Room,
        make: MakeSocket,
        idle: float,
    ) -> None:
        """Raises OSError where the address cannot be had."""
        self._loop, self._find, self._room, self._make, self._idle = loop, find, room, make, idle
        self._six = ":" in bind.address
        self._bound = "" if bind.address in WILDCARDS else bind.address
        self._exchanges: OrderedDict[tuple[Any, str], Exchange] = OrderedDict()  # longest silent first
        self.flows: set[Flow] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = bytearray(_SIZE)
        self._open = True
        self._socket = bound(make, bind, info=not self._bound)
        loop.add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        """Flows cannot go on without the socket from whose address they answer: they end."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            for exchange in tuple(self._exchanges.values()):
                self.forget(exchange)
            if self._timer is not None:
                self._timer.cancel()

    def forget(self, exchange: Exchange) -> None:
        """The flow ends; the next datagram begins a new one."""
        if self._exchanges.pop(exchange.key, None) is None:
            return
        self.flows.discard(exchange)
        self._loop.remove_reader(exchange.upstream.fileno())
        exchange.upstream.close()
        if exchange.subchannel is not None:
            exchange.subchannel.end()
        self._room.give(1)

    def _read(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                size, ancillary, _, peer = self._socket.recvmsg_into([self._buffer], _ROOM_FOR_INFO)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of an answer that nobody took
                continue
            local = self._bound or _called(ancillary)
            if local:
                self._forward(memoryview(self._buffer)[:size], (peer, local))
            if not self._open:
                return

    def _forward(self, data: memoryview, key: tuple[Any, str]) -> None:
        for _ in range(2):
            exchange = self._exchanges.get(key) or self._begin(key)
            if exchange is None:
                return
            self._touch(exchange)
            try:
                exchange.upstream.send(data)
            except BlockingIOError:
                return
            except OSError:
                self.forget(exchange)  # refused earlier, and told now: once more, perhaps elsewhere
                continue
            return

    def _begin(self, key: tuple[Any, str]) -> Exchange | None:
        peer, local = plain(key[0][0]), key[1]
        chooser = self._find(local)
        peer = chooser.served.client(peer, local) if chooser is not None else peer
        if chooser is None or chooser.action(peer) is not Action.FORWARD:
            return None
        if not self._room.take(1):
            oldest = next(iter(self._exchanges.values()), None)
            if oldest is None:
                return None
            self.forget(oldest)
            if not self._room.take(1):
                return None
        subchannel = chooser.pick(peer)
        if subchannel is None:
            self._room.give(1)
            return None
        try:
            upstream = self._dial(subchannel)
        except OSError:
            subchannel.end(failed=True)
            self._room.give(1)
            return None
        exchange = self._exchanges[key] = Exchange(self, key, upstream, subchannel)
        self.flows.add(exchange)
        self._loop.add_reader(upstream.fileno(), self._answer, exchange)
        if self._timer is None:
            self._timer = self._loop.call_later(self._idle, self._expire)
        return exchange

    def _dial(self, subchannel: Subchannel) -> socket.socket:
        endpoint = subchannel.endpoint
        one = self._make(family_of(endpoint.address), socket.SOCK_DGRAM)
        try:
            one.setblocking(False)
            one.connect((endpoint.address, endpoint.port))
        except BaseException:
            one.close()
            raise
        return one

    def _answer(self, exchange: Exchange) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                size = exchange.upstream.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                self.forget(exchange)  # the endpoint refuses: the next datagram may find another
                return
            self._touch(exchange)
            peer, local = exchange.key
            ancillary = [] if self._bound else [_from(local, self._six)]
            with contextlib.suppress(OSError):
                self._socket.sendmsg([memoryview(self._buffer)[:size]], ancillary, 0, peer)

    def _touch(self, exchange: Exchange) -> None:
        exchange.used = self._loop.time()
        self._exchanges.move_to_end(exchange.key)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for exchange in tuple(self._exchanges.values()):
            left = exchange.used + self._idle - now
            if left > 0:
                self._timer = self._loop.call_later(left, self._expire)
                return
            self.forget(exchange)


class SilentDatagrams:
    """A UDP port that answers nothing: bound, and never read; what comes is dropped when its buffer is full."""

    flows: frozenset[Flow] = frozenset()

    def __init__(self, bind: Bind, make: MakeSocket) -> None:
        """Raises OSError where the address cannot be had."""
        self._socket = bound(make, bind, info=False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the kernel's least

    def close(self) -> None:
        self._socket.close()


def bound(make: MakeSocket, bind: Bind, *, info: bool) -> socket.socket:
    """A UDP socket; ``info``: each datagram says where it was sent to. Raises OSError."""
    family = family_of(bind.address)
    one = make(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if info and family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            one.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        elif info:
            one.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        one.setblocking(False)
        one.bind((bind.address, bind.port))
    except BaseException:
        one.close()
        raise
    return one


def _called(ancillary: list[Any]) -> str:
    """The address that a datagram was sent to; "" where the kernel does not say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return socket.inet_ntop(socket.AF_INET, _INFO4.unpack(data)[2])
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            return socket.inet_ntop(socket.AF_INET6, _INFO6.unpack(data)[0])
    return ""


def _from(local: str, six: bool) -> tuple[int, int, bytes]:
    """What makes an answer come from the address that was called."""
    if six:
        info = _INFO6.pack(socket.inet_pton(socket.AF_INET6, local), 0)
        return socket.IPPROTO_IPV6, _IPV6_PKTINFO, info
    return socket.IPPROTO_IP, _IP_PKTINFO, _INFO4.pack(0, socket.inet_aton(local), bytes(4))
