"""Properties of the pure part of the nftables backend: whatever is wanted, elements say exactly that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from ipaddress import ip_address, ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.backends.nftables import companion, layout, messages, translate
from meshlib.agent.backends.nftables.assembly import assemble
from meshlib.agent.backends.nftables.messages import Element, SetSpec
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Masquerade,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.netlink.messages import Message, parse_attributes
from meshlib.agent.objects import ObjectKey, Operation, Verb
from meshlib.model.service import ServiceKey

ports = st.integers(1, 65535)


def addresses(family: int) -> st.SearchStrategy[str]:
    return st.ip_addresses(v=family).map(str)  # type: ignore[arg-type]


@st.composite
def targets(draw: st.DrawFn, family: int, most: int = 12) -> tuple[Target, ...]:
    keys = draw(st.sets(st.tuples(addresses(family), ports), max_size=most))
    return tuple(Target(address, port, draw(st.integers(1, 300))) for address, port in sorted(keys))


@st.composite
def routes(draw: st.DrawFn, family: int) -> Route:
    action = draw(st.sampled_from(Action))
    return Route(action, draw(targets(family)) if action is Action.FORWARD else ())


@st.composite
def networks(draw: st.DrawFn, family: int) -> str:
    prefix = draw(st.integers(0, 32 if family == 4 else 128))
    return str(ip_network(f"{draw(addresses(family))}/{prefix}", strict=False))


@st.composite
def frontends(draw: st.DrawFn, family: int) -> Frontend:
    kind = draw(st.sampled_from(FrontendKind))
    node_port = kind is FrontendKind.NODE_PORT
    address = "" if node_port and draw(st.booleans()) else draw(addresses(family))
    protocol = draw(st.sampled_from(["TCP", "UDP", "SCTP"]))
    return Frontend(
        FrontendKey(protocol, address, draw(ports)),
        kind,
        PortKey(ServiceKey("ns", draw(st.sampled_from("abc"))), "http", protocol),
        draw(routes(family)),
        inside=draw(st.none() | routes(family)),
        masquerade=draw(st.sampled_from(Masquerade)),
        affinity_seconds=draw(st.sampled_from([0, 0, 1, 10800, 86400])),
        exact_affinity=draw(st.booleans()),
        source_ranges=draw(st.none() | st.lists(networks(family), max_size=4).map(tuple)),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Place, Frontend]:
    family = draw(st.sampled_from([4, 6]))
    place = Place(
        family,
        tuple(sorted(draw(st.sets(addresses(family), max_size=3)))),
        tuple(draw(st.lists(networks(family), max_size=3))),
        draw(st.integers(0, 31)),
    )
    return place, draw(frontends(family))


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60))
def test_slots_keep_proportions(weights: Sequence[int]) -> None:
    """Every target has a slot; shares are exact while the numbers are small, and near otherwise."""
    given_ = [Target(f"10.0.0.{index}", 80, weight) for index, weight in enumerate(weights)]
    filled = translate.slots(given_)
    count = Counter(target.address for target in filled)
    assert set(count) == {target.address for target in given_}
    assert len(filled) <= layout.MOST_SLOTS
    total = sum(weights)
    for target in given_:
        share = Fraction(count[target.address], len(filled))
        wanted = Fraction(target.weight, total)
        assert abs(share - wanted) <= Fraction(len(given_) + 1, translate.MOST_WEIGHTED_SLOTS)
        if total <= translate.MOST_WEIGHTED_SLOTS:
            assert share == wanted


@given(cases())
def test_elements_say_what_is_wanted(case: tuple[Place, Frontend]) -> None:
    """Read as the rules read them, a frontend's elements lead to its targets by weight, or to its verdict."""
    place, frontend = case
    objects = {**translate.fixed(place), **translate.translate(frontend, place)}
    outside = layout.VIP if frontend.key.address else layout.NODE_PORT
    inside = layout.VIP_INSIDE if frontend.key.address else layout.NODE_PORT_INSIDE
    assert _read(objects, outside, frontend.key) == _expected(frontend.route)
    if frontend.inside is None:
        assert _read(objects, inside, frontend.key) is None
    else:
        assert _read(objects, inside, frontend.key) == _expected(frontend.inside)


@given(cases())
def test_the_companion_decides_the_same(case: tuple[Place, Frontend]) -> None:
    """Beside virtual servers the table passes what is forwarded, and agrees on everything else."""
    place, frontend = case
    beside = {**companion.fixed(place), **companion.translate(frontend, place, Target("::1", 7))}
    alone = {**translate.fixed(place), **translate.translate(frontend, place)}
    lane = layout.VIP if frontend.key.address else layout.NODE_PORT
    mine = {key for key in alone if key.kind not in _FORWARDING}
    assert {key for key in beside if key.kind not in _FORWARDING} == mine
    said = _read(beside, lane, frontend.key)
    if companion.is_forwarded(frontend) or frontend.route.action is not Action.FORWARD:
        assert said == _read(alone, lane, frontend.key)
    else:
        assert said == layout.PASS


