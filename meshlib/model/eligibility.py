"""Eligibility: THE function that says which endpoints may receive new traffic, for client and kernel path.

Semantics of kube-proxy's endpoint categories (KEP-1669 serving-terminating fallback, KEP-2086
internalTrafficPolicy, KEP-2433 and KEP-4444 topology hints), per address family:

- ready endpoints count; serving and terminating ones only when no ready one is left in the set in question;
- hints narrow the ready endpoints to this node, else to this zone, only when *every* ready endpoint carries
  the hint and at least one names this place; they never touch the local set;
- a Local policy takes the endpoints of this node only: none there is its own verdict, and an unknown node has
  none;
- headless Services and sets of names have no virtual address, so neither policies nor hints nor the fallback:
  what is ready.

Liveness, weights and priority tiers are decided by policies, inside the set that is chosen here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from meshlib.model.endpoint import Endpoint, EndpointSet, Locality, Verdict
from meshlib.model.join import Joined, Place, Union, endpoint_of, winners
from meshlib.model.service import Service, ServicePort, ServiceType, TrafficPolicy
from meshlib.model.slices import EndpointSlice
from meshlib.model.vantage import Path, VantagePoint

_DIRECT = frozenset({ServiceType.HEADLESS, ServiceType.NAMES})
_FAMILIES = (4, 6)
_EXTERNAL = frozenset({ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER})
_by_address = attrgetter("address")
_by_port = attrgetter("port")


def eligible(
    service: Service, port: ServicePort, slices: Iterable[EndpointSlice], vantage: VantagePoint, path: Path
) -> EndpointSet:
    """The endpoints that may receive new traffic, or why there are none. Pure; slices in any order.

    ``slices`` are those of the Service. The first family of the Service (in its order, of those that the
    vantage point can dial) that has eligible endpoints gives the whole set.
    """
    return decide(service, [Joined(slice_, port) for slice_ in slices], vantage, path).answer


def eligible_by_path(
    service: Service,
    port: ServicePort,
    slices: Iterable[EndpointSlice],
    vantage: VantagePoint,
    paths: Iterable[Path],
) -> dict[Path, EndpointSet]:
    """``eligible`` for several paths, with one join; paths that the policies treat alike share one answer."""
    joined = [Joined(slice_, port) for slice_ in slices]
    by_policy: dict[bool, EndpointSet] = {}
    found: dict[Path, EndpointSet] = {}
    for path in paths:
        # The path decides nothing but this.
        local = local_only(service, path)
        if local not in by_policy:
            by_policy[local] = decide(service, joined, vantage, path).answer
        found[path] = by_policy[local]
    return found


class SliceUnion:
    """``eligible`` for slices that change one at a time: keeps the join of every slice that stays the same object.

    One per (Service, port); gives the same value as ``eligible`` for the same input. Belongs to one thread.
    """

    __slots__ = ("_joined", "_port", "has_hints")

    def __init__(self) -> None:
        self.has_hints = False  #: whether any endpoint of the last slices carries a topology hint
        self._port: ServicePort | None = None
        self._joined: dict[int, Joined] = {}

    def eligible(
        self,
        service: Service,
        port: ServicePort,
        slices: Iterable[EndpointSlice],
        vantage: VantagePoint,
        path: Path,
    ) -> EndpointSet:
        """See the function of this name."""
        known = self._joined if port == self._port else {}
        joined = []
        for slice_ in slices:
            # A Joined holds its slice, so an id that is found here cannot belong to another, dead object.
            part = known.get(id(slice_))
            joined.append(Joined(slice_, port) if part is None else part)
        self._port, self._joined = port, {id(part.slice): part for part in joined}
        self.has_hints = any(part.has_hints for part in joined)
        return decide(service, joined, vantage, path).answer


@dataclass(frozen=True, slots=True)
class Choice:
    """What one family (or several that are taken together) offers, with the steps that led there."""

    families: tuple[int, ...]
    union: Union
    chosen: Collection[Endpoint]
    verdict: Verdict
    locality: Locality
    fallback: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, and the choices of the families looked at, in order; ``explain`` tells them in words."""

    answer: EndpointSet
    choices: tuple[Choice, ...]
    taken: Choice | None


