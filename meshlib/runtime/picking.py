"""``with handle.pick() as endpoint:`` for clients other than httpx and grpc (decision D10)."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

from meshlib.errors import MeshError
from meshlib.model.endpoint import Endpoint
from meshlib.runtime.lease import Lease


class Acquirer(Protocol):
    """The part of a TargetHandle that is needed here."""

    def try_acquire(self, hash_key: str | bytes | None = None) -> Lease | None: ...

    def acquire(self, timeout: float | None = None, hash_key: str | bytes | None = None) -> Lease: ...

    async def acquire_async(
        self, timeout: float | None = None, hash_key: str | bytes | None = None
    ) -> Lease: ...


class Pick:
    """One pick as a context: the endpoint is in flight until the block ends.

    A block that ends by an exception counts as a failure of the endpoint, except for a cancellation or an exit request,
    which say nothing about it. One object serves one block at a time.
    """

    __slots__ = ("_handle", "_hash_key", "_lease", "_timeout")

    def __init__(self, handle: Acquirer, hash_key: str | bytes | None, timeout: float | None) -> None:
        self._handle = handle
        self._hash_key = hash_key
        self._timeout = timeout
        self._lease: Lease | None = None

    def __enter__(self) -> Endpoint:
        lease = self._handle.try_acquire(self._hash_key)
        if lease is None:
            if _loop_runs_here():
                raise MeshError(
                    "this pick would block the running event loop: use 'async with target.pick()' instead"
                )
            lease = self._handle.acquire(self._timeout, self._hash_key)
        self._lease = lease
        return lease.endpoint

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(error)

    async def __aenter__(self) -> Endpoint:
        lease = self._handle.try_acquire(self._hash_key)
        if lease is None:
            lease = await self._handle.acquire_async(self._timeout, self._hash_key)
        self._lease = lease
        return lease.endpoint

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        lease, self._lease = self._lease, None
        if lease is None:
            return
        if error is None or isinstance(error, Exception):
            lease.finished(failed=error is not None)
        else:
            lease.done()


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
