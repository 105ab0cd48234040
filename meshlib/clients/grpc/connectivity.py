"""Connectivity of a sync mesh channel, for ``subscribe`` and ``grpc.channel_ready_future``.

grpcio spends a polling thread on every subscribed channel, so the endpoints' channels are never subscribed. One helper
thread, alive only while somebody is subscribed, reads their states (a call into core of under a microsecond each, which
starts nothing) and delivers changes in order. The aggregate is round_robin's (gRFC A50 and grpc's load-balancing.md):
READY if any endpoint is, else CONNECTING, else IDLE, else TRANSIENT_FAILURE.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc import ChannelConnectivity

from meshlib.clients.grpc.attempts import SHORT_PATIENCE
from meshlib.clients.grpc.pool import Pool
from meshlib.clients.grpc.reach import CONNECTING
from meshlib.errors import MeshError
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.primitives import new_event, new_lock, start_helper

#: Seconds between two looks: the first while somebody waits for a connection (which takes about a millisecond), the
#: second otherwise; grpcio's own polling uses the second.
EAGER = 0.01
RELAXED = 0.2

Callback = Callable[[ChannelConnectivity], object]

_ORDER = (ChannelConnectivity.READY, ChannelConnectivity.CONNECTING, ChannelConnectivity.IDLE)
_BY_NUMBER = {state.value[0]: state for state in ChannelConnectivity}
_log = logging.getLogger("meshlib.grpc")


def aggregate(states: Iterable[ChannelConnectivity]) -> ChannelConnectivity:
    """The state of a channel whose endpoints are in ``states``; none: IDLE."""
    seen = set(states)
    if not seen:
        return ChannelConnectivity.IDLE
    return next((state for state in _ORDER if state in seen), ChannelConnectivity.TRANSIENT_FAILURE)


def channel_state(channel: grpc.Channel, connect: bool = False) -> ChannelConnectivity:
    """The state of one endpoint's channel, without a subscription.

    grpcio's public sync interface has only ``subscribe``, with its thread; this reads what that thread would read.
    """
    core: Any = channel._channel  # type: ignore[attr-defined]
    return _BY_NUMBER[core.check_connectivity_state(connect)]


class Connectivity:
    """The subscriptions of one mesh channel. Thread-safe; callbacks run in the helper thread."""

    def __init__(self, handle: TargetHandle, pool: Pool) -> None:
        self._handle = handle
        self._pool = pool
        self._lock = new_lock()
        self._subscribers: list[tuple[Callback, list[ChannelConnectivity]]] = []
        self._connect = False
        self._running = False
        self._wake = new_event()
        #: The channel was dropped without close(): the helper thread ends at its next look. Set by a finalizer, which
        #: may take no lock.
        self.abandoned = False

    def subscribe(self, callback: Callback, try_to_connect: bool | None = None) -> None:
        """Call ``callback`` with the state now and with every later one, in order."""
        with self._lock:
            self._subscribers.append((callback, []))
            self._connect = self._connect or bool(try_to_connect)
            start = not self._running
            self._running = True
            self._wake.set()
        if start:
            start_helper("grpc-connectivity", self._run)

    def unsubscribe(self, callback: Callback) -> None:
        with self._lock:
            for index, (known, _) in enumerate(self._subscribers):
                if known == callback:
                    del self._subscribers[index]
                    return

    def clear(self) -> None:
        with self._lock:
            self._subscribers.clear()
            self._wake.set()

    def after_fork(self) -> None:
        """In a forked child the helper thread is gone; start another if anybody is subscribed."""
        self._lock = new_lock()
        self._wake = new_event()
        self._running = bool(self._subscribers)
        if self._running:
            try:
                start_helper("grpc-connectivity", self._run)
            except RuntimeError:  # no thread to be had, as at interpreter exit: the next subscriber starts it
                self._running = False

    def _run(self) -> None:
        tried: set[Subchannel] = set()
        patient_until = 0.0  # until then, what is connecting may take its time
        while True:
            with self._lock:
                if not self._subscribers or self.abandoned:
                    self._running = False
                    return
                connect = self._connect
                self._wake.clear()
            state, asked = self._look(connect, tried, SYSTEM.now() < patient_until)
            if asked:
                patient_until = SYSTEM.now() + SHORT_PATIENCE
            if state is ChannelConnectivity.READY:
                tried.clear()
                with self._lock:
                    self._connect = connect = False
            self._deliver(state)
            if not connect or not self._drive():
                self._wake.wait(EAGER if connect else RELAXED)

    def _drive(self) -> bool:
        """Spend one eager pause waiting inside core, if anything is connecting (see ``reach``: this is no caller's
        thread)."""
        for transport in self._pool.transports():
            try:
                if channel_state(transport.channel) is ChannelConnectivity.CONNECTING:
                    transport.channel._channel.watch_connectivity_state(CONNECTING, SYSTEM.wall() + EAGER)
                    return True
            except ValueError:
                continue  # closed meanwhile
        return False

    def _look(self, connect: bool, tried: set[Subchannel], patient: bool) -> tuple[ChannelConnectivity, bool]:
        """The state now, and whether one more endpoint was asked to connect.

        ``connect``: have one do so, unless one is connected or, while ``patient``, about to be.
        """
        if self._pool.closed.is_set():
            return ChannelConnectivity.SHUTDOWN, False
        state = self._aggregate()
        connecting = patient and state is ChannelConnectivity.CONNECTING
        if not connect or connecting or state is ChannelConnectivity.READY:
            return state, False
        try:
            lease = self._handle.try_acquire(None, exclude=tried)
        except MeshError:
            return ChannelConnectivity.TRANSIENT_FAILURE, False
        if lease is None:
            if tried:  # all were asked: core keeps trying, start over with those that did not succeed
                tried.clear()
                return state, True
            return ChannelConnectivity.CONNECTING, False  # nothing known yet
        try:
            tried.add(lease.subchannel)
            transport = self._pool.begin(lease)
        except ValueError:
            return ChannelConnectivity.SHUTDOWN, False
        finally:
            lease.done()
        try:
            channel_state(transport.channel, connect=True)
        finally:
            transport.end()
        return self._aggregate(), True

    def _aggregate(self) -> ChannelConnectivity:
        states = []
        for transport in self._pool.transports():
            try:
                states.append(channel_state(transport.channel))
            except ValueError:
                continue  # closed since the list was made: it is no part of the picture any more
        return aggregate(states)

    def _deliver(self, state: ChannelConnectivity) -> None:
        with self._lock:
            due = [(callback, last) for callback, last in self._subscribers if last != [state]]
        for callback, last in due:
            last[:] = [state]
            try:
                callback(state)
            except Exception:
                _log.exception("connectivity callback failed")
