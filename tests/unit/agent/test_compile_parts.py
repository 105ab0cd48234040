"""The parts of the compiler that golden snapshots show only in passing: node-port addresses, ranges, claims, ages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.compile import Compiler, compile_desired
from meshlib.agent.compile.claims import ClaimRules
from meshlib.agent.compile.context import Context, make_context
from meshlib.agent.compile.ranges import source_ranges
from meshlib.agent.compile.service import Part, compile_service
from meshlib.agent.facts import Facts, Host
from meshlib.agent.settings import AgentSettings, agent_settings
from meshlib.errors import ConfigError
from meshlib.model.cluster import ClusterChange, Node, ServiceFacts
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort

NODE = Node("node-a", "zone-1", ("192.0.2.1", "2001:db8::1", "203.0.113.9"))
HOST = Host(("192.0.2.1", "10.8.0.1", "10.9.0.1", "127.0.0.1", "2001:db8::1", "fd00:8::1", "::1"))


@pytest.mark.acceptance(67, 68)
@pytest.mark.parametrize(
    ("cidrs", "four", "six"),
    [
        ([], ["192.0.2.1"], ["2001:db8::1"]),
        (["0.0.0.0/0"], ["192.0.2.1", "10.8.0.1", "10.9.0.1"], []),
        (["::/0"], [], ["2001:db8::1", "fd00:8::1"]),
        (["0.0.0.0/0", "::/0"], ["192.0.2.1", "10.8.0.1", "10.9.0.1"], ["2001:db8::1", "fd00:8::1"]),
        (["127.0.0.0/8"], [], []),
        (["::1/128"], [], []),
        (["10.8.0.0/16"], ["10.8.0.1"], []),
        (["10.8.0.0/16", "10.9.0.0/16"], ["10.8.0.1", "10.9.0.1"], []),
        (["10.8.0.0/16", "10.8.0.0/24"], ["10.8.0.1"], []),
        (["10.8.0.1/32", "192.0.2.0/24"], ["192.0.2.1", "10.8.0.1"], []),
        (["fd00::/8"], [], ["fd00:8::1"]),
        (["198.51.100.0/24"], [], []),
        (["10.8.0.0/16", "0.0.0.0/0"], ["192.0.2.1", "10.8.0.1", "10.9.0.1"], []),
    ],
)
def test_node_port_addresses(cidrs: list[str], four: list[str], six: list[str]) -> None:
    """Which of the host's addresses answer node ports: zero networks, several, none, families, loopback, ours first."""
    settings = agent_settings({"node_port_addresses": cidrs})
    assert list(make_context(settings, 4, NODE, HOST).place.node_addresses) == four
    assert list(make_context(settings, 6, NODE, HOST).place.node_addresses) == six


@pytest.mark.acceptance(68)
def test_node_port_addresses_that_are_no_networks() -> None:
    """The error path: refused when the settings are made, with the text."""
    with pytest.raises(ConfigError, match="one-two"):
        agent_settings({"node_port_addresses": ["10.8.0.0/16", "one-two"]})


@pytest.mark.acceptance(69)
def test_an_address_that_comes_or_goes_moves_the_place() -> None:
    """A change of the host's addresses alone gives a new place; the same addresses again give nothing."""
    compiler = Compiler(AgentSettings(node_port_addresses=("10.0.0.0/8",)), 4)
    compiler.update(ClusterChange({}, NODE, complete=True), Host(("192.0.2.1",)))
    change = compiler.update(ClusterChange(), HOST)
    assert change.place is not None
    assert change.place.node_addresses == ("10.8.0.1", "10.9.0.1")
    assert not compiler.update(ClusterChange(), HOST)
    gone = compiler.update(ClusterChange(), Host(("10.9.0.1",)))
    assert gone.place is not None
    assert gone.place.node_addresses == ("10.9.0.1",)


def test_settings_stand_in_for_a_node_without_a_cluster() -> None:
    """Name, zone, addresses and pod ranges of the settings count where the Node says nothing."""
    settings = AgentSettings(
        node_name="n", zone="z", node_addresses=("192.0.2.9",), pod_cidrs=("10.1.0.0/24", "fd00:1::/64")
    )
    context = make_context(settings, 4, Node(), Host())
    assert (context.vantage.node, context.vantage.zone) == ("n", "z")
    assert (context.place.source, context.place.pod_ranges) == ("192.0.2.9", ("10.1.0.0/24",))
    told = make_context(settings, 4, NODE, Host())
    assert (told.vantage.node, told.place.source) == ("node-a", "192.0.2.1")


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_source_ranges_keep_their_meaning(given_: list[tuple[int, int]], address: int) -> None:
    """Whatever is merged: an address is allowed exactly when one of the ranges as written holds it; none overlap."""
    texts = tuple(f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}/{bits}" for n, bits in given_)
    found = source_ranges(texts, 4, strict=True).allowed
    expected = any(address >> (32 - bits) == n >> (32 - bits) for n, bits in given_)
    if found is None:
        assert expected
        return
    spans = []
    for text in found:
        start, _, bits = text.partition("/")
        a, b, c, d = map(int, start.split("."))
        first = a << 24 | b << 16 | c << 8 | d
        spans.append((first, first + (1 << (32 - int(bits))) - 1))
    assert any(low <= address <= high for low, high in spans) is expected
    assert all(one[1] < other[0] for one, other in pairwise(spans))


