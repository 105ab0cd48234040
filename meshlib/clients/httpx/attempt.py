"""The way of one request over endpoints: a generator that yields what to do and receives what came of it. No IO.

What may move on to another endpoint is only what was not looked at: a connection that was refused, timed out, or failed
its TLS handshake, and a request that an HTTP/2 server says it refused (that one is sent to the same endpoint first,
over another connection: most likely the server has only told that it leaves the old one). The caller's connect timeout
is the budget for the whole attempt, over however many endpoints. Once a request is on the wire there is one exception,
taken from RFC 9112 9.3.1: a *reused* connection that ends before the head of the reply was most likely closed by the
server while it was idle, so an idempotent request is sent once more on a fresh connection (a bare httpcore pool raises
here).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from meshlib.clients.httpx.body import RequestBody
from meshlib.clients.httpx.faults import Fault, is_blamed
from meshlib.errors import ResolveError
from meshlib.observe.catalogue import ERRORS
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease
from meshlib.runtime.observing import TALLY

#: RFC 9110 9.2.2.
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
#: An endpoint that answers at all answers a SYN within this, even across regions: the "Connection Attempt Delay" of
#: RFC 8305 section 5. No endpoint is given less while the budget lasts.
LEAST_SLICE = 0.25
#: What one endpoint may take to connect while there may be others, when the caller set no connect timeout: httpx's
#: default connect timeout; room for two retransmitted SYNs (after 1 s and 3 s, RFC 6298).
OPEN_SLICE = 5.0
#: How often a refused request goes to the same endpoint again. That it leaves a connection is not seen while the
#: connection is idle, and other requests may have others of the kind; three in a row are rare, and cost little.
MOST_REFUSALS = 3
#: Pauses between rounds for callers that asked httpx for connection ``retries``: 0, then this and its doubles, as
#: httpcore does.
BACK_OFF = 0.5


@dataclass(slots=True, eq=False)
class Exchange:
    """What one request brings with it, and what the engine notes about it. Times are seconds; None: unlimited."""

    method: bytes
    body: RequestBody
    connect_timeout: float | None = None
    pool_timeout: float | None = None
    hash_key: str | bytes | None = None
    retries: int = 0
    secure: bool = False  #: over TLS
    reused: bool = True  #: engine: False once a connection was opened for this exchange
    lease: Lease | None = None  #: engine: on whose endpoint it is now

    @property
    def pool_is_shorter(self) -> bool:
        """Whether it is the pool timeout that bounds the wait for an endpoint."""
        pool, connect = self.pool_timeout, self.connect_timeout
        return pool is not None and (connect is None or pool < connect)


class Wait:
    """Do ``handle.acquire`` with this timeout; the outcome is the lease."""

    __slots__ = ("timeout",)

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout


class Dial:
    """Send the request to the lease's endpoint; the outcome is the response, or the exception thrown in."""

    __slots__ = ("connect_timeout", "fresh", "keep", "lease")

    def __init__(self, lease: Lease, connect_timeout: float | None, fresh: bool, keep: bool) -> None:
        self.lease = lease
        self.connect_timeout = connect_timeout
        self.fresh = fresh  #: idle connections to the endpoint are stale: close them first
        self.keep = keep  #: keep the connection for later requests; False: this endpoint is used once