def decide(service: Service, joined: Sequence[Joined], vantage: VantagePoint, path: Path) -> Decision:
    """Choose a family and its endpoints from joined slices."""
    choices: list[Choice] = []
    if service.type is ServiceType.EXTERNAL_NAME:
        return Decision(EndpointSet(), (), None)
    for group in family_groups(service, vantage):
        parts = [part for part in joined if part.slice.family in group]
        choice = _choose(service, group, Union(parts, vantage.node), vantage, path)
        choices.append(choice)
        if choice.verdict is Verdict.OK:
            return Decision(_answer(choice), tuple(choices), choice)
    # Dropping is said only where an endpoint exists that a Local policy hides; the first family that says so
    # counts.
    taken = next((choice for choice in choices if choice.verdict is Verdict.NO_LOCAL_ENDPOINTS), None)
    return Decision(_answer(taken) if taken else EndpointSet(), tuple(choices), taken)


def family_groups(service: Service, vantage: VantagePoint) -> tuple[tuple[int, ...], ...]:
    """The families to try, in order: the Service's own order as far as this host can dial them.

    One at a time, because the two addresses of a dual-stack pod would give it double weight. A set of names that
    lists no families was written by hand, address by address: there all count, together, whatever routes this host
    has (``[::1]`` works without any).
    """
    if service.type is ServiceType.NAMES and not service.ip_families:
        return (_FAMILIES,)
    order = service.ip_families or vantage.families
    return tuple((family,) for family in order if family in vantage.families)


def _answer(choice: Choice) -> EndpointSet:
    endpoints = list(choice.chosen)
    # Two stable sorts on plain values, because sorting ten thousand strings is several times faster than
    # tuples.
    if len({endpoint.port for endpoint in endpoints}) > 1:
        endpoints.sort(key=_by_port)
    endpoints.sort(key=_by_address)
    return EndpointSet(
        endpoints=tuple(endpoints),
        verdict=choice.verdict,
        locality=choice.locality,
        terminating_fallback=choice.fallback,
    )


def local_only(service: Service, path: Path) -> bool:
    """Whether a Local policy applies on this path; on the short circuit none does."""
    if service.type in _DIRECT:
        return False
    if path is Path.INTERNAL:
        return service.internal_traffic_policy is TrafficPolicy.LOCAL
    if path is Path.EXTERNAL:
        external = service.type in _EXTERNAL or bool(service.external_ips)
        return external and service.external_traffic_policy is TrafficPolicy.LOCAL
    return False


def _choose(
    service: Service, group: tuple[int, ...], union: Union, vantage: VantagePoint, path: Path
) -> Choice:
    everything = union.found.values()
    ready: Collection[Endpoint] = everything if union.all_ready else [e for e in everything if e.ready]
    leaving = [] if union.all_ready else [e for e in everything if e.serving and e.terminating]
    if service.type in _DIRECT:
        return Choice(group, union, ready, _verdict(ready), Locality.ANY, False)
    if local_only(service, path):
        node = vantage.node
        local = [e for e in ready if e.node == node] if node else []
        local_leaving = [e for e in leaving if e.node == node] if node and not local else []
        chosen = local or local_leaving
        verdict = Verdict.OK
        if not chosen:
            verdict = Verdict.NO_LOCAL_ENDPOINTS if ready or leaving else Verdict.NO_ENDPOINTS
        return Choice(group, union, chosen, verdict, Locality.LOCAL_POLICY, bool(local_leaving))
    if not ready:
        return Choice(group, union, leaving, _verdict(leaving), Locality.ANY, bool(leaving))
    hinted = _hinted(ready, union, vantage)
    if hinted is None:
        return Choice(group, union, ready, Verdict.OK, Locality.ANY, False)
    level, near = hinted
    return Choice(group, union, near, Verdict.OK, level, False)


