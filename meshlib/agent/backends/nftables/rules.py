"""Rules: the chains of a table, written in expressions. Pure.

Rules use registers from 0 on. What a rule loads for a look-up may be overwritten by its result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from meshlib.agent.backends.nftables import expressions as x
from meshlib.agent.backends.nftables.layout import (
    ALLOWED,
    CLUSTER_IPS,
    ENDPOINTS,
    HAIRPINS,
    MASQUERADED,
    MASQUERADED_OFF_NODE,
    NODE_IPS,
    NODE_PORT,
    NODE_PORT_INSIDE,
    OTHER_IPS,
    PASS,
    PODS,
    REFUSE,
    RESTRICTED,
    SERVICE_RANGES,
    STICKY,
    STICKY_ENDPOINTS,
    TRANSPORTS,
    VIP,
    VIP_INSIDE,
    Lane,
)
from meshlib.agent.backends.nftables.messages import (
    ADDRESS,
    FORWARD,
    OUTPUT,
    POSTROUTING,
    PREROUTING,
    Hook,
)

#: Before every other translation at dstnat (-100), host ports of the container network among them: the first one wins.
_NAT_PRIORITY = -105
#: After connection tracking (-200), before translation.
_FILTER_PRIORITY = -110
_SRCNAT_PRIORITY = 100


class Rule(NamedTuple):
    """``words``: what ``nft list`` shows as its comment."""

    words: str
    expressions: tuple[bytes, ...]


def digest(expressions: bytes) -> str:
    """What a rule does, in a few characters: another rule has another digest."""
    return hashlib.blake2b(x.canonical(expressions), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """A chain as the value of an object: equal to what a dump finds when all its rules stand as they should."""

    hook: Hook | None
    digests: tuple[str, ...]
    rules: tuple[Rule, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, rules: tuple[Rule, ...], hook: Hook | None = None) -> ChainSpec:
        return cls(hook, tuple(digest(b"".join(rule.expressions)) for rule in rules), rules)


def _words(family: int) -> int:
    return ADDRESS[family].padded // 4


def _frontend(lane: Lane, family: int, to: int) -> tuple[tuple[bytes, ...], int]:
    """Loads the lane's key; says which register comes next."""
    if not lane.by_address:
        return (x.protocol(to), x.destination_port(to + 1)), to + 2
    port = to + _words(family) + 1
    return (x.destination(family, to), x.protocol(port - 1), x.destination_port(port)), port + 1


@cache
def picking_chain(lane: Lane, slots: int, seconds: int, family: int) -> ChainSpec:
    """Picks one of ``slots`` endpoints, each as likely as each other; the client sticks to it for ``seconds``."""
    frontend, after = _frontend(lane, family, 0)
    rules = _sticking(lane, slots, family, seconds) if seconds else []
    # A packet that looks while a set shrinks may draw a slot that has gone; the first one is there as long as any.
    draws = [("pick", _draw(slots, after)), ("or the first", _draw(1, after))]
    for words, draw in draws[-1:] if slots == 1 else draws:
        endpoint = x.look_up(lane.slot, 0, 0)
        translate = x.new_destination(family, 0, _words(family))
        rules.append(Rule(words, (*frontend, draw, endpoint, translate)))
    return ChainSpec.of(tuple(rules))


def _draw(slots: int, to: int) -> bytes:
    return x.random_number(slots, to) if slots > 1 else x.constant(x.host32(0), to)


