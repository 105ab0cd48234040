"""Pool: the sync channels of one mesh channel: one per endpoint, made on first use, closed when it is gone."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from meshlib.clients.grpc.options import endpoint_target
from meshlib.clients.grpc.transport import Transport
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease, ServiceLease
from meshlib.runtime.primitives import new_event, new_lock, start_helper
from meshlib.runtime.process import rebuild_after_fork

#: Channels inherited over a fork. They stay referenced until exit: closing or collecting them in the child would end
#: connections that belong to the parent.
_graveyard: list[object] = []


class Bound:
    """One method on one endpoint's channel: what a call needs after the pick."""

    __slots__ = ("callable", "transport", "with_call")

    def __init__(self, transport: Transport, multicallable: Any) -> None:
        self.transport = transport
        self.callable = multicallable
        self.with_call: Any = getattr(multicallable, "with_call", None)  #: of methods with a single response


class Pool:
    """Transports by Subchannel. Thread-safe; ``drop`` may be called from the control thread."""

    def __init__(self, connect: Callable[[str], Any], core_waits: bool = False) -> None:
        self._connect = connect
        self._core_waits = core_waits
        self._lock = new_lock()
        self._transports: dict[Subchannel, Transport] = {}
        #: No longer for new calls, but still with some; ``close`` ends those, too.
        self._leaving: set[Transport] = set()
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._closing: deque[Transport] = deque()
        self._closer = new_lock()  #: held while a helper thread closes what is in ``_closing``
        self.closed = new_event()
        rebuild_after_fork(self)

    def register(self, user: Any) -> None:
        """A multicallable, whose ``forget(subchannel)`` is called when a transport goes."""
        with self._lock:
            self._users.add(user)

    def begin(self, lease: Lease) -> Transport:
        """The transport for a lease, with the call counted in. ValueError, as in grpc, when the channel is closed."""
        while True:
            transport = self._get(lease)
            if transport.begin():
                return transport
            self._forget(transport.subchannel, transport)

    def drop(self, subchannel: Subchannel) -> None:
        """The endpoint left the set: no new calls; its channel closes when the last one has ended."""
        transport = self._forget(subchannel, None)
        if transport is not None:
            with self._lock:
                self._leaving.add(transport)
            transport.drain()

    def transports(self) -> list[Transport]:
        with self._lock:
            return list(self._transports.values())

    def close(self) -> None:
        """Close every channel; what is in flight ends as CANCELLED, as with a bare channel."""
        with self._lock:
            self.closed.set()
            transports = [*self._transports.values(), *self._leaving]
            self._transports = {}
            self._leaving = set()
        for transport in transports:
            if transport.close():
                transport.channel.close()

    def after_fork(self) -> None:
        """In a forked child: forget everything inherited, close nothing. Takes no lock."""
        _graveyard.append((self._transports, self._leaving, self._closing))
        users = list(self._users)
        was_closed = self.closed.is_set()
        self._lock = new_lock()
        self._transports = {}
        self._leaving = set()
        self._closing = deque()
        self._closer = new_lock()
        self._users = weakref.WeakSet()
        self.closed = new_event()
        if was_closed:
            self.closed.set()
        for user in users:
            _graveyard.append(user.forget_all())
            self._users.add(user)

    def _get(self, lease: Lease) -> Transport:
        subchannel = lease.subchannel
        transport = self._transports.get(subchannel)
        if transport is not None:
            return transport
        with self._lock:
            if self.closed.is_set():
                raise ValueError("Cannot invoke RPC on closed channel!")
            transport = self._transports.get(subchannel)
            if transport is None:
                target = endpoint_target(subchannel.endpoint)
                made = self._connect(target)
                transport = Transport(made, target, subchannel, new_lock(), self._shut, self._core_waits)
                if isinstance(lease, ServiceLease):
                    # Its Subchannel is made for this one try; when the try makes it sticky, the set brings its own.
                    transport.draining = True
                    self._leaving.add(transport)
                else:
                    self._transports[subchannel] = transport
        if (
            subchannel.removed and not transport.draining
        ):  # left between the pick and here: nobody will tell us again
            self._forget(subchannel, transport)
            with self._lock:
                self._leaving.add(transport)
            transport.draining = True
        return transport

    def _forget(self, subchannel: Subchannel, only: Transport | None) -> Transport | None:
        with self._lock:
            transport = self._transports.get(subchannel)
            if transport is not None and (only is None or only is transport):
                del self._transports[subchannel]
            users = list(self._users)
        for user in users:
            user.forget(subchannel)
        return transport

    def _shut(self, transport: Transport) -> None:
        """Close a drained channel in a helper thread. Called where its last call ended, which mostly is the channel's
        own thread: grpcio's close() waits for events of that call that only this thread can take in, such as the end
        of the responses that came after the status, so it would wait for ever. Takes no lock: it may be a finalizer.
        """
        self._closing.append(transport)
        self._start_closer()

    def _start_closer(self) -> None:
        if self._closer.acquire(blocking=False):
            try:
                start_helper("grpc-close", self._close_drained)
            except (
                RuntimeError
            ):  # no thread to be had, as at interpreter exit: the next one that ends closes both
                self._closer.release()

    def _close_drained(self) -> None:
        try:
            while self._closing:
                transport = self._closing.popleft()
                self._forget(transport.subchannel, transport)
                with self._lock:
                    self._leaving.discard(transport)
                transport.channel.close()
        finally:
            self._closer.release()
        if self._closing:  # came between the last look and the release
            self._start_closer()