def _verdict(endpoints: Collection[Endpoint]) -> Verdict:
    return Verdict.OK if endpoints else Verdict.NO_ENDPOINTS


def _hinted(
    ready: Collection[Endpoint], union: Union, vantage: VantagePoint
) -> tuple[Locality, list[Endpoint]] | None:
    """The topology level that hints narrow to, with the endpoints they leave; None when hints do not apply."""
    if not union.has_hints:
        return None
    facts = [union.facts[e.address, e.port] for e in ready]
    if vantage.node and all(fact.hint_nodes for fact in facts):
        near = [e for e, fact in zip(ready, facts, strict=True) if vantage.node in fact.hint_nodes]
        if near:
            return Locality.SAME_NODE, near
    if vantage.zone and all(fact.hint_zones for fact in facts):
        near = [e for e, fact in zip(ready, facts, strict=True) if vantage.zone in fact.hint_zones]
        if near:
            return Locality.SAME_ZONE, near
    return None


@dataclass(frozen=True, slots=True)
class Explained:
    """One entry of one slice: whether it may receive traffic, and why.

    ``endpoint.port`` is 0 when the slice lacks the port.
    """

    endpoint: Endpoint
    slice: str
    eligible: bool
    reason: str


def explain(
    service: Service, port: ServicePort, slices: Iterable[EndpointSlice], vantage: VantagePoint, path: Path
) -> tuple[Explained, ...]:
    """Every entry of every slice with the reason in words, sorted by address, port and slice.

    Read from the decision that ``eligible`` takes, so the two cannot disagree.
    """
    told = explain_each(service, port, slices, vantage, path)
    return tuple(sorted(told, key=lambda line: (line.endpoint.address, line.endpoint.port, line.slice)))


def explain_each(
    service: Service, port: ServicePort, slices: Iterable[EndpointSlice], vantage: VantagePoint, path: Path
) -> Iterator[Explained]:
    """``explain`` one entry after another, in the order of the slices: ten thousand at once are a long step."""
    joined = [Joined(slice_, port) for slice_ in slices]
    decision = decide(service, joined, vantage, path)
    for part in joined:
        yield from _explain_slice(part, port, joined, decision, service, vantage)


def _explain_slice(
    part: Joined,
    port: ServicePort,
    joined: Sequence[Joined],
    decision: Decision,
    service: Service,
    vantage: VantagePoint,
) -> Iterator[Explained]:
    name = part.slice.name
    if part.number is None:
        why = f"its slice has no port named {port.name!r} for {port.protocol}"
        yield from (Explained(endpoint_of(fact, 0), name, False, why) for fact in part.slice.endpoints)
        return
    family = part.slice.family
    copies = winners([other for other in joined if other.slice.family == family], vantage.node)
    choice = next((choice for choice in decision.choices if family in choice.families), None)
    chosen = {(e.address, e.port) for e in choice.chosen} if choice else set()
    for fact in part.slice.endpoints:
        place = (fact.address, part.number)
        endpoint = endpoint_of(fact, part.number)
        winner = copies.get(place, part)
        if winner is not part:
            yield Explained(endpoint, name, False, f"duplicate: the copy in slice {winner.slice.name} counts")
        elif part.facts[place] is not fact:
            yield Explained(endpoint, name, False, "duplicate: another copy in the same slice counts")
        elif choice is None:
            yield Explained(endpoint, name, False, _family_reason(family, decision, service, vantage))
        else:
            yield Explained(
                endpoint, name, place in chosen, _reason(endpoint, place, chosen, choice, service, vantage)
            )


