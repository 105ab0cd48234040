"""Mesh: the public handle on the process runtime, and TargetHandle: one target of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from meshlib.model.target import Target
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease


class TargetHandle:
    """One target of one Mesh: cheap to hold, shared by all clients that use the target.

    ``target`` is the parsed target. Errors of all acquire methods are children of ``errors.ResolveError``: NoEndpoints,
    NoLocalEndpoints, ServiceNotFound, UnknownPort (all at once), NotSynced and PickTimeout (after the bounded wait).
    """

    target: Target

    def try_acquire(self, hash_key: str | bytes | None = None, exclude: Collection[Subchannel] = ()) -> Lease | None:
        """Pick now, never blocking. None: nothing known yet (wait with acquire), or all were excluded."""
        raise NotImplementedError

    def acquire(
        self, timeout: float | None = None, hash_key: str | bytes | None = None, exclude: Collection[Subchannel] = ()
    ) -> Lease:
        """Pick, waiting for the first knowledge (D3: at most min(timeout, 1 s)). Blocks the thread; never on a loop."""
        raise NotImplementedError

    async def acquire_async(
        self, timeout: float | None = None, hash_key: str | bytes | None = None, exclude: Collection[Subchannel] = ()
    ) -> Lease:
        """The same for asyncio (any running loop)."""
        raise NotImplementedError

    def service_address(self) -> Lease | None:
        """The Service's own address (clusterIP:port) as a lease, for the one try when all endpoints refuse; else None."""
        raise NotImplementedError

    def all_refused(self) -> Lease | None:
        """A client reports that every endpoint refused its connection: sticky switch to the Service address (D3).

        Returns a lease on it, or None when there is none (headless, static, DNS) or the Mesh is strict.
        """
        raise NotImplementedError

    def on_removed(self, callback: Callable[[Subchannel], None]) -> None:
        """Register (weakly) a callback for subchannels that left the set; called on the control thread."""
        raise NotImplementedError

    def pick(self, *, hash_key: str | bytes | None = None, timeout: float | None = None) -> Any:
        """``with handle.pick() as endpoint:`` and ``async with handle.pick() as endpoint:`` (decision D10)."""
        raise NotImplementedError


class Mesh:
    """A handle on the process runtime (decision D10). Thread-safe; usable after fork; nothing starts before first use.

    ``strict``: every fall-back of decision D3 becomes an error.
    """

    def __init__(self, *, strict: bool | None = None, config: Any = None) -> None:
        raise NotImplementedError

    def target(self, target: str | Target, *, authority: str | None = None) -> TargetHandle:
        raise NotImplementedError

    def for_url(self, scheme: str, host: str, port: int | None) -> TargetHandle | None:
        """Decision D1: the handle if this URL's host is ours now, else None (the bare path). Never blocks. O(1) when cached."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def default_mesh() -> Mesh:
    """The Mesh that ``wrap`` and ``install`` use; one per process, made on first use."""
    raise NotImplementedError
