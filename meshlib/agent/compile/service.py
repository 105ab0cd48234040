"""One Service of one family: its frontends, and what is worth telling a person about it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from meshlib.agent.compile.context import Context
from meshlib.agent.compile.ranges import source_ranges
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Hairpin,
    HealthPort,
    Masquerade,
    Note,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.settings import SCHEDULERS
from meshlib.errors import DataError
from meshlib.model.address import canonical
from meshlib.model.address import family as family_of
from meshlib.model.cluster import ServiceFacts
from meshlib.model.decode_service import PROXY_LABEL
from meshlib.model.eligibility import eligible_by_path, local_only
from meshlib.model.endpoint import EndpointSet, Verdict
from meshlib.model.service import (
    KERNEL_AFFINITY,
    KERNEL_SCHEDULER,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)
from meshlib.model.vantage import Path

#: Types that have a virtual address.
_SERVED = frozenset({ServiceType.CLUSTER_IP, ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER})
_NODE_PORTS = frozenset({ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER})
_REJECT = Route(Action.REJECT)
_DROP = Route(Action.DROP)
#: Later than every real age.
_AGELESS = (True, 0.0)


@dataclass(frozen=True, slots=True)
class Part:
    """What one Service adds to Desired. ``frontends``: no key twice. ``age``: smaller is older, unknown is youngest."""

    frontends: tuple[Frontend, ...] = ()
    hairpins: frozenset[Hairpin] = frozenset()
    health: HealthPort | None = None
    notes: tuple[Note, ...] = ()
    age: tuple[bool, float] = _AGELESS


NOTHING = Part()


def compile_service(facts: ServiceFacts, context: Context) -> Part:
    """Everything that follows from one Service and its slices, on this node, in this family."""
    service = facts.service
    if service is None or service.type not in _SERVED or not _ours(service, context):
        return NOTHING
    cluster_ip = next((ip for ip in service.cluster_ips if family_of(ip) == context.family), "")
    if not cluster_ip:
        return NOTHING
    return _Compilation(service, facts, context, cluster_ip).part()


def _ours(service: Service, context: Context) -> bool:
    wanted = context.settings.service_proxy_name
    if wanted:
        return service.proxy_name == wanted
    # The label counts, whatever its value: another proxy has the Service.
    return not any(name == PROXY_LABEL for name, _ in service.labels)


@dataclass(frozen=True, slots=True)
class _Address:
    kind: FrontendKind
    text: str


class _Compilation:
    """One run; keeps the notes."""

    def __init__(self, service: Service, facts: ServiceFacts, context: Context, cluster_ip: str) -> None:
        self.service = service
        self.slices = facts.slices
        self.context = context
        self.cluster_ip = cluster_ip
        self.notes: list[Note] = []
        self.external_local = local_only(service, Path.EXTERNAL)

    def part(self) -> Part:
        service, node = self.service, self.context.vantage.node
        addresses = list(self._addresses())
        scheduler, exact = self._scheduler(), self._exact()
        ranges = self._ranges()
        frontends: dict[FrontendKey, Frontend] = {}
        hairpins: set[Hairpin] = set()
        healthy: set[str] = set()
        for port in service.ports:
            found = eligible_by_path(service, port, self.slices, self.context.vantage, Path)
            routes = _routes(found)
            for kind, key in self._keys(port, addresses):
                if key in frontends:
                    continue  # one address in two fields of the Service: the first, stricter one counts
                inside = kind is FrontendKind.CLUSTER_IP
                frontends[key] = Frontend(
                    key=key,
                    kind=kind,
                    owner=PortKey(service.key, port.name, port.protocol),
                    route=routes[Path.INTERNAL if inside else Path.EXTERNAL],
                    inside=None if inside or not self.external_local else routes[Path.SHORT_CIRCUIT],
                    masquerade=self._masquerade(kind),
                    affinity_seconds=service.session_affinity_seconds,
                    scheduler=scheduler,
                    exact_affinity=exact,
                    source_ranges=ranges if kind is FrontendKind.LOAD_BALANCER else None,
                )
            # Paths that are alike share their answer, and there is nothing to be learned from it twice.
            for answer in {id(each): each for each in found.values()}.values() if node else ():
                for each in answer.endpoints:
                    if each.node == node:
                        hairpins.add(Hairpin(each.address, port.protocol, each.port))
            external = found[Path.EXTERNAL]
            if service.health_check_node_port and not external.terminating_fallback:
                healthy.update(each.address for each in external.endpoints)
        self._foreign_slices()
        return Part(
            tuple(frontends.values()),
            frozenset(hairpins) if hairpins else NOTHING.hairpins,  # thousands of empty ones take megabytes
            self._health(len(healthy)),
            tuple(dict.fromkeys(self.notes)),
            _age(service.created),
        )

    def _keys(
        self, port: ServicePort, addresses: list[_Address]
    ) -> Iterator[tuple[FrontendKind, FrontendKey]]:
        for address in addresses:
            yield address.kind, FrontendKey(port.protocol, address.text, port.port)
        if port.node_port and self.service.type in _NODE_PORTS:
            yield FrontendKind.NODE_PORT, FrontendKey(port.protocol, "", port.node_port)

    def _note(self, reason: str, text: str) -> None:
        self.notes.append(Note(self.service.key, reason, text))

    # -- addresses -------------------------------------------------------------------------------------------------

    def _addresses(self) -> Iterator[_Address]:
        """In the order in which they win where two fields name the same one."""
        rules, service = self.context.rules, self.service
        reason = rules.cluster_ip_refusal(self.cluster_ip)
        if reason:
            self._note("refused-address", f"ClusterIP {self.cluster_ip} {reason}")
        else:
            yield _Address(FrontendKind.CLUSTER_IP, self.cluster_ip)
        if service.type is ServiceType.LOAD_BALANCER:
            for text in service.load_balancer_ips:
                yield from self._claimed(FrontendKind.LOAD_BALANCER, text, "load-balancer address")
        for text in service.external_ips:
            yield from self._claimed(FrontendKind.EXTERNAL_IP, text, "external IP")

    def _claimed(self, kind: FrontendKind, text: str, what: str) -> Iterator[_Address]:
        try:
            address = canonical(text)
        except DataError as error:
            self._note("refused-address", f"{what} {text!r:.80} {error.reason}")
            return
        if family_of(address) != self.context.family:
            self._other_family(f"{what} {address}", family_of(address))
            return
        reason = self.context.rules.refusal(address, external=kind is FrontendKind.EXTERNAL_IP)
        if reason:
            self._note("refused-address", f"{what} {address} {reason}")
        else:
            yield _Address(kind, address)

    def _other_family(self, what: str, family: int) -> None:
        """Worth a word only where the Service has nothing in that family: else it is served there."""
        if not any(family_of(ip) == family for ip in self.service.cluster_ips):
            self._note(
                "other-family", f"{what} is IPv{family}, in which the Service has no ClusterIP: ignored"
            )

    def _foreign_slices(self) -> None:
        for slice_ in self.slices:
            if slice_.family != self.context.family and slice_.endpoints:
                self._other_family(f"EndpointSlice {slice_.name}", slice_.family)

    def _ranges(self) -> tuple[str, ...] | None:
        service = self.service
        if service.type is not ServiceType.LOAD_BALANCER:
            return None
        found = source_ranges(
            service.source_ranges, self.context.family, self.context.settings.strict_source_ranges
        )
        for text in found.bad:
            self._note("source-range", f"loadBalancerSourceRanges: {text!r:.80} is not a network: ignored")
        if found.only_other_family:
            effect = "nobody is let in" if found.allowed == () else "everybody is let in"
            self._note(
                "source-range",
                f"loadBalancerSourceRanges has none of IPv{self.context.family}: {effect} there",
            )
        return found.allowed

    # -- attributes ------------------------------------------------------------------------------------------------

    def _masquerade(self, kind: FrontendKind) -> Masquerade:
        if kind is FrontendKind.CLUSTER_IP:
            return Masquerade.ALWAYS if self.context.settings.masquerade_all else Masquerade.OFF_NODE
        return Masquerade.NEVER if self.external_local else Masquerade.ALWAYS

    def _annotation(self, name: str) -> str:
        return next((text for key, text in self.service.annotations if key == name), "")

    def _scheduler(self) -> str:
        asked = self._annotation(KERNEL_SCHEDULER)
        if asked and asked not in SCHEDULERS:
            self._note("scheduler", f"annotation {KERNEL_SCHEDULER}: {asked!r:.80} is unknown: ignored")
            asked = ""
        return asked or self.context.settings.scheduler

    def _exact(self) -> bool:
        asked = self._annotation(KERNEL_AFFINITY)
        if asked not in ("", "exact", "persistent"):
            self._note("affinity", f"annotation {KERNEL_AFFINITY}: {asked!r:.80} is unknown: ignored")
            asked = ""
        exact = (asked or self.context.settings.affinity) == "exact"
        return exact and self.service.session_affinity_seconds > 0

    def _health(self, local: int) -> HealthPort | None:
        service = self.service
        wanted = (
            service.type is ServiceType.LOAD_BALANCER
            and service.external_traffic_policy is TrafficPolicy.LOCAL
            and service.health_check_node_port
        )
        return HealthPort(service.key, service.health_check_node_port, local) if wanted else None


def _routes(found: dict[Path, EndpointSet]) -> dict[Path, Route]:
    """One Route per different answer: the many frontends of a port share it."""
    by_answer: dict[int, Route] = {}
    routes: dict[Path, Route] = {}
    for path, answer in found.items():
        route = by_answer.get(id(answer))
        if route is None:
            route = by_answer[id(answer)] = _route(answer)
        routes[path] = route
    return routes


def _route(answer: EndpointSet) -> Route:
    match answer.verdict:
        case Verdict.OK:
            # kube-proxy's weight for all: shares are a matter of the clients' policies.
            targets = [Target(each.address, each.port) for each in answer.endpoints]
            return Route(Action.FORWARD, tuple(targets))
        case Verdict.NO_ENDPOINTS:
            return _REJECT
        case Verdict.NO_LOCAL_ENDPOINTS:
            return _DROP


def _age(created: str) -> tuple[bool, float]:
    if not created:
        return _AGELESS
    try:
        when = datetime.fromisoformat(created)
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return _AGELESS
    # Go writes "no time" as the year 1.
    return (False, seconds) if seconds > 0 else _AGELESS
