"""TargetWatch: keeps one Balancer fed - the resolver's subscription, ExternalName hops, the DNS fall-back, the bound.

Everything here runs on the control loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Protocol

import msgspec

from meshlib.discovery.base import Resolver, Subscription
from meshlib.errors import DataError, DiscoveryError, TargetError
from meshlib.model.address import AddressPolicy
from meshlib.model.endpoint import Endpoint
from meshlib.model.service import ServiceType
from meshlib.model.target import Target, TargetDefaults
from meshlib.model.update import DoesNotExist, Failure, Snapshot, Update
from meshlib.runtime.balancer import Balancer

#: ExternalName may point to another Service; more hops than this is a mistake (DNS resolvers give up about there).
MAX_HOPS = 8
#: How often the DNS fall-back is asked again while it carries traffic, seconds: cluster DNS answers live 5-30 s.
DNS_REFRESH = 10.0
#: One DNS fall-back look-up may take this long, seconds; resolv.conf's own default per try is 5 s.
DNS_TIMEOUT = 5.0
#: How long calls stay with the Service address after every pod refused, seconds, before the pods are tried again.
SERVICE_STAY = 60.0


class Lookup(Protocol):
    """What the bare client would dial for a target: endpoints, or none when the name does not resolve."""

    async def __call__(self, target: Target, /) -> tuple[Endpoint, ...]: ...


class TargetWatch:
    """Owns the subscriptions of one Balancer."""

    def __init__(
        self,
        balancer: Balancer,
        *,
        resolver: Callable[[str], Resolver],
        defaults: TargetDefaults,
        lookup: Lookup,
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
        sleep: Callable[[float], Awaitable[None]],
        sync_timeout: float,
        policy: AddressPolicy = AddressPolicy(),  # noqa: B008 - immutable
    ) -> None:
        self._balancer = balancer
        self._policy = policy
        self._resolver = resolver
        self._defaults = defaults
        self._lookup = lookup
        self._spawn = spawn
        self._sleep = sleep
        self._sync_timeout = sync_timeout
        self._hops: list[tuple[Target, Subscription]] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._stay: asyncio.Task[Any] | None = None
        self._next: Target | None = None  #: where the last hop leads, until it is followed
        self._closed = False

    def start(self) -> None:
        if self._closed:
            return  # before it began
        target = self._balancer.target
        self._follow(target)
        if self._balancer.snapshot is None:
            self._tasks.append(self._spawn(self._bound(), f"bound {target}"))
            if target.scheme == "k8s":
                self._tasks.append(self._spawn(self._dns(), f"dns {target}"))

    def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._stay is not None:
            self._stay.cancel()
        for _, subscription in self._hops:
            subscription.close()
        self._hops.clear()
        self._balancer.close()

    def pods_refused(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Start the stay at the Service address, if ``endpoints`` (which refused) are still the set."""
        if self._closed:
            return
        self._balancer.pods_refused(endpoints)
        if self._stay is None or self._stay.done():
            self._stay = self._spawn(self._end_stay(), f"stay {self._balancer.target}")

    def describe(self) -> Mapping[str, Any]:
        """The last hop's own description: where the data comes from and how old it is."""
        return self._hops[-1][1].describe() if self._hops else {}

    # -- subscriptions -------------------------------------------------------------------------------------------

    def _follow(self, target: Target) -> None:
        depth = len(self._hops)
        try:
            subscription = self._resolver(target.scheme).watch(
                target, lambda update: self._updated(depth, target, update)
            )
        except Exception as error:  # a setting it refuses, or a plugin: foreign code may raise anything
            self._balancer.apply(Failure(error, hopeless=True))
            return
        if not self._closed and len(self._hops) == depth:
            self._hops.append((target, subscription))

    def _updated(self, depth: int, target: Target, update: Update) -> None:
        if self._closed or depth > len(self._hops):
            return
        if isinstance(update, Failure):
            if depth + 1 >= len(self._hops):
                self._balancer.apply(update)
            return  # an earlier hop keeps its last good answer, so the later one stays in force
        if isinstance(update, Snapshot) and update.service.type is ServiceType.EXTERNAL_NAME:
            self._hop(depth, target, update)
            return
        self._cut(depth + 1)
        if depth and isinstance(update, Snapshot) and self._balancer.target.scheme == "k8s":
            update = screened(update, self._policy)
        self._balancer.apply(update, target)

    def _hop(self, depth: int, target: Target, update: Snapshot) -> None:
        try:
            following = external_target(update, target, self._defaults)
        except TargetError as error:
            self._cut(depth + 1)
            # The Service was read and leads nowhere; that is an answer, and what it led to before is no longer meant.
            self._balancer.apply(DoesNotExist(error.reason))
            return
        if depth + 1 < len(self._hops) and self._hops[depth + 1][0] == following:
            return
        self._cut(depth + 1)
        seen = [target for target, _ in self._hops] or [self._balancer.target]
        if following in seen or len(seen) > MAX_HOPS:
            chain = " -> ".join(str(target) for target in (*seen, following))
            self._balancer.apply(DoesNotExist(f"ExternalName leads in a circle: {chain}"))
            return
        # This hop may be publishing from inside watch(), before its subscription is in the list: follow afterwards.
        self._next = following
        self._tasks.append(self._spawn(self._follow_soon(depth, following), f"follow {following}"))

    async def _follow_soon(self, depth: int, target: Target) -> None:
        if not self._closed and len(self._hops) == depth + 1 and self._next is target:
            self._next = None
            self._follow(target)

    def _cut(self, depth: int) -> None:
        self._next = None  # news of an earlier hop overtakes what was to be followed
        for _, subscription in self._hops[depth:]:
            subscription.close()
        del self._hops[depth:]

    # -- time ----------------------------------------------------------------------------------------------------

    async def _bound(self) -> None:
        await self._sleep(self._sync_timeout)
        self._balancer.stop_waiting()

    async def _dns(self) -> None:
        while self._balancer.wants_dns:
            try:
                async with asyncio.timeout(DNS_TIMEOUT):
                    endpoints = await self._lookup(self._balancer.target)
            except (OSError, TimeoutError, DiscoveryError):
                endpoints = ()  # no answer: the next round asks again; the discovery error stays the one to report
            if endpoints or not self._balancer.has_dns:
                self._balancer.dns_answered(endpoints)
            await self._sleep(DNS_REFRESH)

    async def _end_stay(self) -> None:
        await self._sleep(SERVICE_STAY)
        self._balancer.try_pods_again()