class Pause:
    """Sleep for this many seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


Step = Wait | Dial | Pause
Steps = Generator[Step, Any, tuple[Any, Lease]]


def attempt(
    handle: TargetHandle,
    exchange: Exchange,
    fault_of: Callable[[BaseException], Fault],
    now: Callable[[], float],
) -> Steps:
    """Drive one request. Returns (response, lease): the lease's sample is taken, ``done`` is up to the response's body.

    Whatever leaves this generator by exception has its lease ended already.
    """
    budget = _Budget(exchange.connect_timeout, now)
    lease = handle.try_acquire(exchange.hash_key)
    if lease is None:
        lease = yield Wait(_shorter(budget.left(), exchange.pool_timeout))
    round_ = _Round()
    rounds_left, pause = exchange.retries, 0.0
    fresh = resent = False
    refusals = 0
    while True:
        try:
            response = yield Dial(lease, round_.slice(budget), fresh, keep=not round_.on_service_address)
        except BaseException as error:
            fault = fault_of(error)
            if fault is Fault.REFUSED:
                refusals += 1
                again = refusals <= MOST_REFUSALS
            else:
                again = fault is Fault.RESET and exchange.reused and not resent
                again = again and exchange.method in IDEMPOTENT
                resent = resent or again
            if again and exchange.body.can_begin:
                fresh = True
                continue
            _end(lease, fault)
            if not round_.may_move_on(fault) or not exchange.body.can_begin:
                raise
            round_.failed(lease.subchannel, fault)
            next_lease = _next(handle, exchange, round_, budget)
            if next_lease is None and (rounds_left == 0 or budget.spent):
                raise
        else:
            failed = response.status >= 500
            lease.responded(failed)
            if failed:
                TALLY.add(ERRORS, lease.subchannel.target, "http_5xx")
            return response, lease
        fresh = False
        if next_lease is None:
            rounds_left -= 1
            yield Pause(pause)
            pause = pause * 2 or BACK_OFF
            round_ = _Round()
            next_lease = handle.try_acquire(exchange.hash_key)
            if next_lease is None:
                next_lease = yield Wait(_shorter(budget.left(), exchange.pool_timeout))
        lease = next_lease


def _next(handle: TargetHandle, exchange: Exchange, round_: _Round, budget: _Budget) -> Lease | None:
    """Another endpoint, else the Service address (decision D3), else one more try of those that were slow."""
    if budget.spent:
        return None
    if round_.on_service_address:
        return None
    lease = _try(handle, exchange, round_.tried)
    if lease is not None:
        return lease
    if round_.slow and not round_.last_chance and budget.limited:
        round_.last_chance = True
        lease = _try(handle, exchange, round_.tried - round_.slow)
        if lease is not None:
            return lease
    if round_.all_blamed:
        round_.on_service_address = True
        return handle.all_refused()
    return None


def _try(handle: TargetHandle, exchange: Exchange, exclude: set[Subchannel]) -> Lease | None:
    """A pick that may find the set gone empty meanwhile; then the connection error is the better thing to raise."""
    try:
        return handle.try_acquire(exchange.hash_key, exclude)
    except ResolveError:
        return None


def _shorter(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _end(lease: Lease, fault: Fault) -> None:
    blamed = is_blamed(fault)
    if blamed:
        lease.responded(failed=True)
    lease.done(failed=blamed)
    if blamed:
        TALLY.add(ERRORS, lease.subchannel.target, fault.value.replace("-", "_"))


class _Budget:
    """The connect timeout, from the moment the request came."""

    __slots__ = ("_deadline", "_now", "limited")

    def __init__(self, timeout: float | None, now: Callable[[], float]) -> None:
        self.limited = timeout is not None
        self._deadline = now() + timeout if timeout is not None else 0.0
        self._now = now

    def left(self) -> float | None:
        """Seconds left, never negative; None: unlimited."""
        return max(0.0, self._deadline - self._now()) if self.limited else None

    @property
    def spent(self) -> bool:
        return self.limited and self._now() >= self._deadline


class _Round:
    """The endpoints tried so far."""

    __slots__ = ("all_blamed", "last_chance", "on_service_address", "slow", "tried")

    def __init__(self) -> None:
        self.tried: set[Subchannel] = set()
        self.slow: set[Subchannel] = set()
        self.all_blamed = True
        self.last_chance = False
        self.on_service_address = False

    def slice(self, budget: _Budget) -> float | None:
        """How long the next connection may take: half of what is left, so that a silent endpoint never eats it all."""
        left = budget.left()
        if self.last_chance or self.on_service_address:
            return left
        if left is None:
            return OPEN_SLICE
        return min(left, max(LEAST_SLICE, left / 2))

    def may_move_on(self, fault: Fault) -> bool:
        return fault in (Fault.UNREACHED, Fault.SLOW_TO_CONNECT, Fault.UNROUTABLE, Fault.REFUSED)

    def failed(self, subchannel: Subchannel, fault: Fault) -> None:
        self.tried.add(subchannel)
        if fault is Fault.SLOW_TO_CONNECT:
            self.slow.add(subchannel)
        elif fault is not Fault.UNREACHED:
            self.all_blamed = False
