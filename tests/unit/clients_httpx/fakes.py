"""A target handle without discovery: real Subchannels, a real picker and real Leases over a set that a test changes."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Set
from typing import Any

import httpx

from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from meshlib.errors import NoEndpoints
from meshlib.model.endpoint import Endpoint
from meshlib.model.target import Target
from meshlib.pickers.base import PickerContext, PickInfo
from meshlib.pickers.hash_key import HashKeySpec
from meshlib.pickers.round_robin import BUILDER
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.lease import Lease


class FullyOn:
    """A roll-out that holds nothing back."""

    gate = None
    lowered = False


class FakeHandle:
    """``endpoints``: addresses and ports. ``known`` = False: try_acquire does not know yet, acquire decides."""

    def __init__(
        self, endpoints: Iterable[tuple[str, int]] = (), now: Callable[[], float] = time.monotonic
    ) -> None:
        self.target = Target("static")
        self.rollout = FullyOn()
        self.authority = ""
        self.hash_key: HashKeySpec | None = None
        self.now = now
        self.known = True
        self.error: Exception | None = None
        self.waits: list[float | None] = []
        self.keys: list[str | bytes | None] = []
        self.service: Subchannel | None = None
        self.refusals = 0
        self.subchannels: dict[tuple[str, int], Subchannel] = {}
        self._listeners: list[weakref.WeakMethod[Callable[[Subchannel], None]]] = []
        self._joiners: list[weakref.WeakMethod[Callable[..., None]]] = []
        self.replace(endpoints)

    def replace(self, endpoints: Iterable[tuple[str, int]]) -> None:
        """A new set; those that are not in it any more leave."""
        wanted = list(endpoints)
        before = self.subchannels
        self.subchannels = {
            key: before.get(key) or Subchannel(Endpoint(address=key[0], port=key[1]), threading.Lock())
            for key in wanted
        }
        context = PickerContext(random=lambda: 0.0)
        self._picker = BUILDER.build(
            tuple(self.subchannels.values()), BUILDER.parse_config({}, "test"), context
        )
        joined = tuple(self.subchannels[key] for key in wanted if key not in before)
        for joiner in self._joiners if joined and before else ():
            if (tell := joiner()) is not None:
                tell(joined, tuple(before.values()), len(self.subchannels))
        for key, gone in before.items():
            if key not in self.subchannels:
                gone.removed = True
                for listener in self._listeners:
                    if (callback := listener()) is not None:
                        callback(gone)

    def try_acquire(
        self, hash_key: str | bytes | None = None, exclude: Set[Subchannel] = frozenset()
    ) -> Lease | None:
        if not self.known:
            return None
        self.keys.append(hash_key)
        return self._pick(exclude)

    def acquire(
        self, timeout: float | None = None, hash_key: str | bytes | None = None, exclude: Any = frozenset()
    ) -> Lease:
        self.waits.append(timeout)
        if self.error is not None:
            raise self.error
        lease = self._pick(exclude)
        assert lease is not None
        return lease

    async def acquire_async(
        self, timeout: float | None = None, hash_key: str | bytes | None = None, exclude: Any = frozenset()
    ) -> Lease:
        return self.acquire(timeout, hash_key, exclude)

    def all_refused(self) -> Lease | None:
        self.refusals += 1
        if self.service is None:
            return None
        self.service.begin()
        return Lease(self.service, self.now, self.now())

    def on_removed(self, callback: Callable[[Subchannel], None]) -> None:
        self._listeners.append(weakref.WeakMethod(callback))

    def on_joined(self, callback: Callable[..., None]) -> None:
        self._joiners.append(weakref.WeakMethod(callback))

    def _pick(self, exclude: Set[Subchannel]) -> Lease | None:
        if self.error is not None:
            raise self.error
        if not self.subchannels:
            raise NoEndpoints("orders.shop: no endpoint may receive traffic")
        now = self.now()
        subchannel = self._picker.pick(PickInfo(now, None, exclude))
        if subchannel is None:
            return None
        if not self._picker.counts:
            subchannel.begin()
        return Lease(subchannel, self.now, now)

    @property
    def inflight(self) -> int:
        return sum(subchannel.inflight for subchannel in self.subchannels.values())


def sync_transport(handle: FakeHandle, **options: Any) -> httpx.HTTPTransport:
    """httpx's own transport with a mesh pool for the handle inside.

    Without ``verify`` among the options it has no certificates: loading those of all the world takes 20 ms.
    """
    transport = httpx.HTTPTransport(**{"verify": False, **options})
    transport._pool = MeshPool(transport._pool, load(), handle=handle)  # type: ignore[assignment]
    return transport


def async_transport(handle: FakeHandle, **options: Any) -> httpx.AsyncHTTPTransport:
    transport = httpx.AsyncHTTPTransport(**{"verify": False, **options})
    transport._pool = AsyncMeshPool(transport._pool, load(), handle=handle)  # type: ignore[assignment]
    return transport