def external_target(snapshot: Snapshot, asked: Target, defaults: TargetDefaults) -> Target:
    """Where an ExternalName leads: another Service if the name is a cluster host, else DNS. Raises TargetError."""
    service = snapshot.service
    host = service.external_name.rstrip(".")
    port = asked.port
    if isinstance(port, str):
        numbers = [p.port for p in service.ports if p.name == port]
        if not numbers:
            raise TargetError(
                str(asked), 0, len(str(asked)), f"{service.key} is an ExternalName without a port {port!r}"
            )
        port = numbers[0]
    shown = f"[{host}]" if ":" in host else host
    return Target.parse(
        f"{shown}:{port}" if _is_cluster_host(host, defaults) else f"dns:///{shown}:{port}", defaults
    )


def screened(snapshot: Snapshot, policy: AddressPolicy) -> Snapshot | Failure:
    """What an ExternalName of the cluster leads to, without the addresses that the policy refuses.

    A name in a ``dns`` target is written by the caller, so ``localhost`` and the hosts file mean what they say there;
    an ExternalName is written by whoever may edit Services, and must not lead to what listens on our own host.
    """
    slices, refused = [], None
    for each in snapshot.slices:
        good = []
        for endpoint in each.endpoints:
            try:
                policy.check(endpoint.address)
                good.append(endpoint)
            except DataError as error:
                refused = error
        slices.append(msgspec.structs.replace(each, endpoints=tuple(good)))
    if refused is None:
        return snapshot
    if not any(each.endpoints for each in slices):
        return Failure(
            DiscoveryError(f"the ExternalName leads to {snapshot.service.key}: {refused}"), hopeless=True
        )
    return replace(snapshot, slices=tuple(slices), skipped=snapshot.skipped + 1)


def _is_cluster_host(host: str, defaults: TargetDefaults) -> bool:
    lowered = host.lower()
    return lowered.endswith((".svc", f".svc.{defaults.cluster_domain}"))