def _sticking(lane: Lane, slots: int, family: int, seconds: int) -> list[Rule]:
    """Registers: the client, the number of the Service's port (two), one to spare, the endpoint, the number of its
    frontend's endpoints (two). The frontend is loaded over those behind the spare one, as often as it is needed.
    """
    words = _words(family)
    service = words
    spare = service + 2
    endpoint = spare + 1
    own = endpoint + words + 1
    frontend, after = _frontend(lane, family, endpoint)
    client = (
        x.stand_in(2, service),
        *frontend,
        x.look_up(lane.owner, endpoint, service - 1),
        x.source(family, 0),
    )
    known = x.look_up(STICKY, 0, spare)
    valid = (
        x.stand_in(1, own + 1),
        *frontend,
        x.look_up(lane.member, endpoint, own - 1),
        x.stand_in(words + 1, endpoint),
        known,
        x.found(STICKY_ENDPOINTS, endpoint),
    )
    # Refreshing and forgetting need no value; they are given one, and the endpoint's register is as good as any.
    refresh = x.remember(STICKY, x.UPDATE, 0, endpoint, seconds)
    forget = x.remember(STICKY, x.DELETE, 0, endpoint)
    translate = x.new_destination(family, endpoint, endpoint + words)
    room = x.stand_in(words + 2, spare)
    pick = (*frontend, _draw(slots, after), x.look_up(lane.slot, endpoint, endpoint))
    write = x.remember(STICKY, x.UPDATE, 0, spare, seconds)
    return [
        Rule(
            "where this client went, if that is an endpoint still",
            (*client, *valid, refresh, translate),
        ),
        Rule("forget what is none", (*client, x.stand_in(words + 2, endpoint), known, forget)),
        Rule("pick, and remember", (*client, room, *pick, write, translate)),
    ]


@cache
def chains(family: int, bit: int, pods_known: bool) -> Mapping[str, ChainSpec]:
    """The chains that are always there. ``bit``: of the mark that says masquerade."""
    specs = {
        REFUSE: ChainSpec.of(_refuse(family)),
        PASS: ChainSpec.of(_pass(family)),
        "ports_in": ChainSpec.of(_ports(family, bit, pods_known, local=False)),
        "ports_out": ChainSpec.of(_ports(family, bit, pods_known, local=True)),
        "in": ChainSpec.of(
            _arrive(family, bit, pods_known, local=False), Hook("nat", PREROUTING, _NAT_PRIORITY)
        ),
        "out": ChainSpec.of(_arrive(family, bit, pods_known, local=True), Hook("nat", OUTPUT, _NAT_PRIORITY)),
        "leave": ChainSpec.of(_leave(family, bit), Hook("nat", POSTROUTING, _SRCNAT_PRIORITY)),
        "unused": ChainSpec.of(_unused(family), Hook("filter", FORWARD, 0)),
        "unused_out": ChainSpec.of(_unused(family), Hook("filter", OUTPUT, 0)),
        "strays": ChainSpec.of(_strays(family), Hook("filter", PREROUTING, _FILTER_PRIORITY)),
    }
    return specs


def _refuse(family: int) -> tuple[Rule, ...]:
    def only(name: str) -> tuple[bytes, bytes]:
        return x.protocol(0), x.equal(0, bytes((TRANSPORTS[name],)))

    unreachable = x.refuse_with_unreachable(family)
    return (
        Rule("tcp", (*only("TCP"), x.refuse_with_reset())),
        Rule("udp", (*only("UDP"), unreachable)),
        Rule("sctp", (*only("SCTP"), unreachable)),
    )


def _pass(family: int) -> tuple[Rule, ...]:
    """Translation to where the flow goes anyway settles it: no other rule's translation is asked for any more."""
    keep = (x.destination(family, 0), x.destination_port(_words(family)))
    return (Rule("as it is", (*keep, x.new_destination(family, 0, _words(family)))),)


def _dispatch(lane: Lane, family: int, *conditions: bytes) -> tuple[bytes, ...]:
    frontend, after = _frontend(lane, family, 0)
    class_ = (x.look_up(lane.class_, 0, after), x.decide(lane.chain, after + 1))
    return (*conditions, *frontend, x.stand_in(1, after + 1), *class_)


def _from_pod(family: int) -> tuple[bytes, ...]:
    return x.source(family, 0), x.found(PODS, 0)


