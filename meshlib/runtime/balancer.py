"""Balancer: turns the Updates of one target into the State that callers see.

Runs on the control thread only (``cell`` is what everybody reads). It does no IO: the watch feeds it Updates, the
answers of the DNS fall-back and the passing of time, and it decides which of four ways calls take:

* ``pods``: the eligible endpoints, picked in process;
* ``service``: the Service's own address, when the pods cannot or must not be dialled from here (decision D3);
* ``dns``: what the bare client would have dialled, while nothing is known;
* an error, when the answer is known to be no.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from meshlib.errors import (
    NoEndpoints,
    NoLocalEndpoints,
    NotSynced,
    ResolveError,
    ServiceNotFound,
    UnknownPort,
)
from meshlib.model.eligibility import (
    Explained,
    SliceUnion,
    explain,
    explain_each,
    needs_location,
    with_hostname,
)
from meshlib.model.endpoint import Endpoint, EndpointSet, Verdict
from meshlib.model.events import EndpointsChanged, EventSink, FallbackEnded, FellBack
from meshlib.model.service import Service, ServicePort, resolve_port
from meshlib.model.slices import EndpointSlice
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure, Snapshot, Update
from meshlib.model.vantage import Path, VantagePoint
from meshlib.pickers.base import Picker
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.cell import Cell, State

#: Told of endpoints that join a set: (these, the members before the change, how many there are now).
JoinedCallback = Callable[[tuple[Subchannel, ...], tuple[Subchannel, ...], int], None]


class Way(Enum):
    """Which way calls take now."""

    UNKNOWN = "unknown"
    PODS = "pods"
    SERVICE = "service-address"
    DNS = "dns"
    ERROR = "error"


#: Builds a picker: (subchannels, annotations of the Service, session affinity seconds) -> Picker.
PickerFactory = Callable[[Sequence[Subchannel], Service | None, Picker | None], Picker]


@dataclass(slots=True)
class Surroundings:
    """What a Balancer is given. ``vantage`` may learn from the slices; ``mesh_present`` names a sidecar or is empty."""

    now: Callable[[], float]
    emit: EventSink
    make_subchannels: Callable[[Sequence[Endpoint], float], list[Subchannel]]
    build_picker: PickerFactory
    vantage: Callable[[Sequence[EndpointSlice]], VantagePoint]
    #: told what discovery says about the Service, each time; None: there is none
    service: Callable[[Service | None], None] = field(default=lambda service: None)
    mesh_present: Callable[[], str] = field(default=lambda: "")
    strict: bool = False
    #: Told of Subchannels that are picked no more, after those who use them were.
    left: Callable[[Iterable[Subchannel]], None] = field(default=lambda subchannels: None)
    closed: Callable[[Balancer], None] = field(default=lambda balancer: None)


@dataclass(frozen=True, slots=True)
class Known:
    """What a forked child takes over: the last good facts, which target they answer, and when they came."""

    snapshot: Snapshot
    asked: Target
    updated_at: float


class Balancer:
    """One target of one Mesh. See the module for who may call what."""

    def __init__(self, target: Target, around: Surroundings) -> None:
        self.target = target
        self.label = str(target)
        self.cell = Cell()
        self.way = Way.UNKNOWN
        self.reason = ""
        self.snapshot: Snapshot | None = None
        self.asked = target  #: what the snapshot answers: the target, or where an ExternalName led to
        self.set = EndpointSet()
        self.last_error: Exception | None = None
        self.updated_at = 0.0
        self.dns_picker: Picker | None = None  #: ready for callers whose own bound ends before the common one
        self._around = around
        self._subchannels: dict[tuple[str, int, str], Subchannel] = {}
        self._dns: tuple[Endpoint, ...] = ()
        self._beside: dict[tuple[str, int, str], Subchannel] = {}  #: what ``dns_picker`` picks from
        self._union = SliceUnion()  #: keeps the join of slices that did not change
        self._waiting_over = False
        self._hopeless = False  #: discovery said that waiting for it is of no use
        self._dns_spoke = (
            target.scheme != "k8s"
        )  #: only for Services does the name lead to what discovery balances
        self._absent = False  #: the source said that there is no such Service
        self._refused: tuple[Endpoint, ...] | None = None  #: the set that refused every connection
        self._removed: Callable[[Subchannel], None] = _nobody
        self._joined: JoinedCallback = _no_joiner

    # -- facts in ------------------------------------------------------------------------------------------------

    def on_removed(self, callback: Callable[[Subchannel], None]) -> None:
        self._removed = callback

    def on_joined(self, callback: JoinedCallback) -> None:
        self._joined = callback

    @property
    def known(self) -> Known | None:
        snapshot = self.snapshot
        return Known(snapshot, self.asked, self.updated_at) if snapshot is not None else None

    def recall(self, known: Known) -> None:
        """Begin with what another process knew."""
        self.apply(known.snapshot, known.asked)
        self.updated_at = known.updated_at

    def apply(self, update: Update, asked: Target | None = None) -> None:
        """An Update of the resolver. ``asked``: the target that it answers, when an ExternalName led to another one."""
        if not isinstance(update, Failure):  # what is known does not become younger because a question failed
            self.updated_at = self._around.now()
        if isinstance(update, Snapshot):
            self._absent = False
            self.snapshot = update
            self.asked = asked or self.target
            self.last_error = None
            self._around.service(update.service)
        elif isinstance(update, Failure):
            self.last_error = update.error
            if not self.wants_dns:
                return  # keep the last good answer, for ever: a set, or that there is no such Service
            self._hopeless = update.hopeless
            if self._hopeless and self._dns_spoke:
                self._waiting_over = True
        else:
            self._absent = True
            self.snapshot = None
            self._refused = None
            self.last_error = None
            self._around.service(None)
            self._fail(lambda: ServiceNotFound(f"{self.label}: {_reason(update)}"), _reason(update))
            return
        self.decide()

    def dns_answered(self, endpoints: tuple[Endpoint, ...]) -> None:
        """What the bare client would dial; empty: the name does not resolve."""
        self._dns = endpoints
        self._dns_spoke = True
        if self.wants_dns:
            self._waiting_over = self._waiting_over or self._hopeless
            if self._waiting_over:
                self.decide()
            else:
                self._offer_dns(endpoints)

    def stop_waiting(self) -> None:
        """The bound of decision D3 has passed without knowledge."""
        self._waiting_over = True
        if self.wants_dns:
            self.decide()

    def pods_refused(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Each of ``endpoints`` refused its connection and the Service address worked: stay with it until the set
        changes, which it may have done while that try was under way."""
        if self.snapshot is not None and endpoints == self.set.endpoints:
            self._refused = endpoints
            self.decide()

    def close(self) -> None:
        """The target is used no more. What was published stays."""
        self._around.left((*self._subchannels.values(), *self._beside.values()))
        self._around.closed(self)

    def try_pods_again(self) -> None:
        """End the stay at the Service address; the next total refusal starts it again."""
        if self._refused is not None:
            self._refused = None
            self.decide()

    # -- the decision --------------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Choose the way from all that is known, and publish."""
        snapshot = self.snapshot
        if snapshot is None:
            self._without_knowledge()
            return
        service = snapshot.service
        try:
            port = resolve_port(service, self.asked.port, by_host=self.asked.by_host)
        except UnknownPort as error:
            message = f"{self.label}: {error}"
            self._fail(lambda: UnknownPort(message), str(error))
            return
        vantage = self._around.vantage(snapshot.slices)
        self.set = self._union.eligible(service, port, snapshot.slices, vantage, Path.INTERNAL)
        if self.asked.hostname:
            self.set = with_hostname(self.set, self.asked.hostname)
        endpoints = self.set.endpoints
        if self._refused is not None and self._refused != self.set.endpoints:
            self._refused = None
        if (why := self._stand_back(snapshot, vantage)) and (
            address := self.service_endpoint(port)
        ) is not None:
            if self._around.strict:
                self._fail(lambda: NotSynced(f"{self.label}: {why} (strict)"), why)
            else:
                self._take(Way.SERVICE, why, (address,), service)
        elif endpoints:
            self._take(Way.PODS, "", endpoints, service)
        else:
            self._empty(snapshot)

    @property
    def wants_dns(self) -> bool:
        """Whether the fall-back is still of use: nothing is known, not even that there is no such Service."""
        return self.snapshot is None and not self._absent

    @property
    def has_dns(self) -> bool:
        """Whether the fall-back has an answer; a later look-up that fails keeps it."""
        return bool(self._dns)

    def service_endpoint(self, port: ServicePort | None = None) -> Endpoint | None:
        """The Service's own address (clusterIP:port) in a family we can dial; None: it has none."""
        if self.snapshot is None:
            return None
        service = self.snapshot.service
        if port is None:
            try:
                port = resolve_port(service, self.asked.port, by_host=self.asked.by_host)
            except UnknownPort:
                return None
        families = self._around.vantage(()).families
        for address in service.cluster_ips:
            endpoint = Endpoint(address=address, port=port.port, name=f"Service {service.key}")
            if endpoint.family in families:
                return endpoint
        return None

    def subchannel_for(self, endpoint: Endpoint) -> Subchannel:
        """A Subchannel outside the set, for the one try through the Service address."""
        known = self._subchannels.get(endpoint.identity)
        if known is not None:
            return known
        made = self._around.make_subchannels((endpoint,), -math.inf)
        self._around.left(made)  # whoever asked uses it once
        return made[0]

    @property
    def subchannels(self) -> tuple[Subchannel, ...]:
        return tuple(self._subchannels.values())

    def explain(self) -> tuple[Explained, ...]:
        """Every entry of the last good slices, eligible or not, with the reason; for ``meshlib resolve``. Any thread.

        Sorted. Empty while nothing is known, and when the Service does not list the port.
        """
        return tuple(self._explained(explain))

    def explain_each(self) -> Iterator[Explained]:
        """The same, one after another in the order of the slices."""
        return iter(self._explained(explain_each))

    def _explained(self, explainer: Callable[..., Iterable[Explained]]) -> Iterable[Explained]:
        snapshot = self.snapshot
        if snapshot is None:
            return ()
        try:
            port = resolve_port(snapshot.service, self.asked.port, by_host=self.asked.by_host)
        except UnknownPort:
            return ()  # the published state carries the error
        vantage = self._around.vantage(())
        return explainer(snapshot.service, port, snapshot.slices, vantage, Path.INTERNAL)

    def _stand_back(self, snapshot: Snapshot, vantage: VantagePoint) -> str:
        """Why the pods must not be dialled from here; empty: they may."""
        if mesh := self._around.mesh_present():
            return f"{mesh} handles this pod's traffic"
        if self._refused is not None:
            return "every endpoint refused its connection (mTLS-only pods, or a NetworkPolicy that rejects)"
        service = snapshot.service
        if service.proxy_name:
            return f"the Service is served by the proxy {service.proxy_name!r} (label service-proxy-name)"
        if needs_location(service, snapshot.slices if self._union.has_hints else (), vantage):
            return "a Local policy or topology hints, and our own place is unknown: set NODE_NAME and MESHLIB_ZONE"
        return ""

    def _without_knowledge(self) -> None:
        if self._absent or not self._waiting_over:
            return
        if self._dns and not self._around.strict:
            self._take(Way.DNS, f"discovery gives nothing: {_brief(self.last_error)}", self._dns, None)
        else:
            self._fail(self.not_synced, f"not synced: {_brief(self.last_error)}")

    def not_synced(self) -> Exception:
        """A fresh NotSynced that carries the discovery error."""
        detail = f": {self.last_error}" if self.last_error else " within the bound, and DNS gave no address"
        error = NotSynced(f"{self.label}: nothing known from discovery{detail}")
        error.__cause__ = self.last_error
        return error

    def _empty(self, snapshot: Snapshot) -> None:
        kind: type[ResolveError] = NoEndpoints
        where = f"{self.label}: {snapshot.service.key} has no endpoint that may receive traffic"
        if self.set.verdict is Verdict.NO_LOCAL_ENDPOINTS:
            kind, where = (
                NoLocalEndpoints,
                f"{self.label}: internalTrafficPolicy is Local and no endpoint is on this node",
            )
        elif self.asked.hostname:
            where = f"{self.label}: no ready endpoint is called {self.asked.hostname!r}"
        source = snapshot.source
        self._fail(lambda: kind(f"{where} (source: {source})"), where)

    # -- publishing ----------------------------------------------------------------------------------------------

    def _take(self, way: Way, reason: str, endpoints: tuple[Endpoint, ...], service: Service | None) -> None:
        before, previous = self.way, self.reason
        self.way, self.reason = way, reason
        peers = self._subchannels
        added, removed = self._sync(endpoints)
        state = self.cell.state
        old = state.picker if state.picker is not None else None
        self.cell.publish(State(picker=self._around.build_picker(self.subchannels, service, old)))
        if added and peers:  # before those that leave are told to: their connections are a measure, too
            now = self._subchannels
            self._joined(tuple([now[e.identity] for e in added]), tuple(peers.values()), len(now))
        self._leave(removed)
        self._end_beside()
        self._report_way(before, previous)
        if added or removed or before is not way:
            self._report(added, tuple(s.endpoint for s in removed))

    def _fail(self, make: Callable[[], Exception], reason: str) -> None:
        before, previous = self.way, self.reason
        self.way, self.reason = Way.ERROR, reason
        _, removed = self._sync(())
        self.cell.publish(State(error=make))
        self._leave(removed)
        self._end_beside()
        if removed or before is not Way.ERROR or previous != reason:
            self._report((), tuple(s.endpoint for s in removed))

    def _sync(self, endpoints: tuple[Endpoint, ...]) -> tuple[tuple[Endpoint, ...], tuple[Subchannel, ...]]:
        """Bring the Subchannels in line; what stays keeps its state (decision D4)."""
        known = self._subchannels
        joined_at = self._around.now() if known else -math.inf  # nobody ramps when all are new
        # This runs for every endpoint at every change: comprehensions, and Endpoint.identity without the call.
        wanted = {(e.address, e.port, e.uid): e for e in endpoints}
        added = tuple([e for identity, e in wanted.items() if identity not in known])
        beside = self._beside
        missing = tuple([e for e in added if e.identity not in beside]) if beside else added
        fresh = iter(self._around.make_subchannels(missing, joined_at))
        subchannels = {
            identity: known.get(identity) or beside.get(identity) or next(fresh) for identity in wanted
        }
        for endpoint, subchannel in zip(wanted.values(), subchannels.values(), strict=True):
            if subchannel.endpoint is not endpoint:
                subchannel.endpoint = endpoint
        removed = tuple([subchannel for identity, subchannel in known.items() if identity not in wanted])
        self._subchannels = subchannels
        return added, removed

    def _leave(self, subchannels: Sequence[Subchannel]) -> None:
        for gone in subchannels:
            gone.removed = True
            self._removed(gone)
        if subchannels:
            self._around.left(subchannels)

    def _offer_dns(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Make ``dns_picker``, while the common bound has not passed. Its Subchannels become those of the set if that
        turns out to be the DNS answer, else they leave like any other."""
        wanted = {endpoint.identity: endpoint for endpoint in endpoints}
        known = self._beside
        missing = [endpoint for identity, endpoint in wanted.items() if identity not in known]
        fresh = iter(self._around.make_subchannels(missing, -math.inf))
        self._beside = {identity: known.get(identity) or next(fresh) for identity in wanted}
        offered = tuple(self._beside.values())
        self.dns_picker = self._around.build_picker(offered, None, None) if offered else None
        self._leave([subchannel for identity, subchannel in known.items() if identity not in wanted])

    def _end_beside(self) -> None:
        """A state was published: it is for everybody, and what it does not pick from has left."""
        if self._beside:
            beside, self._beside, self.dns_picker = self._beside, {}, None
            self._leave([s for identity, s in beside.items() if self._subchannels.get(identity) is not s])

    def _report_way(self, before: Way, previous_reason: str) -> None:
        fallen = self.way in (Way.SERVICE, Way.DNS)
        if fallen and (before is not self.way or previous_reason != self.reason):
            self._around.emit(FellBack(self.label, self.way.value, self.reason))
        elif self.way is Way.PODS and before in (Way.SERVICE, Way.DNS):
            self._around.emit(FallbackEnded(self.label))

    def _report(self, added: tuple[Endpoint, ...], removed: tuple[Endpoint, ...]) -> None:
        source = self.snapshot.source if self.snapshot is not None else self.way.value
        total = len(self._subchannels)
        self._around.emit(EndpointsChanged(self.label, added, removed, total, source, self.reason))


def _nobody(subchannel: Subchannel) -> None:
    """The removed-callback before a client registers one."""


def _no_joiner(joined: tuple[Subchannel, ...], peers: tuple[Subchannel, ...], members: int) -> None:
    """The joined-callback before a client registers one."""


def _reason(update: Update) -> str:
    return update.reason if isinstance(update, DoesNotExist) else ""


def _brief(error: Exception | None) -> str:
    """One line for a reason; the whole text, with its fix, is in the error itself and was reported by its source."""
    return str(error).partition("\n")[0] if error is not None else "no answer yet"
