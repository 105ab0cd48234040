"""Handles for clients whose requests have another way than the bare one, or learn late that they have to take it.

``ExplicitHandle`` is for targets that code names itself (``pick``, ``MeshTransport(target=)``, ``meshlib.grpc``).
There is no bare client to fall back to, so what the roll-out holds back goes to the Service's own address, where
kube-proxy or whatever stands there balances it, as it did before there was meshlib. Targets without such an address
(headless Services, DNS, static, file) are balanced whatever the mode is: there is nothing less to do for them.

``UrlHandle`` is for gRPC channels by host name, which have a bare side.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from meshlib.errors import HeldBack, ResolveError
from meshlib.pickers.hash_key import HashKeySpec
from meshlib.pickers.subchannel import Subchannel
from meshlib.policies.rollout import Way
from meshlib.runtime.balancer import JoinedCallback
from meshlib.runtime.handle import KeyOf, Live, TargetHandle
from meshlib.runtime.lease import Lease
from meshlib.runtime.observed import Observed

_NOTHING: frozenset[Subchannel] = frozenset()


class _Around(TargetHandle):
    """A TargetHandle that is another one, but for what a child changes. Any thread, and after fork."""

    def __init__(self, inner: TargetHandle) -> None:
        # Nothing of the base class' own: what it reads of itself is the inner one's, by the properties below.
        self.inner = inner
        self.target = inner.target
        self.authority = inner.authority
        self.mesh = inner.mesh
        self.rollout = inner.rollout

    def try_acquire(
        self, hash_key: str | bytes | None = None, exclude: Set[Subchannel] = _NOTHING
    ) -> Lease | None:
        return self.inner.try_acquire(hash_key, exclude)

    def choose(self, now: float, key: KeyOf, about: Any) -> Subchannel | None:
        return self.inner.choose(now, key, about)

    def all_refused(self) -> Lease | None:
        return self.inner.all_refused()

    @property
    def _live(self) -> Live | None:  # type: ignore[override]
        return self.inner._live

    def _start(self) -> Live:
        return self.inner._start()

    @property
    def live(self) -> Live | None:
        return self.inner.live

    @property
    def hash_key(self) -> HashKeySpec | None:
        return self.inner.hash_key

    @property
    def explicit(self) -> TargetHandle:
        return self

    def on_removed(self, callback: Any) -> None:
        self.inner.on_removed(callback)

    def on_joined(self, callback: JoinedCallback) -> None:
        self.inner.on_joined(callback)

    def status(self) -> dict[str, Any]:
        return self.inner.status()

    def describe(self) -> Mapping[str, Any]:
        return self.inner.describe()

    def stop(self) -> None:
        self.inner.stop()

    def after_fork(self) -> None:
        """The inner one does it, when its Mesh tells it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.inner!r}>"


