"""Lease: one picked endpoint, from the pick until the request, body included, has ended."""

from __future__ import annotations

from collections.abc import Callable

from meshlib.model.endpoint import Endpoint
from meshlib.pickers.subchannel import Subchannel


class Lease:
    """What a client holds while a request is in flight. May be used from any thread; ``done`` is idempotent.

    Order: ``responded`` at most once, when headers came (or the connection failed); ``done`` when the body ended,
    the call was cancelled, or the connection failed. A lease that is dropped without ``done`` would leak a count, so
    clients call it in ``finally``.
    """

    __slots__ = ("_clock", "_failed", "_open", "_started", "subchannel")

    def __init__(self, subchannel: Subchannel, clock: Callable[[], float], started: float) -> None:
        self.subchannel = subchannel
        self._clock = clock
        self._started = started
        self._failed = False
        self._open = [True]

    @property
    def endpoint(self) -> Endpoint:
        return self.subchannel.endpoint

    def withdraw(self) -> None:
        """Nothing was sent and nothing will be: as if it had not been picked."""
        try:
            self._open.pop()
        except IndexError:
            return
        self.subchannel.withdraw()

    def connected(self) -> None:
        """A connection was opened for this request: its latency sample begins now. Set-up says nothing about load."""
        self._started = self._clock()

    def responded(self, failed: bool = False) -> None:
        """Take the latency sample. ``failed``: connection error, 5xx, UNAVAILABLE (decision D6)."""
        now = self._clock()
        self._failed = self._failed or failed
        self.subchannel.observe(now, now - self._started, failed)

    def done(self, failed: bool = False) -> None:
        """The request is over; later calls, from whatever thread, do nothing."""
        try:
            self._open.pop()  # atomic, with and without the GIL: a finalizer may come from another thread
        except IndexError:
            return
        self.subchannel.end(failed or self._failed)

    def finished(self, failed: bool = False) -> None:
        """``responded`` and ``done`` in one, for answers that come as a whole."""
        try:
            self._open.pop()
        except IndexError:
            return
        now = self._clock()
        self.subchannel.finish(now, now - self._started, failed)


class ServiceLease(Lease):
    """The one try through the Service address after every endpoint refused; an answer makes it sticky (decision D3)."""

    __slots__ = ("_answered",)

    def __init__(
        self, subchannel: Subchannel, clock: Callable[[], float], started: float, answered: Callable[[], None]
    ) -> None:
        super().__init__(subchannel, clock, started)
        self._answered = answered

    def responded(self, failed: bool = False) -> None:
        super().responded(failed)
        if not failed:
            self._answered()

    def finished(self, failed: bool = False) -> None:
        super().finished(failed)
        if not failed:
            self._answered()
