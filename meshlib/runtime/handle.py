"""TargetHandle: one target of one Mesh, shared by all clients that use it; Live: what stands behind it in a process."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from meshlib.errors import MeshClosed, NoEndpoints, NotSynced, PickTimeout
from meshlib.model.events import SourceFailed
from meshlib.model.target import Target
from meshlib.observe.catalogue import ERRORS, PICKS, PICKS_QUEUED, error_type, target_label
from meshlib.pickers.base import Picker, PickInfo
from meshlib.pickers.hash_key import HashKeySource, HashKeySpec
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.balancer import Balancer, JoinedCallback, Known, Way
from meshlib.runtime.cell import Cell, State
from meshlib.runtime.factory import PickerFactory, client_identity
from meshlib.runtime.lease import Lease, ServiceLease
from meshlib.runtime.observing import TALLY, emit
from meshlib.runtime.picking import Pick
from meshlib.runtime.under_test import under_test
from meshlib.runtime.watch import TargetWatch

if TYPE_CHECKING:
    from meshlib.runtime.mesh import Mesh

_NOTHING: frozenset[Subchannel] = frozenset()
#: Part of a caller's own timeout that may be spent on waiting for the first knowledge: the rest is left for connecting.
WAIT_SHARE = 0.5
#: In tests what stands in for discovery knows at once, so only a slow machine makes a call wait, seconds.
STAND_IN_PATIENCE = 60.0


class KeyOf(Protocol):
    """Finds the hash key of a request. ``always``: also when no setting asks for one."""

    always: bool

    def __call__(self, about: Any, /) -> str | bytes | None: ...


@dataclass(slots=True, frozen=True)
class Live:
    """What belongs to one process: forgotten after fork, with the last snapshot kept as a seed."""

    balancer: Balancer
    cell: Cell
    watch: TargetWatch
    now: Callable[[], float]
    call: Callable[..., None]
    annotated: PickerFactory


class TargetHandle:
    """Cheap to hold, made by ``Mesh.target``. Every method may be called from any thread, and after fork.

    The acquire methods raise children of ``errors.ResolveError``: NoEndpoints, NoLocalEndpoints, ServiceNotFound and
    UnknownPort at once; NotSynced and PickTimeout after the bounded wait; MeshClosed when the Mesh was closed.

    ``authority`` is the logical host for TLS, ``Host`` and ``:authority``; ``hash_key`` says where clients find the key
    for hash policies.
    """

    def __init__(self, mesh: Mesh, target: Target, authority: str, hash_key: HashKeySpec | None) -> None:
        self.target = target
        self.authority = authority
        self._label = target_label(str(target))
        self._hash_key = hash_key
        self.mesh = mesh
        self.rollout = mesh.rollout.target(target)
        self.rollout.used_by(self)
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._seed: Known | None = None
        self._listeners: tuple[weakref.WeakMethod[Callable[[Subchannel], None]], ...] = ()
        self._joiners: tuple[weakref.WeakMethod[JoinedCallback], ...] = ()  #: listeners for those that join
        self._beside: Subchannel | None = None  #: the Service's own address, for what the roll-out holds back

    # -- picking -------------------------------------------------------------------------------------------------

    def try_acquire(
        self, hash_key: str | bytes | None = None, exclude: Set[Subchannel] = _NOTHING
    ) -> Lease | None:
        """Pick now, never blocking. None: nothing is known yet (wait with ``acquire``), or all were excluded."""
        live = self._live or self._start()
        state = live.cell.state
        if state.picker is None:
            if state.error is not None:
                raise self._failed(state.error())
            return None
        return self._pick(live, state.picker, hash_key, exclude)

    def choose(self, now: float, key: KeyOf, about: Any) -> Subchannel | None:
        """``try_acquire`` for calls too quick to afford a Lease: the Subchannel, with the request counted in.

        The caller ends it with the Subchannel's ``finish``, or wraps it in a Lease that began at ``now`` (seconds of
        ``Clock.now``). ``key(about)`` is only asked where a hash key is wanted. None: ``try_acquire`` says why.
        """
        live = self._live
        if live is None:
            try:
                live = self._start()
            except NotSynced:
                return None
        picker = live.cell.state.picker
        if picker is None:
            return None
        hash_key = None
        if key.always or self._hash_key is not None or live.annotated.annotated_hash_key is not None:
            hash_key = key(about)
        subchannel = picker.pick(PickInfo(now, hash_key))
        if subchannel is not None and not picker.counts:
            with subchannel.lock:
                subchannel.inflight += 1
        return subchannel

    def acquire(
        self,
        timeout: float | None = None,
        hash_key: str | bytes | None = None,
        exclude: Set[Subchannel] = _NOTHING,
    ) -> Lease:
        """Pick, waiting for the first knowledge: at most the Mesh's ``sync_timeout`` and half of ``timeout`` (seconds).

        Blocks the calling thread; on an event loop use ``acquire_async``.
        """
        live = self._live or self._start()
        state = live.cell.state
        if not state.settled:
            state = live.cell.wait(state, self._bound(timeout))
            TALLY.add(PICKS_QUEUED, self._label)
        return self._after_wait(live, state, hash_key, exclude)

    async def acquire_async(
        self,
        timeout: float | None = None,
        hash_key: str | bytes | None = None,
        exclude: Set[Subchannel] = _NOTHING,
    ) -> Lease:
        """``acquire`` for coroutines of any running loop."""
        live = self._live or self._start()
        state = live.cell.state
        if not state.settled:
            state = await live.cell.wait_async(state, self._bound(timeout))
            TALLY.add(PICKS_QUEUED, self._label)
        return self._after_wait(live, state, hash_key, exclude)

    def pick(self, *, hash_key: str | bytes | None = None, timeout: float | None = None) -> Pick:
        """``with handle.pick() as endpoint:`` or ``async with``; in flight until the block ends.

        The plain form raises MeshError where it would have to block a running event loop. Without ``hash_key``, a
        setting ``client`` still applies; the other sources are parts of a request, which only its sender knows.
        """
        if hash_key is None and (spec := self.hash_key) is not None and spec.source is HashKeySource.CLIENT:
            hash_key = client_identity()
        return Pick(self if self.rollout.gate is None else self.explicit, hash_key, timeout)

    @property
    def explicit(self) -> TargetHandle:
        """For clients that were given the target itself, and so have no bare way: picks obey the roll-out."""
        from meshlib.runtime.explicit import ExplicitHandle  # which is one of us

        return ExplicitHandle(self)

    # -- for clients ---------------------------------------------------------------------------------------------

    def wait_for_change(self, timeout: float) -> None:
        """Block until the published state changes, at most ``timeout`` seconds (gRPC's wait_for_ready)."""
        live = self._live or self._start()
        live.cell.wait(live.cell.state, timeout)

    async def wait_for_change_async(self, timeout: float, seen: State | None = None) -> None:
        """``seen``: the state that the caller decided on (default: the one now), so that no news is missed."""
        live = self._live or self._start()
        await live.cell.wait_async(seen or live.cell.state, timeout)

    def all_refused(self) -> Lease | None:
        """A client tells that every endpoint refused its connection: one try through the Service address (D3).

        When that try is answered, calls stay with the Service address until the set of pods changes, for a minute
        at most. None: there is no such address (headless, static, DNS), the Mesh is strict, or it was tried already.
        """
        live = self._live or self._start()
        if self.mesh.strict or live.balancer.way is Way.SERVICE:
            return None
        endpoint = live.balancer.service_endpoint()
        if endpoint is None:
            return None
        refused = live.balancer.set.endpoints
        subchannel = live.balancer.subchannel_for(endpoint)
        subchannel.begin()
        return ServiceLease(
            subchannel, live.now, live.now(), lambda: live.call(live.watch.pods_refused, refused)
        )

    def service_lease(self) -> Lease | None:
        """A lease on the Service's own address, which is no member of the set. None: nothing is known yet, or it has
        none (headless, DNS, static, file)."""
        try:
            live = self._live or self._start()
        except NotSynced:  # as in ``choose``: who goes on to ``try_acquire`` is told why
            return None
        endpoint = live.balancer.service_endpoint()
        if endpoint is None:
            return None
        beside = self._beside
        if beside is None or beside.endpoint != endpoint:
            if beside is not None:
                self._gone(beside)
            beside = self._beside = Subchannel(endpoint, threading.Lock(), target=self._label)
        beside.begin()
        return Lease(beside, live.now, live.now())

    def is_beside(self, subchannels: Set[Subchannel]) -> bool:
        """Whether the one of ``service_lease`` is among them."""
        return self._beside in subchannels

    def leave_service_address(self) -> None:
        """The roll-out holds nothing back any more: idle connections to the Service's own address close."""
        beside, self._beside = self._beside, None
        if beside is not None:
            self._gone(beside)

    def release(self) -> None:
        """The roll-out holds everything back: idle connections to endpoints close, busy ones after their request."""
        live = self._live
        if live is not None:
            for subchannel in live.balancer.subchannels:
                self._gone(subchannel)

    def on_removed(self, callback: Callable[[Subchannel], None]) -> None:
        """Register a bound method, held weakly, for Subchannels that left the set; called on the control thread."""
        with self._lock:
            alive = tuple(ref for ref in self._listeners if ref() is not None)
            self._listeners = (*alive, weakref.WeakMethod(callback))

    def on_joined(self, callback: JoinedCallback) -> None:
        """The same for Subchannels that join a set which others were in already; called before ``on_removed`` is for
        those that leave with the same change."""
        with self._lock:
            alive = tuple(ref for ref in self._joiners if ref() is not None)
            self._joiners = (*alive, weakref.WeakMethod(callback))

    @property
    def hash_key(self) -> HashKeySpec | None:
        """Where clients find the key of hash policies: what is configured, else what the annotation says now."""
        live = self._live
        return self._hash_key or (live.annotated.annotated_hash_key if live is not None else None)

    # -- looking -------------------------------------------------------------------------------------------------

    def try_start(self) -> None:
        """Start the watch without picking, unless the Mesh was closed meanwhile."""
        with contextlib.suppress(MeshClosed):
            self._live or self._start()

    @property
    def state(self) -> State:
        """The published state; starts the watch if need be. Never blocks."""
        return (self._live or self._start()).cell.state

    @property
    def live(self) -> Live | None:
        """What runs for this handle in this process, if it was used already."""
        return self._live

    @property
    def synced(self) -> bool:
        """Whether discovery has spoken: a set, or a known no."""
        balancer = (self._live or self._start()).balancer
        return balancer.snapshot is not None or not balancer.wants_dns

    @property
    def balancer(self) -> Balancer:
        """For ``resolve`` and status pages: read only, values may change while they are read."""
        return (self._live or self._start()).balancer

    def describe(self) -> Mapping[str, Any]:
        """Where the data comes from and how old it is, in the resolver's words."""
        return (self._live or self._start()).watch.describe()

    def status(self) -> dict[str, Any]:
        """A picture for people and tools: the way calls take, its reason, and each endpoint with its counters."""
        live = self._live or self._start()
        balancer = live.balancer
        subchannels = balancer.subchannels
        total = sum(s.requests for s in subchannels)
        snapshot = balancer.snapshot
        return {
            "target": str(self.target),
            "way": balancer.way.value,
            "reason": balancer.reason,
            "error": str(balancer.last_error) if balancer.last_error else "",
            "source": snapshot.source if snapshot else "",
            "version": snapshot.version if snapshot else "",
            "skipped": snapshot.skipped if snapshot else 0,
            "age": live.now() - balancer.updated_at if snapshot else None,
            "stale": snapshot is not None and balancer.last_error is not None,
            "verdict": balancer.set.verdict.value,
            "locality": balancer.set.locality.value,
            "endpoints": [
                {
                    "address": s.endpoint.address,
                    "port": s.endpoint.port,
                    "name": s.endpoint.name,
                    "node": s.endpoint.node,
                    "zone": s.endpoint.zone,
                    "weight": s.endpoint.weight,
                    "inflight": s.inflight,
                    "requests": s.requests,
                    "failures": s.failures,
                    "share": s.requests / total if total else 0.0,
                    "latency": s.ewma if s.ewma >= 0 else None,
                }
                for s in subchannels
            ],
        }

    # -- inside --------------------------------------------------------------------------------------------------

    def _pick(
        self, live: Live, picker: Picker, hash_key: str | bytes | None, exclude: Set[Subchannel]
    ) -> Lease | None:
        now = live.now()
        subchannel = picker.pick(PickInfo(now, hash_key, exclude))
        if subchannel is None:
            if exclude:
                return None
            raise self._failed(NoEndpoints(f"{self.target}: every endpoint has weight 0"))
        if not picker.counts:
            subchannel.begin()
        return Lease(subchannel, live.now, now)

    def _after_wait(
        self, live: Live, state: State, hash_key: str | bytes | None, exclude: Set[Subchannel]
    ) -> Lease:
        picker = state.picker
        if not state.settled and not self.mesh.strict:
            picker = live.balancer.dns_picker
        if picker is None:
            # Once more: the offer of the fall-back ends when a state is published, which may have been just now.
            state = live.cell.state
            if state.error is not None:
                raise self._failed(state.error())
            picker = state.picker
        if picker is None:
            raise self._failed(live.balancer.not_synced())
        lease = self._pick(live, picker, hash_key, exclude)
        if lease is None:
            raise self._failed(PickTimeout(f"{self.target}: all {len(exclude)} endpoints were tried"))
        return lease

    def _failed(self, error: Exception) -> Exception:
        """Count a pick that found nothing, on its way out."""
        TALLY.add(PICKS, self._label, "failed")
        TALLY.add(ERRORS, self._label, error_type(error))
        return error

    def _bound(self, timeout: float | None) -> float:
        if under_test.stand_ins is not None and self.mesh.stand_ins is not None:
            return STAND_IN_PATIENCE
        bound = self.mesh.config.sync_timeout
        return bound if timeout is None else min(bound, max(0.0, timeout) * WAIT_SHARE)

    def _start(self) -> Live:
        with self._lock:
            if self._live is None:
                self._live = self.mesh.start_target(self, self._seed, self._gone, self._came)
                self._seed = None
            return self._live

    def _gone(self, subchannel: Subchannel) -> None:
        for ref in self._listeners:
            callback = ref()
            if callback is None:
                continue
            try:
                callback(subchannel)
            except Exception as error:  # closing a connection may fail; the news is for the other clients too
                emit(SourceFailed(f"connections to {subchannel.endpoint.authority}", error, stale=True))

    def _came(self, joined: tuple[Subchannel, ...], peers: tuple[Subchannel, ...], members: int) -> None:
        for ref in self._joiners:
            callback = ref()
            if callback is None:
                continue
            try:
                callback(joined, peers, members)
            except Exception as error:  # as above
                emit(SourceFailed(f"connections ahead for {self.target}", error, stale=True))

    def stop(self) -> None:
        """Forget the watch; waiters are told. A later use starts it again, unless the Mesh is closed."""
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            live.call(live.watch.close)
            live.cell.publish(State(error=_closed_error(str(self.target))))

    def after_fork(self) -> None:
        """In a forked child: a new lock, and the last snapshot as the seed of a new beginning.

        Requests that the forking thread had under way may end in the child too; another thread may have held the lock
        of their endpoint, so those get a new one as well.
        """
        self._lock = threading.Lock()
        self._beside = None
        live, self._live = self._live, None
        if live is not None:
            self._seed = live.balancer.known
            unheld = threading.Lock()
            for subchannel in live.balancer.subchannels:
                subchannel.lock = unheld

    def __repr__(self) -> str:
        live = self._live
        return f"<TargetHandle {self.target} {live.balancer.way.value if live else 'not started'}>"


def _closed_error(target: str) -> Callable[[], Exception]:
    return lambda: MeshClosed(f"{target}: the Mesh was closed")
