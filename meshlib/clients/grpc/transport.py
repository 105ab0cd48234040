"""Transport: one channel to one endpoint, kept until its last call has ended, and Completion: the end of one call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import grpc

from meshlib.clients.grpc.status import FAILURES
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease, ServiceLease
from meshlib.runtime.process import Generation


class Transport:
    """A single-address channel and the number of calls on it. Thread-safe.

    ``shut`` closes the channel; it is called once, by whoever ends the last call after ``drain``, or by ``close``.
    """

    __slots__ = ("_lock", "_shut", "calls", "channel", "closed", "draining", "subchannel", "target", "warm")

    def __init__(
        self,
        channel: Any,
        target: str,
        subchannel: Subchannel,
        lock: AbstractContextManager[object],
        shut: Callable[[Transport], None],
    ) -> None:
        self.channel = channel
        self.target = target
        self.subchannel = subchannel
        self.calls = 0
        #: A call that was given an endpoint just before it left the set still gets a channel, for that call only.
        self.draining = subchannel.removed
        self.closed = False
        #: Whether a call was answered: until then latencies are those of connecting.
        self.warm = False
        self._lock = lock
        self._shut = shut

    def begin(self) -> bool:
        """Count a call in. False: closed meanwhile, take another transport."""
        with self._lock:
            if self.closed:
                return False
            self.calls += 1
            return True

    def end(self) -> None:
        """Count a call out; the last one of a draining transport closes it."""
        with self._lock:
            self.calls -= 1
            last = self.draining and self.calls == 0 and not self.closed
            self.closed = self.closed or last
        if last:
            self._shut(self)

    def drain(self) -> None:
        """The endpoint left the set: close as soon as nothing is in flight."""
        with self._lock:
            self.draining = True
            idle = self.calls == 0 and not self.closed
            self.closed = self.closed or idle
        if idle:
            self._shut(self)

    def close(self) -> bool:
        """Mark as closed whatever is in flight; the caller closes the channel. False: it was closed already."""
        with self._lock:
            was, self.closed = self.closed, True
            return not was


class Completion:
    """Ends one call's accounting exactly once: latency sample, lease and transport. Any thread may call any method.

    Answers of calls that began before the endpoint had answered any are no latency samples: they contain connecting,
    and the first of a process core's own start, together 5 to 50 times a call's latency (measured on loopback). With a
    memory of 10 s, that would starve whichever endpoint happened to be called first.

    In a forked child it does nothing: the call, its locks and its counters belong to the parent.
    """

    __slots__ = ("_cold", "_done", "_generation", "_sampled", "lease", "transport")

    def __init__(self, lease: Lease, transport: Transport) -> None:
        self.lease = lease
        self.transport = transport
        self._sampled = False
        self._done = False
        self._cold = not transport.warm and not isinstance(lease, ServiceLease)
        self._generation = Generation.current

    def responded(self, failed: bool = False) -> None:
        """Take the latency sample, if it was not taken yet."""
        if self._generation != Generation.current:
            return
        with self.transport._lock:
            if self._sampled or self._done:
                return
            self._sampled = True
            self.transport.warm = self.transport.warm or not failed
        if failed or not self._cold:
            self.lease.responded(failed)

    def ended(self, code: grpc.StatusCode | None) -> None:
        """The call is over with ``code``; None: nobody knows. A call that we cancelled says nothing about latency."""
        failed = code in FAILURES
        if code is not None and code is not grpc.StatusCode.CANCELLED:
            self.responded(failed)
        self.done(failed)

    def done(self, failed: bool = False) -> None:
        """Release the counts without a sample."""
        if self._generation != Generation.current:
            return
        with self.transport._lock:
            if self._done:
                return
            self._done = True
        self.lease.done(failed)
        self.transport.end()
