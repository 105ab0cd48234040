"""Properties of the decision which remembered flows are stale."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.flows.stale import may_leave_stale, stale
from meshlib.agent.netlink.conntrack import Entry, Tuple
from meshlib.model.service import ServiceKey

NODES = ("10.0.0.1", "10.0.0.2")
PLACE = Place(4, NODES)
addresses = st.sampled_from(["10.96.0.1", "10.96.0.2", *NODES])
endpoints = st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3"])
protocols = st.sampled_from(["TCP", "UDP", "SCTP"])


@st.composite
def frontends(draw: st.DrawFn) -> Frontend:
    protocol = draw(protocols)
    address = draw(st.sampled_from(["", "10.96.0.1", "10.96.0.2"]))
    chosen = sorted(draw(st.sets(endpoints)))
    route = (
        Route(Action.FORWARD, tuple(Target(each, 8080) for each in chosen))
        if chosen
        else Route(Action.REJECT)
    )
    key = FrontendKey(protocol, address, draw(st.sampled_from([53, 54])))
    kind = FrontendKind.CLUSTER_IP if address else FrontendKind.NODE_PORT
    return Frontend(key, kind, PortKey(ServiceKey("ns", "dns"), "", protocol), route)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    protocol, to, port = draw(protocols), draw(addresses), draw(st.sampled_from([53, 54]))
    client = "10.9.9.9"
    answers = draw(endpoints.map(lambda each: (each, 8080)) | st.just((to, port)))
    return Entry(
        Tuple(client, to, protocol, draw(st.integers(1, 65535)), port),
        Tuple(answers[0], client, protocol, answers[1], 1),
        draw(st.integers(1, 100)),
    )


worlds = st.lists(frontends(), max_size=6).map(lambda some: {each.key: each for each in some})


@given(st.lists(entries(), max_size=20), worlds)
def test_only_and_all_that_lead_elsewhere(seen: list[Entry], world: dict[FrontendKey, Frontend]) -> None:
    """A flow is forgotten exactly if it goes to a frontend that has not got who answers it; TCP never is."""
    doomed = stale(seen, world, PLACE)
    for entry in seen:
        protocol, to, port = (
            entry.original.protocol,
            entry.original.destination,
            entry.original.destination_port,
        )
        frontend = world.get(FrontendKey(protocol, to, port))
        if frontend is None and to in NODES:
            frontend = world.get(FrontendKey(protocol, "", port))
        answers = (entry.reply.source, entry.reply.source_port)
        wanted = (
            protocol != "TCP"
            and frontend is not None
            and answers not in {(target.address, target.port) for target in frontend.route.targets}
        )
        assert (entry in doomed) == wanted


@given(st.lists(entries(), max_size=20), worlds)
def test_removed_frontends_lose_their_flows(seen: list[Entry], world: dict[FrontendKey, Frontend]) -> None:
    """Once everything is gone no translated UDP or SCTP flow to what was there is left; others are."""
    doomed = stale(seen, {}, PLACE, world)
    assert stale(seen, {}, PLACE) == []
    for entry in seen:
        to, port = entry.original.destination, entry.original.destination_port
        key = FrontendKey(entry.original.protocol, to, port)
        ours = key in world or (to in NODES and key._replace(address="") in world)
        translated = (entry.reply.source, entry.reply.source_port) != (to, port)
        assert (entry in doomed) == (ours and translated and key.protocol != "TCP")


@given(frontends(), st.sets(endpoints), st.lists(entries(), max_size=20))
def test_a_change_that_needs_no_look_leaves_nothing_stale(
    old: Frontend, chosen: set[str], seen: list[Entry]
) -> None:
    """Flows that were right stay right under any change that ``may_leave_stale`` calls harmless."""
    route = Route(Action.FORWARD, tuple(Target(each, 8080) for each in sorted(chosen)))
    new = replace(old, route=route if chosen else Route(Action.REJECT))
    right = [entry for entry in seen if entry not in stale(seen, {old.key: old}, PLACE)]
    if not may_leave_stale(old, new):
        assert stale(right, {new.key: new}, PLACE) == []
    assert may_leave_stale(None, new) == may_leave_stale(old, None) == (old.key.protocol != "TCP")