class ExplicitHandle(_Around):
    """Picks obey the roll-out. With mode on for all requests that is a look at one attribute."""

    def try_acquire(
        self, hash_key: str | bytes | None = None, exclude: Set[Subchannel] = _NOTHING
    ) -> Lease | None:
        inner = self.inner
        if self.rollout.gate is None:
            return inner.try_acquire(hash_key, exclude)
        if exclude:  # the request has begun, and goes on the way it began
            return None if inner.is_beside(exclude) else inner.try_acquire(hash_key, exclude)
        return self._held_back() or inner.try_acquire(hash_key)

    def choose(self, now: float, key: KeyOf, about: Any) -> Subchannel | None:
        if self.rollout.gate is None:
            return self.inner.choose(now, key, about)
        lease = self._held_back()
        return self.inner.choose(now, key, about) if lease is None else lease.subchannel

    def acquire(
        self,
        timeout: float | None = None,
        hash_key: str | bytes | None = None,
        exclude: Set[Subchannel] = _NOTHING,
    ) -> Lease:
        if self.rollout.gate is None or exclude:
            return self.inner.acquire(timeout, hash_key, exclude)
        try:
            lease = self.inner.acquire(timeout, hash_key)
        except ResolveError:
            instead = self._held_back()  # the address is known, even if no pod is ready
            if instead is None:
                raise
            return instead
        return self._instead_of(lease)

    async def acquire_async(
        self,
        timeout: float | None = None,
        hash_key: str | bytes | None = None,
        exclude: Set[Subchannel] = _NOTHING,
    ) -> Lease:
        if self.rollout.gate is None or exclude:
            return await self.inner.acquire_async(timeout, hash_key, exclude)
        try:
            lease = await self.inner.acquire_async(timeout, hash_key)
        except ResolveError:
            instead = self._held_back()
            if instead is None:
                raise
            return instead
        return self._instead_of(lease)

    def all_refused(self) -> Lease | None:
        """While a share is held back, the Service's address is no news: one try there, that nothing is learned from."""
        if self.rollout.gate is None:
            return self.inner.all_refused()
        return None if self.mesh.strict else self.inner.service_lease()

    def _held_back(self) -> Lease | None:
        """A lease on the Service's address if this request is to go there; None: it is the mesh's, or nothing is known
        yet (then nobody counts it yet)."""
        lease = self.inner.service_lease()
        if lease is None:
            return None
        way = self.rollout.way()
        if way is Way.MESH:
            lease.withdraw()
            return None
        if way is Way.BARE_OBSERVE:
            Observed(self.inner)
        return lease

    def _instead_of(self, lease: Lease) -> Lease:
        instead = self._held_back()
        if instead is None:
            return lease
        lease.withdraw()
        return instead


class UrlHandle(_Around):
    """What is picked for a call although the roll-out lowers the mode by then is given back, and HeldBack raised: the
    call goes the bare way. So a first call obeys the annotation that it had to wait for: what a Service says is known
    before its endpoints can be picked, hence the look is after the pick."""

    def try_acquire(
        self, hash_key: str | bytes | None = None, exclude: Set[Subchannel] = _NOTHING
    ) -> Lease | None:
        try:
            lease = self.inner.try_acquire(hash_key, exclude)
        except ResolveError as error:
            raise (error if exclude else self._instead_of(error)) from error.__cause__
        return lease if lease is None or exclude else self._checked(lease)

    def choose(self, now: float, key: KeyOf, about: Any) -> Subchannel | None:
        subchannel = self.inner.choose(now, key, about)
        if subchannel is not None and self.rollout.gate is not None and self.rollout.lowered:
            subchannel.withdraw()
            return None  # whoever waits for a lease then is told
        return subchannel

    def acquire(
        self,
        timeout: float | None = None,
        hash_key: str | bytes | None = None,
        exclude: Set[Subchannel] = _NOTHING,
    ) -> Lease:
        try:
            return self._checked(self.inner.acquire(timeout, hash_key, exclude))
        except ResolveError as error:
            raise self._instead_of(error) from error.__cause__

    async def acquire_async(
        self,
        timeout: float | None = None,
        hash_key: str | bytes | None = None,
        exclude: Set[Subchannel] = _NOTHING,
    ) -> Lease:
        try:
            return self._checked(await self.inner.acquire_async(timeout, hash_key, exclude))
        except ResolveError as error:
            raise self._instead_of(error) from error.__cause__

    def _instead_of(self, error: ResolveError) -> ResolveError:
        """The mode may have been lowered while the call waited for what it did not get."""
        if self.rollout.gate is None or not self.rollout.lowered or isinstance(error, HeldBack):
            return error
        return HeldBack(f"{self.target}: {self.rollout.decision.reason}")

    def _checked(self, lease: Lease) -> Lease:
        if self.rollout.gate is not None and self.rollout.lowered:
            lease.withdraw()
            raise HeldBack(f"{self.target}: {self.rollout.decision.reason}")
        return lease
