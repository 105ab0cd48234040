"""Otherwise: grpc's own way, for a call that began as ours and learns that its host or port is none of ours.

A channel by host name (``orders.shop.svc:81``) is ours while nothing is known of the Service. The first call waits for
that knowledge (decision D3); when it says that there is no such Service, or not on this port, the call goes where it
would have gone without us, like all later ones (decision D2). Nothing of it was sent before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from meshlib.clients.grpc.status import MeshRpcError
from meshlib.errors import HeldBack, ServiceNotFound, UnknownPort
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.observed import count_held_back

#: Makes a channel to the same target as grpc itself would.
Bare = Callable[[], Any]


def is_not_ours(error: MeshRpcError, handle: TargetHandle) -> bool:
    """Whether the host turned out to be nobody we know, the port to be none of the Service's, or the Service to ask
    that its calls go the bare way. Ask once per call: the roll-out counts it."""
    if isinstance(error.__cause__, HeldBack):
        count_held_back(handle)
        return True
    return isinstance(error.__cause__, (ServiceNotFound, UnknownPort))


class Waiting:
    """A method on the bare channel. Our own calls never let core wait for a connection; there it is core that waits."""

    __slots__ = ("_method", "_wait_for_ready")

    def __init__(self, method: Any, wait_for_ready: bool) -> None:
        self._method = method
        self._wait_for_ready = wait_for_ready

    def __call__(
        self, request: Any, timeout: Any, metadata: Any, credentials: Any, _: None, compression: Any
    ) -> Any:
        return self._method(request, timeout, metadata, credentials, self._wait_for_ready, compression)

    def with_call(
        self, request: Any, timeout: Any, metadata: Any, credentials: Any, _: None, compression: Any
    ) -> Any:
        return self._method.with_call(
            request, timeout, metadata, credentials, self._wait_for_ready, compression
        )

    def future(
        self, request: Any, timeout: Any, metadata: Any, credentials: Any, _: None, compression: Any
    ) -> Any:
        return self._method.future(request, timeout, metadata, credentials, self._wait_for_ready, compression)


class Nobody:
    """Stands for the completion of a call that no endpoint of ours is charged with."""

    class transport:
        """No address of ours can have refused it."""

        target = "\0"

    def responded(self, failed: bool = False) -> None:
        """No sample."""

    def ended(self, code: grpc.StatusCode | None) -> None:
        """Nothing to account for."""

    def done(self, failed: bool = False) -> None:
        """Nothing to release."""
