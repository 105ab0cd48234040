"""The compiler on arbitrary facts: increments equal the whole, differences are exact, conflicts have one outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.compile import Compiler, DesiredChange, compile_desired
from meshlib.agent.desired import (
    Action,
    Desired,
    Frontend,
    FrontendKey,
    FrontendKind,
    Hairpin,
    HealthPort,
    Note,
)
from meshlib.agent.facts import Facts, Host
from meshlib.agent.settings import AgentSettings
from meshlib.model.cluster import ABSENT, ClusterChange, Node, ServiceFacts
from meshlib.model.service import (
    KERNEL_SCHEDULER,
    Service,
    ServiceKey,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort

# Few of everything, so that Services meet: the same addresses, ports, pods and node ports.
KEYS = [ServiceKey("a", "x"), ServiceKey("a", "y"), ServiceKey("b", "x"), ServiceKey("b", "z")]
AGES = ["", "2024-01-01T00:00:00Z", "2024-06-01T00:00:00+02:00", "yesterday"]
CLUSTER_IPS = [(), ("10.96.0.1",), ("10.96.0.2", "fd00:96::2"), ("fd00:96::3",), ("fd00:96::2", "10.96.0.1")]
CLAIMED = ["10.96.0.1", "198.51.100.1", "2001:db8:5::1", "192.0.2.1", "169.254.169.254", "junk", "FD00:96::2"]
PORTS = [
    ServicePort("http", 80, node_port=30080),
    ServicePort("dns", 53, "UDP", node_port=30053),
    ServicePort("alt", 80, node_port=30081),
    ServicePort("", 81),
]
RANGES = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "0.0.0.0/0", "::/0", "office"]
NODES = [
    Node(),
    Node("node-a", "zone-1", ("192.0.2.1",), ("10.1.0.0/24",)),
    Node("node-b", "zone-2", ("192.0.2.2", "2001:db8::1")),
]
HOSTS = [Host(), Host(("192.0.2.1", "198.51.100.9", "127.0.0.1", "2001:db8::1"))]
POLICIES = st.sampled_from(TrafficPolicy)

endpoints = st.builds(
    SliceEndpoint,
    address=st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3"]),
    node=st.sampled_from(["", "node-a", "node-b"]),
    ready=st.booleans(),
    serving=st.booleans(),
    terminating=st.booleans(),
    hint_zones=st.sampled_from([(), ("zone-1",), ("zone-2",)]),
)


@st.composite
def slices(draw: st.DrawFn, key: ServiceKey, name: str) -> EndpointSlice:
    family = draw(st.sampled_from([4, 4, 6]))
    found = draw(st.lists(endpoints, max_size=3))
    if family == 6:
        found = [
            SliceEndpoint(address=f"fd00:1::{each.address[-1]}", node=each.node, ready=each.ready)
            for each in found
        ]
    ports = draw(
        st.lists(
            st.sampled_from([SlicePort("http", 8080), SlicePort("http", 8081), SlicePort("dns", 53, "UDP")]),
            max_size=2,
        )
    )
    return EndpointSlice(
        namespace=key.namespace,
        name=name,
        service=key,
        family=family,
        ports=tuple(ports),
        endpoints=tuple(found),
    )


@st.composite
def service_facts(draw: st.DrawFn, key: ServiceKey) -> ServiceFacts:
    service = Service(
        key=key,
        type=draw(st.sampled_from(ServiceType)),
        ports=tuple(draw(st.lists(st.sampled_from(PORTS), max_size=3))),
        cluster_ips=draw(st.sampled_from(CLUSTER_IPS)),
        session_affinity_seconds=draw(st.sampled_from([0, 10800])),
        internal_traffic_policy=draw(POLICIES),
        external_traffic_policy=draw(POLICIES),
        labels=draw(st.sampled_from([(), (), (), (("service.kubernetes.io/service-proxy-name", "x"),)])),
        annotations=draw(st.sampled_from([(), ((KERNEL_SCHEDULER, "lc"),), ((KERNEL_SCHEDULER, "?"),)])),
        external_ips=tuple(draw(st.lists(st.sampled_from(CLAIMED), max_size=2))),
        load_balancer_ips=tuple(draw(st.lists(st.sampled_from(CLAIMED), max_size=2))),
        source_ranges=tuple(draw(st.lists(st.sampled_from(RANGES), max_size=2))),
        health_check_node_port=draw(st.sampled_from([0, 32000])),
        created=draw(st.sampled_from(AGES)),
    )
    names = draw(st.sets(st.sampled_from(["s", "t"])))
    return ServiceFacts(service, tuple(draw(slices(key, name)) for name in sorted(names)))


@st.composite
def changes(draw: st.DrawFn) -> tuple[ClusterChange, Host | None]:
    chosen = draw(st.lists(st.sampled_from(KEYS), unique=True))
    complete = draw(st.integers(0, 5)) == 0
    told = {}
    for key in chosen:
        gone = draw(st.integers(0, 3)) == 0 and not complete
        told[key] = ABSENT if gone else draw(service_facts(key))
    node = draw(st.sampled_from([None, None, *NODES]))
    return ClusterChange(told, node, complete), draw(st.sampled_from([None, None, *HOSTS]))


settings = st.builds(
    AgentSettings,
    node_name=st.sampled_from(["", "node-a"]),
    service_proxy_name=st.sampled_from(["", "", "x"]),
    external_ip_cidrs=st.sampled_from([(), ("0.0.0.0/0", "::/0")]),
    service_cidrs=st.sampled_from([(), ("10.96.0.0/12", "fd00:96::/64")]),
    node_port_addresses=st.sampled_from([(), ("0.0.0.0/0",), ("198.51.100.0/24", "::/0")]),
    strict_source_ranges=st.booleans(),
    masquerade_all=st.booleans(),
)


def everything(desired: Desired) -> tuple[Any, ...]:
    """Desired, with the notes that its equality leaves out."""
    return desired, desired.notes


class Shadow:
    """What somebody knows who only ever saw the changes."""

    def __init__(self) -> None:
        self.frontends: dict[FrontendKey, Frontend] = {}
        self.hairpins: set[Hairpin] = set()
        self.health: dict[ServiceKey, HealthPort] = {}
        self.notes: set[Note] = set()

    def take(self, change: DesiredChange) -> None:
        """Apply; each difference must be one, and start from what is known."""
        _take(self.frontends, change.frontends)
        _take(self.health, change.health_ports)
        assert self.hairpins.isdisjoint(change.hairpins_added)
        assert self.hairpins >= change.hairpins_removed
        self.hairpins = (self.hairpins - change.hairpins_removed) | change.hairpins_added
        assert self.notes.isdisjoint(change.notes_added)
        assert self.notes >= set(change.notes_removed)
        self.notes = (self.notes - set(change.notes_removed)) | set(change.notes_added)


def _take(known: dict[Any, Any], pairs: Mapping[Any, tuple[Any, Any]]) -> None:
    for key, (old, new) in pairs.items():
        assert old != new
        assert known.get(key) == old
        if new is None:
            del known[key]
        else:
            known[key] = new


@pytest.mark.acceptance(104)
@given(settings, st.sampled_from([4, 6]), st.lists(changes(), max_size=6))
def test_increments_equal_the_whole(
    chosen: AgentSettings, family: int, told: list[tuple[ClusterChange, Host | None]]
) -> None:
    """After every sequence of changes: the same as from nothing, and the differences add up to it."""
    compiler, shadow, facts = Compiler(chosen, family), Shadow(), Facts()
    for change, host in told:
        facts = facts.after(change)
        facts = Facts(facts.services, facts.node, host or facts.host)
        place = compiler.place
        difference = compiler.update(change, host)
        assert difference.place == (compiler.place if compiler.place != place else None)
        shadow.take(difference)
        desired = compiler.desired()
        assert everything(desired) == everything(compile_desired(facts, chosen, family))
        assert shadow.frontends == {each.key: each for each in desired.frontends}
        assert shadow.hairpins == set(desired.hairpins) == set(compiler.hairpins)
        assert shadow.health == {each.service: each for each in desired.health_ports}
        assert shadow.notes == set(desired.notes)
        assert not compiler.update(change, host)
        assert not compiler.update(facts.whole(), facts.host)


@given(settings, st.sampled_from([4, 6]), st.lists(changes(), min_size=1, max_size=5))
def test_changes_may_be_joined(
    chosen: AgentSettings, family: int, told: list[tuple[ClusterChange, Host | None]]
) -> None:
    """Who was busy and takes several changes as one ends at the same Desired."""
    one_by_one, at_once = Compiler(chosen, family), Compiler(chosen, family)
    joined = told[0][0]
    one_by_one.update(joined)
    for change, _ in told[1:]:
        one_by_one.update(change)
        joined = joined.then(change)
    at_once.update(joined)
    assert everything(one_by_one.desired()) == everything(at_once.desired())


@given(st.fixed_dictionaries({key: service_facts(key) for key in KEYS}), st.sampled_from(NODES), st.randoms())
def test_conflicts_have_one_outcome(known: dict[ServiceKey, ServiceFacts], node: Node, random: Any) -> None:
    """For every address and port the best claim wins: allocated, older, first by name; in whatever order they come."""
    chosen = AgentSettings(external_ip_cidrs=("0.0.0.0/0", "::/0"))
    whole = compile_desired(Facts(known, node), chosen, 4)
    best: dict[FrontendKey, tuple[Any, Frontend]] = {}
    age = {text: rank for rank, text in enumerate([AGES[1], AGES[2]])}
    losers = 0
    for key, facts in known.items():
        alone = compile_desired(Facts({key: facts}, node), chosen, 4)
        assert facts.service is not None
        for frontend in alone.frontends:
            claimed = frontend.kind is not FrontendKind.CLUSTER_IP
            rank = (claimed, age.get(facts.service.created, 9), key)
            losers += frontend.key in best
            if frontend.key not in best or rank < best[frontend.key][0]:
                best[frontend.key] = (rank, frontend)
    assert {each.key: each for each in whole.frontends} == {key: pair[1] for key, pair in best.items()}
    assert sum(note.reason == "conflict" for note in whole.notes) == losers
    shuffled = list(known.items())
    random.shuffle(shuffled)
    assert everything(compile_desired(Facts(dict(shuffled), node), chosen, 4)) == everything(whole)


@given(settings, st.fixed_dictionaries({key: service_facts(key) for key in KEYS}), st.sampled_from(NODES))
def test_desired_is_well_formed(
    chosen: AgentSettings, known: dict[ServiceKey, ServiceFacts], node: Node
) -> None:
    """Sorted, no key twice, targets exactly where traffic is forwarded, the inside route only on external frontends."""
    for family in (4, 6):
        desired = compile_desired(Facts(known, node), chosen, family)
        keys = [each.key for each in desired.frontends]
        assert keys == sorted(set(keys))
        for frontend in desired.frontends:
            assert (":" in frontend.key.address) is (
                family == 6 and frontend.kind is not FrontendKind.NODE_PORT
            )
            for route in (frontend.route, frontend.inside):
                if route is not None:
                    assert bool(route.targets) is (route.action is Action.FORWARD)
                    assert list(route.targets) == sorted(set(route.targets))
                    assert all((":" in target.address) is (family == 6) for target in route.targets)
            if frontend.kind is FrontendKind.CLUSTER_IP:
                assert frontend.inside is None
            if frontend.kind is not FrontendKind.LOAD_BALANCER:
                assert frontend.source_ranges is None
