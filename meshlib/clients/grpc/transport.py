"""Transport: one channel to one endpoint, kept until its last call has ended, and Completion: the end of one call."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import grpc

from meshlib.clients.grpc.reach import state_of
from meshlib.clients.grpc.status import FAILURES
from meshlib.observe.catalogue import ERRORS, OPENED
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease, ServiceLease
from meshlib.runtime.observing import TALLY
from meshlib.runtime.process import Generation
from meshlib.runtime.totals import counts_connections

#: What metrics call channels to endpoints, each of which has one connection at most.
PROTOCOL = "grpc"
#: Of this process, and of those that it was forked from, by the generation.
_all: dict[tuple[int, int], weakref.ref[Transport]] = {}


def in_use() -> int:
    """Channels to endpoints that this process has made and not closed."""
    alive = [ref() for (generation, _), ref in list(_all.items()) if generation == Generation.current]
    return sum(one is not None and one._shut is not None for one in alive)


counts_connections(PROTOCOL, in_use)


class Transport:
    """A single-address channel and the calls on it. Thread-safe.

    ``shut`` closes the channel; it is called once, by ``drain`` or by whoever ends the last call after it.

    A call is counted in and out with one step of a list each, because a lock would be most of what counting costs.
    That is enough: a call enters the list *before* it looks at ``closed``, and whoever wants to close sets ``closed``
    *before* looking into the list. Of two that meet, at least one sees the other.
    """

    __slots__ = (
        "__weakref__",
        "_lock",
        "_shut",
        "channel",
        "closed",
        "core_waits",
        "draining",
        "driven",
        "look",
        "open",
        "silent",
        "subchannel",
        "target",
        "warm",
    )

    def __init__(
        self,
        channel: Any,
        target: str,
        subchannel: Subchannel,
        lock: AbstractContextManager[object],
        shut: Callable[[Transport], None],
        core_waits: bool = False,
    ) -> None:
        self.channel = channel
        self.target = target
        self.subchannel = subchannel
        #: One entry per call in flight.
        self.open: list[None] = []
        #: Close as soon as nothing is in flight. A call that was given an endpoint just before it left the set still
        #: gets a channel, for that call only.
        self.draining = subchannel.removed
        #: No new calls.
        self.closed = False
        #: Whether a call was answered: until then latencies are those of connecting.
        self.warm = False
        #: The connection's state now, as core numbers them; True: and connect, if there is none.
        self.look = state_of(channel)
        #: Did not connect in the time that a call had for it: nobody waits for it again until it has answered a call.
        self.silent = False
        #: See ``options``; then a call leaves an endpoint that fails to connect before it is handed over.
        self.core_waits = core_waits
        #: A helper thread is moving its connection forward.
        self.driven = False
        self._lock = lock
        self._shut: Callable[[Transport], None] | None = shut
        key = (Generation.current, id(self))
        _all[key] = weakref.ref(self, lambda _: _all.pop(key, None))
        TALLY.add(OPENED, PROTOCOL)

    @property
    def calls(self) -> int:
        """How many are in flight."""
        return len(self.open)

    def begin(self) -> bool:
        """Count a call in. False: closed meanwhile, take another transport."""
        self.open.append(None)
        if self.closed:
            self.end()
            return False
        return True

    def end(self) -> None:
        """Count a call out; the last one of a draining transport closes it."""
        self.open.pop()
        if self.draining:
            self.settle()

    def was_silent(self) -> None:
        """It did not connect in its time. The next answer, which ends that, is told from the others by ``warm``."""
        self.silent = True
        self.warm = False

    def drain(self) -> None:
        """The endpoint left the set: no new calls, and close as soon as nothing is in flight."""
        self.draining = True
        self.settle()

    def close(self) -> bool:
        """Mark as closed whatever is in flight; the caller closes the channel. False: somebody did already."""
        self.closed = True
        with self._lock:
            shut, self._shut = self._shut, None
        return shut is not None

    def settle(self) -> None:
        """After ``draining`` was set or a call left ``open``: close, if that was the last one."""
        self.closed = True
        # A copy, because without the GIL a look at the length takes no lock and could come before the line above.
        if self.open.copy():
            return
        with self._lock:
            shut, self._shut = self._shut, None
        if shut is not None:
            shut(self)


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
            if not failed:
                self.transport.warm = True
                self.transport.silent = False
        if failed or not self._cold:
            self.lease.responded(failed)

    def ended(self, code: grpc.StatusCode | None) -> None:
        """The call is over with ``code``; None: nobody knows. A call that we cancelled says nothing about latency."""
        if code is grpc.StatusCode.OK and not self._sampled and not self._cold:
            self._finished()
            return
        failed = code in FAILURES
        if code is not None and code is not grpc.StatusCode.CANCELLED:
            self.responded(failed)
        self.done(failed, "" if code is None else f"grpc_{code.name.lower()}")

    def _finished(self) -> None:
        """``responded`` and ``done`` in one: the answer came as a whole."""
        if self._generation != Generation.current:
            return
        transport = self.transport
        with transport._lock:
            if self._done:
                return
            self._done = self._sampled = True
        self.lease.finished()
        transport.end()

    def done(self, failed: bool = False, kind: str = "unreached") -> None:
        """Release the counts without a sample. ``kind``: what metrics call the failure."""
        if self._generation != Generation.current:
            return
        with self.transport._lock:
            if self._done:
                return
            self._done = True
        self.lease.done(failed)
        self.transport.end()
        if failed:
            TALLY.add(ERRORS, self.lease.subchannel.target, kind)
