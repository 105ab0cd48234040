"""Streams: TCP listeners, and connections carried to endpoints. On one asyncio loop.

Bytes go from one transport to the other as they come; a full one stops the reading of the other (backpressure). The
end of one direction is passed on and leaves the other direction open (half-close), a reset is passed on as a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from typing import Any

from meshlib.agent.backends.userspace.flow import Find, Flow, MakeSocket, family_of, plain
from meshlib.agent.backends.userspace.room import Room
from meshlib.agent.backends.userspace.translate import Bind
from meshlib.agent.desired import Action
from meshlib.pickers.subchannel import Subchannel

#: Connections that wait for being accepted; the kernel lowers it to net.core.somaxconn.
BACKLOG = 4096
#: Accepted at once before others get their turn on the loop.
_MOST_AT_ONCE = 64
#: Endpoints that are tried for one connection before any byte was carried.
ATTEMPTS = 3
#: Seconds for the handshake with one endpoint; a pod in the cluster answers in milliseconds, one that is gone never.
CONNECT_SECONDS = 5.0
#: Seconds until accepting is tried again after the process ran out of something.
_RETRY = 1.0
#: Descriptors of one connection: the client's and the endpoint's.
DESCRIPTORS = 2
_RESET = struct.pack("ii", 1, 0)
#: Peers that vanish are noticed after two minutes, not after the kernel's two hours: nobody else watches.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


#: Address and port of both ends of a connection, ours first: one end alone may be used towards others at a time.
Ends = tuple[str, int, str, int]


class _Half(asyncio.Protocol):
    """One side of a connection. What comes before the other side is there waits."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.transport: Any = None
        self.other: _Half | None = None
        self._early: list[bytes] = []
        self.ended = False
        self.lost = False

    def link(self, other: _Half) -> None:
        """From now on everything goes there."""
        self.other = other
        for data in self._early:
            other.transport.write(data)
        self._early.clear()
        if self.ended:
            self._pass_end(other)
        if not self.lost:
            self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)  # one piece at most: reading pauses until the other side is there
            self.transport.pause_reading()
        else:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.other is not None:
            self._pass_end(self.other)
        return True

    def _pass_end(self, other: _Half) -> None:
        with contextlib.suppress(OSError):  # the other side has gone: connection_lost tells
            other.transport.write_eof()
        if other.ended:
            self.transport.close()
            other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        other = self.other
        if other is not None and not other.lost:
            if exc is not None:
                _reset(other.transport)
            else:
                other.transport.close()
            return
        if other is not None:
            self._stream.finished()


