"""Waiting in a thread, for an endpoint and its connection: what blocking calls do, and the helpers of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.clients.grpc.attempts import Attempts
from meshlib.clients.grpc.reach import connected_now, holds_calls, reach
from meshlib.clients.grpc.status import CANCEL_DETAILS, CLOSED_DETAILS, MeshRpcError
from meshlib.errors import MeshError
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease, ServiceLease

if TYPE_CHECKING:
    from threading import Event

    from meshlib.clients.grpc.transport import Transport


def wait_for_lease(
    handle: TargetHandle,
    attempts: Attempts,
    closed: Event,
    pause: float = 0.0,
    alive: Callable[[], bool] = lambda: True,
) -> Lease | MeshRpcError:
    """Block until an endpoint was picked or the call has to end; returns the lease or the call's error.

    ``pause``: seconds before the first look (after every endpoint refused). ``closed``: the channel was closed.
    ``alive`` False: nobody wants the call any more.
    """
    while True:
        try:
            if pause:
                handle.wait_for_change(pause)
            if closed.is_set():
                return MeshRpcError(grpc.StatusCode.CANCELLED, CLOSED_DETAILS)
            if not alive():
                return MeshRpcError(grpc.StatusCode.CANCELLED, CANCEL_DETAILS)
            return handle.acquire(attempts.remaining(), attempts.hash_key)
        except MeshError as error:
            verdict = attempts.verdict(error)
            if verdict is not None:
                return verdict
        pause = attempts.next_round()


def connected(
    owner: Any,
    attempts: Attempts,
    lease: Lease | None,
    pause: float = 0.0,
    alive: Callable[[], bool] = lambda: True,
) -> Lease | MeshRpcError:
    """A lease on whose endpoint a call goes out, or fails, without waiting there for a connection.

    ``lease``: where to begin; None: wait for one, after ``pause`` seconds. An endpoint that does not connect within its
    share of the deadline is left for another one, and nobody waits for it again until it is connected: as under
    grpc's round_robin, calls go to those that are. ``owner`` is the multicallable. ValueError: the channel was closed.
    """

    def wanted() -> bool:
        return alive() and not owner.closed.is_set()

    rivals: list[Transport] = []  # were left as silent, and may connect yet
    while True:
        if lease is None:
            outcome = wait_for_lease(owner.handle, attempts, owner.closed, pause, alive)
            if isinstance(outcome, MeshRpcError):
                return outcome
            lease, pause = outcome, 0.0
        try:
            transport = owner.transport(lease)
            try:
                patience = attempts.patience(owner.has_connection)
                last = transport.draining or attempts.last_chance or isinstance(lease, ServiceLease)
                if last or patience <= 0:
                    return lease
                patience = 0.0 if transport.silent else patience
                if reach(transport, patience, owner.closed, alive, rivals):
                    transport.silent = False
                    if not holds_calls(transport):
                        return lease
                elif attempts.expired():  # core says so, in its own words
                    return lease
            finally:
                transport.end()
        except BaseException:
            lease.done()
            raise
        if not wanted():
            lease.done()
            lease = None
        else:
            if not holds_calls(transport):
                transport.was_silent()
            lease.responded(True)
            lease.done(True)
            lease = next_after(transport, attempts, rivals)


def next_after(silent: Transport, attempts: Attempts, rivals: list[Transport]) -> Lease | None:
    """Where to go when ``silent`` did not connect in time; keeps the list of those that may connect yet."""
    rivals.append(silent)
    back = [rival for rival in rivals if connected_now(rival)]
    rivals[:] = [rival for rival in rivals if rival not in back]
    return attempts.after_silence(silent.subchannel, [rival.subchannel for rival in back])