_FORWARDING = {
    "chain",
    "endpoints",
    "sticky_endpoints",
    *(
        name
        for lane in layout.LANES
        for name in (lane.class_, lane.chain, lane.slot, lane.owner, lane.member)
    ),
}


def _expected(route: Route) -> object:
    if route.action is Action.FORWARD and route.targets:
        return Counter((target.address, target.port) for target in translate.slots(route.targets))
    return "" if route.action is Action.DROP else layout.REFUSE


def _read(objects: dict[ObjectKey, object], lane: layout.Lane, key: FrontendKey) -> object:
    """What the rules of a lane make of a packet to this frontend; None: it is not looked for further."""
    name = translate.element_key(key)
    class_ = objects.get(ObjectKey(lane.class_, name))
    if class_ is None:
        return None
    assert isinstance(class_, bytes)
    chain = objects[ObjectKey(lane.chain, class_[4:])]
    if ObjectKey("chain", chain) not in objects or chain in (layout.REFUSE, layout.PASS, ""):
        return chain
    count = int.from_bytes(class_[4:], "little") & 0x7FFF
    found: Counter[tuple[str, int]] = Counter()
    for index in range(count):
        value = objects[ObjectKey(lane.slot, name + index.to_bytes(4, "little"))]
        assert isinstance(value, bytes)
        found[str(ip_address(value[:-4])), int.from_bytes(value[-4:-2], "big")] += 1
    assert ObjectKey(lane.slot, name + count.to_bytes(4, "little")) not in objects
    return found


@given(st.sampled_from([4, 6]).flatmap(lambda family: st.tuples(st.just(family), st.lists(networks(family)))))
def test_ranges_round_trip(case: tuple[int, list[str]]) -> None:
    """An interval set's elements, in any order, give back ranges that hold the same addresses and never touch."""
    family, given_ = case
    content = translate.ranges(given_, family)
    elements = translate.range_elements(content)
    assert translate.ranges_of(reversed(elements), 4 if family == 4 else 16) == content
    for (_, last), (first, _) in pairwise(content):
        assert int.from_bytes(last, "big") + 1 <= int.from_bytes(first, "big")
    for network in map(ip_network, given_):
        assert any(
            first <= network.network_address.packed and network.broadcast_address.packed <= last
            for first, last in content
        )


@given(cases(), st.booleans())
def test_every_operation_is_sent(case: tuple[Place, Frontend], together: bool) -> None:
    """Each element of a plan is in exactly one message, and comes back from it as it was."""
    place, frontend = case
    family = place.family
    objects = {**translate.fixed(place), **translate.translate(frontend, place)}
    plan = [Operation(Verb.ADD, key, value) for key, value in objects.items()]
    specs = layout.set_specs(family)
    sent: Counter[ObjectKey] = Counter()
    for step in assemble(plan, family, "t", together):
        if step.request.type == 10 << 8 | 12:
            name, elements = _elements_of(step.request.payload, specs)
            for element in elements if name in specs else ():
                key = ObjectKey(name, element.key + element.key_end)
                assert objects[key] == element.value
                sent[key] += 1
    assert sent == Counter(key for key in objects if key.kind in specs)


def _elements_of(payload: bytes, specs: dict[str, SetSpec]) -> tuple[str, list[Element]]:
    name = dict(parse_attributes(payload, 4))[2].rstrip(b"\0").decode()
    if name not in specs:
        return name, []
    return name, list(messages.parse_elements(Message(0, 0, 0, 0, payload), specs[name]))


@given(
    st.lists(st.tuples(st.binary(min_size=12, max_size=12), st.binary(min_size=8, max_size=8)), max_size=50)
)
def test_plain_elements_are_read_by_position(content: list[tuple[bytes, bytes]]) -> None:
    """The quick reading of a dump and the reading attribute by attribute agree."""
    spec = SetSpec("s", (messages.MARK,) * 3, (messages.MARK,) * 2)
    elements = [Element(key, value) for key, value in content]
    requests = list(messages.new_elements(4, "t", spec, elements))
    assert bool(requests) == bool(elements)
    for request in requests:
        # The kernel leaves the flag for nested attributes out.
        told = Message(0, 0, 0, 0, request.payload)
        assert list(messages.parse_elements(told, spec)) == elements
