"""Mesh: the public handle on the process runtime (decision D10)."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from meshlib.discovery.base import Resolver, ResolverBuilder
from meshlib.discovery.dns import lookup as dns_lookup
from meshlib.errors import ConfigError, DiscoveryError, MeshClosed, NotSynced
from meshlib.model.endpoint import Endpoint
from meshlib.model.hosts import HostMatch
from meshlib.model.slices import EndpointSlice
from meshlib.model.target import Target
from meshlib.model.vantage import VantagePoint
from meshlib.pickers.hash_key import parse_hash_key
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime import place, process
from meshlib.runtime.balancer import Balancer, JoinedCallback, Known, Surroundings, Way
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.config import Config, TargetSettings, address_policy, load_config, target_defaults
from meshlib.runtime.dev_file import find_dev_file, tell
from meshlib.runtime.exporters import start_configured
from meshlib.runtime.factory import PickerFactory
from meshlib.runtime.handle import Live, TargetHandle
from meshlib.runtime.lookup import DnsFallback
from meshlib.runtime.names import UrlTable
from meshlib.runtime.observed import Observed
from meshlib.runtime.observing import emit
from meshlib.runtime.primitives import StripedLocks
from meshlib.runtime.registry import has_resolver, picker_builder, resolver_builder
from meshlib.runtime.rollout import Rollout
from meshlib.runtime.status_socket import serve_status
from meshlib.runtime.totals import BOOK
from meshlib.runtime.under_test import StandIns, under_test
from meshlib.runtime.watch import DNS_TIMEOUT, TargetWatch


class Mesh:
    """Targets, their state and their watches. Thread-safe, usable after fork; nothing starts before first use.

    Watches are shared by all Meshes of a process that use the same control plane; balancer state belongs to one
    Mesh. ``strict``: every fall-back of decision D3 becomes an error. ``config``: a ``load_config()`` result; by
    default it is read from the environment and ``meshlib.toml``. ``resolvers``: own resolver builders by scheme, before
    the built-ins and plugins. Raises ConfigError.
    """

    def __init__(
        self,
        *,
        strict: bool | None = None,
        config: Config | None = None,
        resolvers: Mapping[str, ResolverBuilder] | None = None,
    ) -> None:
        if config is None:
            config = load_config({} if strict is None else {"strict": strict})
        _check_kind(config)
        self.config = config
        self.strict = config.strict if strict is None else strict
        self.defaults = target_defaults(config)
        self._resolvers = dict(resolvers or {})
        dev_file = find_dev_file(os.environ, self.defaults)
        tell(dev_file)
        self._dev_file = dev_file.file
        self.policy = address_policy(config)
        self._lock = threading.Lock()
        #: how much of the traffic is ours, live; see ``runtime.rollout``
        self.rollout = Rollout(self)
        self._handles: dict[tuple[Target, str], TargetHandle] = {}
        self._urls = UrlTable(self)
        self._place: place.Place | None = None
        self._closed = False
        self._watches: list[TargetWatch] = []
        start_configured(config.exporters, config.source("exporters"))
        process.rebuild_after_fork(self)
        # A Mesh that is dropped without close() takes its watches with it. The finalizer may run in any thread, in the
        # middle of anything, so it only asks the control loop to do it.
        weakref.finalize(self, process.abandon, self._watches).atexit = False

    # -- targets -------------------------------------------------------------------------------------------------

    def target(self, target: str | Target, *, authority: str | None = None) -> TargetHandle:
        """The handle for a target; the same one for equal arguments. Does not block and starts no watch yet.

        ``authority``: the logical host for TLS and ``Host`` instead of the target's own. Raises TargetError,
        ConfigError (unknown scheme or picker, bad settings; names the place) and MeshClosed.
        """
        parsed = Target.parse(target, self.defaults) if isinstance(target, str) else target
        settings = self.config.for_target(str(parsed))
        logical = authority or settings.authority or parsed.authority
        key = (parsed, logical)
        handle = self._handles.get(key)
        if handle is None:
            self._builder(parsed.scheme)  # imports the resolver here, in the caller's thread; checks the name
            self._parse_settings(settings)
            spec = parse_hash_key(settings.hash_key, settings.where) if settings.hash_key else None
            with self._lock:
                self._check_open()
                handle = self._handles.setdefault(key, TargetHandle(self, parsed, logical, spec))
        return handle

    def for_url(self, scheme: str, host: str, port: int | None) -> TargetHandle | Observed | None:
        """Decision D1, for one request: the handle if this URL's host is ours and the roll-out lets the request go that
        way, else None or, where it is observed, an Observed (the bare path). Counts it. Never blocks."""
        return self._urls.find(scheme, host, port)

    def serving_url(self, scheme: str, host: str, port: int | None) -> TargetHandle | None:
        """The handle if this URL's host is ours and not held back whole (mode off or observe); counts nothing."""
        return self._urls.serving(scheme, host, port)

    def match_url(self, scheme: str, host: str, port: int | None) -> HostMatch:
        """What this URL's host can be to us at all, whatever is known now. Asks nobody."""
        return self._urls.match(scheme, host, port)

    def has_scheme(self, scheme: str) -> bool:
        """Whether targets of this scheme have a resolver here. Loads no plugin."""
        return scheme in self._resolvers or has_resolver(scheme)

    def now(self) -> float:
        """Seconds of the runtime's monotonic clock."""
        return SYSTEM.now()

    def find_first(self, candidates: Sequence[Target], tell: Callable[[Target | None], None]) -> None:
        """Ask DNS in the background which exists, in order; ``tell`` gets it or None, on the control thread."""
        runtime = self._enter()
        lookup = self._lookup(runtime)

        def ask() -> None:
            runtime.control.spawn(_first_found(lookup, candidates, tell), name="short name")

        runtime.control.call(ask)

    @property
    def handles(self) -> tuple[TargetHandle, ...]:
        return tuple(self._handles.copy().values())  # a copy is atomic, a walk is not: other threads add

    # -- life ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release watches and state; later calls raise MeshClosed. The last open Mesh of a process stops its thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            handles, self._handles = self._handles, {}
        for handle in handles.values():
            handle.stop()
        self._watches.clear()
        process.leave(self)

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Mesh:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    @property
    def stand_ins(self) -> StandIns | None:
        """What answers for targets in the place of discovery: a test's, or meshlib.dev.toml; not where resolvers were
        given in code."""
        if self._resolvers:
            return None
        return self._dev_file if under_test.stand_ins is None else under_test.stand_ins

    def reset(self) -> None:
        """Forget everything that is known and release the watches; the next use starts anew. For tests."""
        for handle in self.handles:
            handle.stop()
        self._watches.clear()
        self._place = None
        self._urls.forget()
        self.rollout.begin_anew()
        process.leave(self)

    @property
    def closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise MeshClosed("this Mesh was closed")

    def enter_runtime(self) -> None:
        """For the roll-out, which has to look at its file before the first request. Raises NotSynced, MeshClosed."""
        self._enter()

    def _enter(self) -> process.ProcessRuntime:
        self._check_open()
        if under_test.off and not self._resolvers:  # resolvers given in code are a test's own
            raise NotSynced(under_test.off)
        runtime = process.enter(self)
        if self._closed:  # between the two: nobody else would sign us off again
            process.leave(self)
            self._check_open()
        self.rollout.attach(runtime)
        if runtime.status is None:
            runtime.control.call(serve_status, runtime, self.config.status_socket)
        return runtime

    def after_fork(self) -> None:
        """In a forked child: new locks; handles start anew on next use, from their last snapshot."""
        self._lock = threading.Lock()
        self._watches.clear()
        self._place = None
        self.rollout.after_fork()
        self._urls.after_fork()
        for handle in self._handles.values():
            handle.after_fork()

    # -- starting a target ---------------------------------------------------------------------------------------

    def start_target(
        self,
        handle: TargetHandle,
        seed: Known | None,
        removed: Callable[[Subchannel], None],
        joined: JoinedCallback,
    ) -> Live:
        """Called by the handle on first use (any thread, under its lock). ``seed``: what was known before a fork, and
        since when."""
        runtime = self._enter()
        with self._lock:
            where = self._place
            if where is None:
                where = self._place = place.Place(
                    self.config.node, self.config.zone, place.own_addresses(os.environ)
                )
        mesh = weakref.ref(self)
        target = handle.target
        if (stand_ins := self.stand_ins) is not None:
            target = stand_ins.target(target)

        def vantage(slices: Sequence[EndpointSlice]) -> VantagePoint:
            before = where.vantage
            where.learn(slices)
            if where.vantage != before and (owner := mesh()) is not None:
                runtime.control.call(owner._decide_again)
            return where.vantage

        detects = target.scheme == "k8s" and self.config.sidecar == "auto"
        locks, totals = StripedLocks(), BOOK.target(str(handle.target))

        def make_subchannels(endpoints: Sequence[Endpoint], joined: float) -> list[Subchannel]:
            made = [Subchannel(each, locks(), joined, totals.label) for each in endpoints]
            totals.joined(made)
            return made

        factory = PickerFactory(self.config, str(handle.target), runtime.clock.random)
        balancer = Balancer(
            target,
            Surroundings(
                now=runtime.clock.now,
                emit=emit,
                make_subchannels=make_subchannels,
                build_picker=factory,
                vantage=vantage,
                service=handle.rollout.annotated,
                mesh_present=lambda: runtime.mesh_present if detects else "",
                strict=self.strict,
                left=lambda subchannels: totals.left(subchannels, runtime.clock.now()),
                closed=totals.end,
            ),
        )
        totals.begin(balancer)
        # The control thread must not keep a dropped Mesh alive through its handles.
        tell, tell_joined = weakref.WeakMethod(removed), weakref.WeakMethod(joined)

        def gone(subchannel: Subchannel) -> None:
            if (callback := tell()) is not None:
                callback(subchannel)

        def came(joined: tuple[Subchannel, ...], peers: tuple[Subchannel, ...], members: int) -> None:
            if (callback := tell_joined()) is not None:
                callback(joined, peers, members)

        balancer.on_removed(gone)
        balancer.on_joined(came)
        if seed is not None:
            balancer.recall(seed)
        watch = self._watch(runtime, balancer)
        self._watches.append(watch)
        runtime.control.call(runtime.start_watch, watch, detects)
        return Live(
            balancer,
            balancer.cell,
            watch,
            runtime.clock.now,
            runtime.control.call,
            factory,
        )

    def _watch(self, runtime: process.ProcessRuntime, balancer: Balancer) -> TargetWatch:
        # Decision D12: a Mesh is explicit use, so a kubeconfig may be read; a setting of that name wins.
        tables = {
            **self.config.discovery,
            "k8s": {"allow_kubeconfig": True, **self.config.discovery.get("k8s", {})},
        }
        policy, builders = self.policy, _Builders(self._resolvers)

        def resolver(scheme: str) -> Resolver:
            builder = builders(scheme)
            return runtime.resolver(builder, tables.get(builder.schemes[0], {}), policy)

        return TargetWatch(
            balancer,
            resolver=resolver,
            defaults=self.defaults,
            lookup=self._lookup(runtime),
            spawn=lambda coroutine, name: runtime.control.spawn(coroutine, name=name),
            sleep=asyncio.sleep,
            sync_timeout=self.config.sync_timeout,
            policy=self.policy,
        )

    def _lookup(self, runtime: process.ProcessRuntime) -> DnsFallback:
        context = runtime.context(self.config.discovery.get("dns", {}), self.policy)

        async def addresses(host: str) -> tuple[str, ...]:
            return await dns_lookup.addresses(host, context, DNS_TIMEOUT)

        async def srv(name: str) -> tuple[tuple[str, int], ...]:
            return await dns_lookup.srv(name, context, DNS_TIMEOUT)

        return DnsFallback(self.defaults, self.policy, addresses, srv)

    def _decide_again(self) -> None:
        """Our own place became known: targets that stood back for lack of it go on to the pods (control thread)."""
        for handle in self.handles:
            live = handle.live
            # Under strict, standing back is an error.
            if live is not None and live.balancer.way in (Way.SERVICE, Way.ERROR):
                live.balancer.decide()

    def _builder(self, scheme: str) -> ResolverBuilder:
        return _Builders(self._resolvers)(scheme)

    def _parse_settings(self, settings: TargetSettings) -> None:
        picker_builder(settings.picker).parse_config(settings.settings, f"{settings.where}: ")


def _check_kind(config: object) -> None:
    if not isinstance(config, Config):
        reason = f"takes what meshlib.load_config() makes, not {type(config).__name__}"
        raise ConfigError(
            "Mesh(config=)", reason, "settings in code: Mesh(config=meshlib.load_config({...}))"
        )


async def _first_found(
    lookup: DnsFallback, candidates: Sequence[Target], tell: Callable[[Target | None], None]
) -> None:
    for target in candidates:
        try:
            found = await lookup(target)
        except (OSError, TimeoutError, DiscoveryError):
            break  # the resolver would not go on either; asked again when the negative answer has expired
        if found:
            tell(target)
            return
    tell(None)


class _Builders:
    """Resolver builders by scheme: those given in code, then the registry."""

    def __init__(self, given: Mapping[str, ResolverBuilder]) -> None:
        self._given = given

    def __call__(self, scheme: str) -> ResolverBuilder:
        stand_ins = under_test.stand_ins
        standing_in = stand_ins.builder(scheme) if stand_ins is not None else None
        return self._given.get(scheme) or standing_in or resolver_builder(scheme)