def _family_reason(family: int, decision: Decision, service: Service, vantage: VantagePoint) -> str:
    if service.type is ServiceType.EXTERNAL_NAME:
        return f"an ExternalName Service has no endpoints of its own: it stands for {service.external_name}"
    if family not in vantage.families:
        return f"IPv{family} cannot be dialled from here"
    if service.ip_families and family not in service.ip_families:
        return f"the Service does not list IPv{family}"
    other = decision.taken.families[0] if decision.taken else 0
    return f"IPv{other} comes first and has endpoints"


def _reason(
    endpoint: Endpoint,
    place: Place,
    chosen: Collection[Place],
    choice: Choice,
    service: Service,
    vantage: VantagePoint,
) -> str:
    if place in chosen:
        if choice.fallback:
            return "terminating but serving, and no ready endpoint is left"
        return {
            Locality.ANY: "ready",
            Locality.SAME_NODE: "ready, and hinted for this node",
            Locality.SAME_ZONE: f"ready, and hinted for zone {vantage.zone}",
            Locality.LOCAL_POLICY: "ready, and on this node",
        }[choice.locality]
    usable = endpoint.ready or (endpoint.serving and endpoint.terminating and service.type not in _DIRECT)
    if not usable:
        return "terminating" if endpoint.terminating else "not ready"
    if choice.locality is Locality.LOCAL_POLICY and (not vantage.node or endpoint.node != vantage.node):
        if not vantage.node:
            return "the traffic policy is Local, and our own node is unknown"
        where = f"node {endpoint.node}" if endpoint.node else "no known node"
        return f"the traffic policy is Local, and it is on {where}"
    if not endpoint.ready:
        return "terminating, and ready endpoints are left"
    if choice.locality is Locality.SAME_NODE:
        return "hints keep traffic on this node"
    return f"hints keep traffic in zone {vantage.zone}"


def with_hostname(found: EndpointSet, hostname: str) -> EndpointSet:
    """The endpoints of a set that ``HOST.NAME.NS.svc`` means: by hostname, or by address for those that have none.

    As cluster DNS names them: the pod's hostname, else the address with dashes (``10-0-0-7``, ``fd00--7``).
    """
    kept = tuple(
        endpoint
        for endpoint in found.endpoints
        if (endpoint.hostname or endpoint.address.replace(".", "-").replace(":", "-")) == hostname
    )
    if len(kept) == len(found.endpoints):
        return found
    return EndpointSet(
        endpoints=kept,
        verdict=found.verdict if kept else Verdict.NO_ENDPOINTS,
        locality=found.locality,
        terminating_fallback=found.terminating_fallback,
    )


def needs_location(service: Service, slices: Iterable[EndpointSlice], vantage: VantagePoint) -> bool:
    """Whether the answer on the internal path depends on a node or zone that we do not know (decision D3)."""
    if service.type in _DIRECT:
        return False
    if local_only(service, Path.INTERNAL):
        return not vantage.node
    if vantage.node and vantage.zone:
        return False
    endpoints = [endpoint for slice_ in slices for endpoint in slice_.endpoints]
    return any(
        (endpoint.hint_nodes and not vantage.node) or (endpoint.hint_zones and not vantage.zone)
        for endpoint in endpoints
    )


def learn_vantage(
    slices: Iterable[EndpointSlice], own_addresses: Collection[str], families: tuple[int, ...] = (4, 6)
) -> VantagePoint | None:
    """Our node and zone as the slice entry that carries our own address tells them (decision D3).

    None when no entry with a node or zone has our address, or when entries contradict each other: anybody may
    write a slice with our address, and not knowing is safer than believing one of two.
    """
    own = frozenset(own_addresses)
    nodes: set[str] = set()
    zones: set[str] = set()
    for slice_ in slices:
        for endpoint in slice_.endpoints:
            if endpoint.address in own:
                nodes.add(endpoint.node)
                zones.add(endpoint.zone)
    nodes.discard("")
    zones.discard("")
    if len(nodes) > 1 or len(zones) > 1 or not (nodes or zones):
        return None
    return VantagePoint(node="".join(nodes), zone="".join(zones), families=families)