def _lookups(outside: Lane, inside: Lane, family: int, bit: int, pods_known: bool, local: bool) -> list[Rule]:
    """Mark what is to be masqueraded, then find the frontend: first for those inside."""
    frontend, _ = _frontend(outside, family, 0)
    rules = [Rule("masquerade", (*frontend, x.found(MASQUERADED[outside], 0), *x.set_mark(bit)))]
    if local:
        # The node itself must not be answered past its own translation: an endpoint elsewhere would see an address
        # that was chosen for the way to the virtual one.
        found = x.look_up(inside.class_, 0, 0)
        rules.append(Rule("masquerade the node on its way inside", (*frontend, found, *x.set_mark(bit))))
        rules.append(Rule("from the node", _dispatch(inside, family)))
    else:
        if pods_known:
            off_node = (x.source(family, 0), x.missing(PODS, 0), *frontend)
            off_node = (*off_node, x.found(MASQUERADED_OFF_NODE[outside], 0), *x.set_mark(bit))
            rules.append(Rule("masquerade what is no pod of this node", off_node))
        rules.append(Rule("from a pod of this node", _dispatch(inside, family, *_from_pod(family))))
    rules.append(Rule("from everywhere", _dispatch(outside, family)))
    return rules


def _ports(family: int, bit: int, pods_known: bool, local: bool) -> tuple[Rule, ...]:
    return tuple(_lookups(NODE_PORT, NODE_PORT_INSIDE, family, bit, pods_known, local))


def _arrive(family: int, bit: int, pods_known: bool, local: bool) -> tuple[Rule, ...]:
    frontend, after = _frontend(VIP, family, 0)
    restricted = (*frontend, x.source(family, after), x.found(RESTRICTED, 0), x.missing(ALLOWED, 0))
    to = x.destination(family, 0)
    ports = "ports_out" if local else "ports_in"
    rules = [
        Rule("source ranges", (*restricted, x.verdict(x.DROP))),
        *(_virtual_sources(family, bit) if local else ()),
        *_lookups(VIP, VIP_INSIDE, family, bit, pods_known, local),
        Rule("node ports", (to, x.found(NODE_IPS, 0), x.verdict(x.JUMP, ports))),
        Rule("a ClusterIP's other ports", (to, x.found(CLUSTER_IPS, 0), x.verdict(x.GOTO, REFUSE))),
        Rule(
            "host ports behind a virtual address",
            (*x.to_this_host(), to, x.found(OTHER_IPS, 0), x.verdict(x.GOTO, REFUSE)),
        ),
    ]
    return tuple(rules)


def _virtual_sources(family: int, bit: int) -> list[Rule]:
    """Where a device holds the virtual addresses (ours, kube-proxy's), the node calls one from that very address, and
    an endpoint elsewhere would answer to its own node."""
    return [
        Rule(
            f"masquerade the node as one of {name}",
            (x.source(family, 0), x.found(name, 0), *x.set_mark(bit)),
        )
        for name in (CLUSTER_IPS, OTHER_IPS)
    ]


def _unused(family: int) -> tuple[Rule, ...]:
    """After every translation: other proxies may serve Services in the same ranges, by translation or (their addresses
    are this host's) by virtual servers."""
    words = _words(family)
    to = (x.destination(family, 0), x.found(SERVICE_RANGES, 0), x.missing(CLUSTER_IPS, 0))
    rules = []
    for name, number in TRANSPORTS.items():
        only = (x.protocol(words), x.equal(words, bytes((number,))))
        match = (*x.new_flow(), *only, *to, *x.to_others(), x.verdict(x.DROP))
        rules.append(Rule(f"addresses of no Service, {name.lower()}", match))
    return tuple(rules)


def _leave(family: int, bit: int) -> tuple[Rule, ...]:
    words = _words(family)
    itself = (
        x.source(family, 0),
        x.destination(family, words),
        x.protocol(2 * words),
        x.destination_port(2 * words + 1),
        x.found(HAIRPINS, 0),
        x.masquerade(),
    )
    return (
        Rule("an endpoint to itself", itself),
        Rule("not marked", (*x.unmarked(bit), x.verdict(x.RETURN))),
        Rule("the mark is used up", x.clear_mark(bit)),
        Rule("masquerade", (x.masquerade(),)),
    )


def _strays(family: int) -> tuple[Rule, ...]:
    """An endpoint's answer that connection tracking does not know (beyond the window, say) would reach the client from
    an address it never called, and be answered with a reset."""
    words = _words(family)
    sender = (x.source(family, 0), x.protocol(words), x.source_port(words + 1), x.found(ENDPOINTS, 0))
    return (Rule("answers that belong to no connection", (*x.invalid(), *sender, x.verdict(x.DROP))),)