def test_embedded_addresses_are_refused() -> None:
    """IPv6 forms that hide an IPv4 address cannot be claimed (mapped ones would be the same address twice)."""
    rules = ClaimRules(6, external=("::/0",))
    for text in ("::ffff:c633:6407", "64:ff9b::c633:6407", "2002:c633:6407::1"):
        assert "is " in rules.refusal(text, external=True)
    assert rules.refusal("2001:db8:5::7", external=True) == ""


@pytest.mark.acceptance(78)
def test_ranges_of_the_cluster() -> None:
    """ServiceCIDRs come to the settings' own while the agent runs: what no Service has there is silent, and nobody's to
    claim. Not where others serve in them."""
    compiler = Compiler(agent_settings({"service_cidrs": ["10.96.0.0/16"]}), 4)
    assert compiler.place.service_ranges == ("10.96.0.0/16",)
    ranges = ("10.112.0.0/16", "10.96.0.0/16", "fd00::/108")
    key = ServiceKey("shop", "web")
    claims = Service(
        key=key,
        type=ServiceType.LOAD_BALANCER,
        ports=(ServicePort("http", 80),),
        cluster_ips=("10.96.0.9",),
        ip_families=(4,),
        load_balancer_ips=("10.112.0.9",),
    )
    compiler.update(ClusterChange({key: ServiceFacts(claims)}, complete=True))
    assert len(compiler.desired().frontends) == 2
    change = compiler.update(ClusterChange(service_ranges=ranges))
    assert change.place is not None
    assert change.place.service_ranges == ("10.96.0.0/16", "10.112.0.0/16")
    assert [each.key.address for each in compiler.desired().frontends] == ["10.96.0.9"]
    assert not compiler.update(ClusterChange(service_ranges=ranges))
    some = make_context(AgentSettings(service_proxy_name="meshlib"), 4, NODE, HOST, ranges)
    assert some.place.service_ranges == ()


def test_an_age_that_cannot_be_read_is_the_youngest() -> None:
    """A creationTimestamp that is none never wins over a real one, and never breaks anything."""

    def service(name: str, created: str) -> ServiceFacts:
        return ServiceFacts(
            Service(
                ServiceKey("shop", name),
                ports=(ServicePort("http", 80),),
                cluster_ips=("10.96.0.10",),
                created=created,
            )
        )

    for odd in ("", "soon", "9999-99-99T00:00:00Z", "0001-01-01T00:00:00Z"):
        made = [service("a", odd), service("b", "2024-01-01T00:00:00Z")]
        known = {facts.service.key: facts for facts in made if facts.service is not None}
        (frontend,) = compile_desired(Facts(known), AgentSettings(), 4).frontends
        assert frontend.owner.service.name == "b", odd


@pytest.mark.acceptance(105)
def test_one_change_compiles_one_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among a thousand Services one changed endpoint is one compilation and one other frontend; a new zone is all."""

    compiled: list[ServiceFacts] = []

    def counted(facts: ServiceFacts, context: Context) -> Part:
        compiled.append(facts)
        return compile_service(facts, context)

    monkeypatch.setattr("meshlib.agent.compile.compiler.compile_service", counted)

    def facts(number: int, *addresses: str) -> ServiceFacts:
        key = ServiceKey("shop", f"s{number}")
        service = Service(
            key, ports=(ServicePort("http", 80),), cluster_ips=(f"10.96.{number // 250}.{number % 250 + 1}",)
        )
        found = EndpointSlice(
            namespace="shop",
            name=key.name,
            service=key,
            family=4,
            ports=(SlicePort("http", 8080),),
            endpoints=tuple(SliceEndpoint(address=each) for each in addresses),
        )
        return ServiceFacts(service, (found,))

    known = {ServiceKey("shop", f"s{number}"): facts(number, "10.1.0.1") for number in range(1000)}
    incremental = Compiler(AgentSettings(), 4)
    incremental.update(ClusterChange(known, NODE, complete=True))
    assert len(compiled) == 1000
    compiled.clear()
    change = incremental.update(
        ClusterChange({ServiceKey("shop", "s7"): facts(7, "10.1.0.1", "10.1.0.2")}, NODE)
    )
    assert (len(compiled), len(change.frontends)) == (1, 1)
    compiled.clear()
    # The source read everything again, and one Service is another.
    again = {**known, ServiceKey("shop", "s7"): facts(7, "10.1.0.2")}
    change = incremental.update(ClusterChange(again, NODE, complete=True))
    assert (len(compiled), len(change.frontends)) == (1, 1)
    compiled.clear()
    incremental.update(ClusterChange({}, Node("node-a", "zone-2", NODE.addresses, NODE.pod_ranges)))
    assert len(compiled) == 1000