def _reset(transport: Any) -> None:
    """Ends it by RST, so that the peer does not take what it has for all."""
    inner = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def reset_socket(one: socket.socket) -> None:
    """Close by RST."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.close()


class Stream:
    """One connection, from accepting to the end of both sides."""

    def __init__(self, listener: StreamListener, client: socket.socket, local: str, peer: str) -> None:
        self.local, self.peer = local, peer
        self.subchannel: Subchannel | None = None
        self._listener = listener
        self._client: socket.socket | None = client  # until a transport has it
        self._halves: tuple[_Half, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Find an endpoint, and carry."""
        self._task = loop.create_task(self._run(loop), name=f"userspace: {self.peer}")

    def abort(self) -> None:
        """Both sides end by RST."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            return
        for half in self._halves:
            if not half.lost:
                _reset(half.transport)

    def finished(self) -> None:
        """Both sides are gone, or one never came."""
        if self._over:
            return
        self._over = True
        if self.subchannel is not None:
            self.subchannel.end()
        if self._client is not None:
            reset_socket(self._client)
            self._client = None
        self._listener.ended(self)

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        upstream: socket.socket | None = None
        carried = False
        try:
            upstream = await self._connect(loop)
            client = self._client
            if upstream is None or client is None:
                return
            near, far = self._halves = (_Half(self), _Half(self))
            self._client = None
            await loop.connect_accepted_socket(lambda: near, client)
            one, upstream = upstream, None
            await loop.connect_accepted_socket(lambda: far, one)
            if not (near.lost or far.lost):
                # From here on the two see to the end.
                near.link(far)
                far.link(near)
                carried = True
        except OSError:
            pass  # a side went while it was being set up
        finally:
            if upstream is not None:
                reset_socket(upstream)
            if not carried:
                for half in self._halves:
                    if half.transport is not None and not half.lost:
                        _reset(half.transport)
                self.finished()

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> socket.socket | None:
        """Nothing was carried yet, so that another endpoint may be tried where one does not answer."""
        tried: set[Subchannel] = set()
        for _ in range(ATTEMPTS):
            chooser = self._listener.find(self.local)
            subchannel = chooser.pick(self.peer, tried) if chooser is not None else None
            if subchannel is None:
                return None
            tried.add(subchannel)
            self.subchannel = subchannel
            began = loop.time()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    found = await self._listener.dial(
                        loop, subchannel.endpoint.address, subchannel.endpoint.port
                    )
            except BaseException as error:
                self.subchannel = None
                subchannel.observe(loop.time(), loop.time() - began, failed=True)
                subchannel.end(failed=True)
                if not isinstance(error, OSError):  # TimeoutError is one
                    raise
                continue
            subchannel.observe(loop.time(), loop.time() - began)
            return found
        return None


class StreamListener:
    """A listening socket. ``own``: both ends of our own connections, lest one come back to us for ever."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bind: Bind,
        find: Find,
        room: Room,
        make: MakeSocket,
        own: set[Ends],
    ) -> None:
        """Raises OSError where the address cannot be had."""
        self._loop, self.find, self._room, self._make, self._own = loop, find, room, make, own
        self.flows: set[Flow] = set()
        self._closed = False
        self._listening = False
        self._socket = listening(make, bind, BACKLOG)
        self._listen()

    def close(self) -> None:
        self._closed = True
        self._deafen()
        self._socket.close()

    def ended(self, stream: Stream) -> None:
        """A connection is over."""
        self.flows.discard(stream)
        self._room.give(DESCRIPTORS)

    async def dial(self, loop: asyncio.AbstractEventLoop, address: str, port: int) -> socket.socket:
        """A connection to an endpoint. Raises OSError."""
        one = self._make(family_of(address), socket.SOCK_STREAM)
        ends: Ends | None = None
        try:
            one.setblocking(False)
            _tune(one)
            number = one.connect_ex((address, port))
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
            here = one.getsockname()
            ends = (here[0], here[1], address, port)
            self._own.add(ends)
            if number:
                await loop.sock_connect(one, (address, port))
            return one
        except BaseException:
            reset_socket(one)
            raise
        finally:
            if ends is not None:
                # Accepted it is on the same loop, at its next turn.
                loop.call_later(_RETRY, self._own.discard, ends)

    def _listen(self) -> None:
        if not self._closed and not self._listening:
            self._listening = True
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _deafen(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._socket.fileno())

    def _accept(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            if not self._room.take(DESCRIPTORS):
                # Those who come now wait in the kernel's queue.
                self._deafen()
                self._room.wait(self._listen)
                return
            try:
                client, peer = self._socket.accept()
            except OSError as error:
                self._room.give(DESCRIPTORS)
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._deafen()
                    self._loop.call_later(_RETRY, self._listen)
                if error.errno == errno.ECONNABORTED:
                    continue
                return
            self._welcome(client, peer)

    def _welcome(self, client: socket.socket, peer: Any) -> None:
        address = plain(peer[0])
        try:
            client.setblocking(False)
            _tune(client)
            called = client.getsockname()
        except OSError:  # it has gone already
            client.close()
            self._room.give(DESCRIPTORS)
            return
        local = plain(called[0])
        chooser = self.find(local)
        address = chooser.served.client(address, local) if chooser is not None else address
        refused = chooser is None or chooser.action(address) is not Action.FORWARD
        if refused or (peer[0], peer[1], called[0], called[1]) in self._own:
            reset_socket(client)
            self._room.give(DESCRIPTORS)
            return
        stream = Stream(self, client, local, address)
        self.flows.add(stream)
        stream.start(self._loop)


class SilentStreams:
    """A TCP port that answers nothing, without any privilege: its queue is filled by a connection of our own, and Linux
    drops what else knocks at a full queue."""

    flows: frozenset[Flow] = frozenset()

    def __init__(self, bind: Bind, make: MakeSocket) -> None:
        """Raises OSError where the address cannot be had."""
        self._socket = listening(make, bind, 0)
        self._plug = make(family_of(bind.address), socket.SOCK_STREAM)
        try:
            self._plug.setblocking(False)
            number = self._plug.connect_ex((bind.address, bind.port))
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        reset_socket(self._plug)
        self._socket.close()


def listening(make: MakeSocket, bind: Bind, backlog: int) -> socket.socket:
    """A TCP socket that listens. Raises OSError."""
    family = family_of(bind.address)
    one = make(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind((bind.address, bind.port))
        one.listen(backlog)
    except BaseException:
        one.close()
        raise
    return one


def _tune(one: socket.socket) -> None:
    # What the endpoints send in small pieces was meant to arrive so.
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        one.setsockopt(socket.IPPROTO_TCP, option, value)
