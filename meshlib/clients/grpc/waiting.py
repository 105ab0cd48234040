"""Waiting for an endpoint in a thread: the one loop behind blocking calls and the helper of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from meshlib.clients.grpc.attempts import Attempts
from meshlib.clients.grpc.status import CANCEL_DETAILS, CLOSED_DETAILS, MeshRpcError
from meshlib.errors import MeshError
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.lease import Lease

if TYPE_CHECKING:
    from threading import Event


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
