"""Translate: frontends and the node itself to rules. Pure.

nat: flows are looked for among the frontends of those inside (pods of this node, the node), then among all. Both
look-ups go by the first 24 (of IPv6 120) bits of the address and then by address and port, so that 10,000 ClusterIPs in
a /16 cost a new flow a few hundred comparisons, not 10,000; node ports by 64 numbers at a time. A frontend has one
rule, and one more where sources are masqueraded; its endpoints have a rule each, in a chain that all frontends of a
Service with the same endpoints share.

filter: what was not translated, and is for a frontend, is refused or dropped. mangle, which comes before the
translation: source ranges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from meshlib.agent.backends.iptables.rules import PREFIX, Name, put
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Hairpin,
    Masquerade,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.objects import ObjectKey, Objects

_TRANSPORTS = ("tcp", "udp", "sctp")
IN, OUT, POST = f"{PREFIX}IN", f"{PREFIX}OUT", f"{PREFIX}POST"
INSIDE, ALL = f"{PREFIX}INSIDE", f"{PREFIX}ALL"
PORTS_INSIDE, PORTS = f"{PREFIX}PORTS-INSIDE", f"{PREFIX}PORTS"
OFF_NODE, HAIRPINS = f"{PREFIX}OFF-NODE", f"{PREFIX}HAIRPINS"
REFUSE, RANGES, STRAYS = f"{PREFIX}REFUSE", f"{PREFIX}RANGES", f"{PREFIX}STRAYS"
NEW_IN, NEW_OUT = f"{PREFIX}NEW-IN", f"{PREFIX}NEW-OUT"
NAT, FILTER, MANGLE = "nat", "filter", "mangle"

# Ranks: where rules stand in a chain.
_FIRST, _BUCKETS, _NODE, _REST, _LAST = 1, 3, 5, 7, 9
_NEW = "-m conntrack --ctstate NEW"


def fixed(place: Place, fully_random: bool = True, translated: bool = True) -> Objects:
    """What is there whatever the frontends are. ``fully_random``: whether MASQUERADE knows how. ``translated`` False:
    virtual servers lead to endpoints, and connection tracking does not see that they did."""
    objects: dict[ObjectKey, Any] = {}
    bit = f"{1 << place.masquerade_bit:#x}"
    mark, clear = _mark(bit), f"-j MARK --set-xmark 0x0/{bit}"
    for table, hook, condition, chain in (
        (NAT, "PREROUTING", "", IN),
        (NAT, "OUTPUT", "", OUT),
        (NAT, "POSTROUTING", "", POST),
        (MANGLE, "PREROUTING", f"{_NEW} ", RANGES),
        (MANGLE, "OUTPUT", f"{_NEW} ", RANGES),
        (FILTER, "INPUT", f"{_NEW} ", NEW_IN),
        (FILTER, "FORWARD", f"{_NEW} ", NEW_IN),
        (FILTER, "OUTPUT", f"{_NEW} ", NEW_OUT),
        (FILTER, "FORWARD", "-m conntrack --ctstate INVALID ", STRAYS),
    ):
        put(objects, Name(table, hook, _FIRST, f"meshlib {chain}"), f"{condition}-j {chain}")
    for each in place.pod_ranges:
        put(objects, Name(NAT, IN, _FIRST, f"pods {each}"), f"-s {each} -j {INSIDE}")
        put(objects, Name(FILTER, NEW_IN, _FIRST, f"pods {each}"), f"-s {each} -j {INSIDE}")
        put(objects, Name(NAT, OFF_NODE, _FIRST, f"pods {each}"), f"-s {each} -j RETURN")
        # Answers beyond the window, say, would reach the client from an address that it never called.
        put(objects, Name(FILTER, STRAYS, _FIRST, f"pods {each}"), f"-s {each} -j DROP")
    put(objects, Name(NAT, IN, _LAST, "all"), f"-j {ALL}")
    # The node on its way inside is masqueraded: its address was chosen for the way to the virtual one.
    put(objects, Name(NAT, OUT, _FIRST, "the node"), mark, f"-j {INSIDE}", clear)
    put(objects, Name(NAT, OUT, _LAST, "all"), f"-j {ALL}")
    put(objects, Name(NAT, OFF_NODE, _LAST, "others"), "-m addrtype --src-type LOCAL -j RETURN", mark)
    put(
        objects,
        Name(NAT, POST, _FIRST, "endpoints to themselves"),
        f"{'-m conntrack --ctstate DNAT ' if translated else ''}-j {HAIRPINS}",
    )
    fully = " --random-fully" if fully_random else ""
    unmarked = f"-m mark ! --mark {bit}/{bit} -j RETURN"
    put(objects, Name(NAT, POST, _LAST, "masquerade"), unmarked, clear, f"-j MASQUERADE{fully}")
    put(objects, Name(FILTER, NEW_IN, _LAST, "all"), f"-j {ALL}")
    put(objects, Name(FILTER, NEW_OUT, _FIRST, "the node"), f"-j {INSIDE}")
    put(objects, Name(FILTER, NEW_OUT, _LAST, "all"), f"-j {ALL}")
    unreachable = "icmp-port-unreachable" if place.family == 4 else "icmp6-port-unreachable"
    put(
        objects,
        Name(FILTER, REFUSE, _FIRST, "refuse"),
        "-p tcp -j REJECT --reject-with tcp-reset",
        f"-p udp -j REJECT --reject-with {unreachable}",
        f"-p sctp -j REJECT --reject-with {unreachable}",
    )
    for table in (NAT, FILTER):
        for address in place.node_addresses:
            for chain, ports in ((INSIDE, PORTS_INSIDE), (ALL, PORTS)):
                put(objects, Name(table, chain, _NODE, f"node ports {address}"), f"-d {address} -j {ports}")
    for each in place.service_ranges:
        others = "-m addrtype ! --dst-type LOCAL"  # served by virtual servers of another proxy
        unused = [f"-d {each} -p {transport} {others} -j DROP" for transport in _TRANSPORTS]
        put(objects, Name(FILTER, ALL, _REST, f"addresses of no Service {each}"), *unused)
    return objects


def translate(frontend: Frontend, place: Place, beside: Target | None = None) -> Objects:
    """What one frontend needs. ``beside``: a virtual server has the flows that are forwarded, and this one those from
    inside, where they go elsewhere."""
    objects: dict[ObjectKey, Any] = {}
    key = frontend.key
    bit = f"{1 << place.masquerade_bit:#x}"
    marks: list[str] = []
    if frontend.masquerade is Masquerade.ALWAYS:
        marks = [_mark(bit)]
    elif frontend.masquerade is Masquerade.OFF_NODE and place.pod_ranges:
        marks = [f"-j {OFF_NODE}"]
    if frontend.inside is not None:
        route = frontend.inside
        if beside is not None and route.action is Action.FORWARD:
            route = Route(Action.FORWARD, (beside,))
        _serve(objects, frontend, route, True, marks)
    if beside is not None and (frontend.inside or frontend.route).action is Action.DROP:
        _drop_early(objects, frontend, place)
    if beside is not None and frontend.route.action is Action.FORWARD and frontend.route.targets:
        _pass(objects, frontend, marks)
    else:
        _serve(objects, frontend, frontend.route, False, marks)
    if key.address and frontend.kind is not FrontendKind.NODE_PORT:
        if key.address != place.source and key.address not in place.node_addresses:
            _protect(objects, frontend)
        if frontend.kind is FrontendKind.LOAD_BALANCER and frontend.source_ranges is not None:
            _restrict(objects, frontend)
    return objects


def translate_hairpin(hairpin: Hairpin) -> Objects:
    """What a local endpoint needs to reach itself."""
    objects: dict[ObjectKey, Any] = {}
    address, transport = hairpin.address, hairpin.protocol.lower()
    match = f"-s {address} -d {address} -p {transport} -m {transport} --dport {hairpin.port}"
    words = f"{transport} {address} {hairpin.port}"
    put(objects, Name(NAT, HAIRPINS, _FIRST, words), f"{match} -j MASQUERADE")
    return objects


def _mark(bit: str) -> str:
    return f"-j MARK --set-xmark {bit}/{bit}"


def _serve(
    objects: dict[ObjectKey, Any], frontend: Frontend, route: Route, inside: bool, marks: Sequence[str]
) -> None:
    """One of the two ways: what is translated in nat, and what is said in filter about the rest."""
    match = _match(frontend.key)
    words = f"{frontend.key} {frontend.owner}"
    lane = _bucket(objects, NAT, frontend.key, inside)
    if route.action is Action.FORWARD and route.targets:
        chain = _endpoints(objects, frontend, route)
        texts = [f"{match} {each}" for each in (*marks, f"-j {chain}")]
        put(objects, Name(NAT, lane, _FIRST, words), *texts)
        return
    # Settled: what others translate does not concern it any more.
    put(objects, Name(NAT, lane, _FIRST, words), f"{match} -j ACCEPT")
    verdict = "DROP" if route.action is Action.DROP else REFUSE
    if verdict == REFUSE and frontend.kind is FrontendKind.CLUSTER_IP and not inside:
        return  # as all other ports of its address
    put(
        objects,
        Name(FILTER, _bucket(objects, FILTER, frontend.key, inside), _FIRST, words),
        f"{match} -j {verdict}",
    )


def _pass(objects: dict[ObjectKey, Any], frontend: Frontend, marks: Sequence[str]) -> None:
    """What goes on as it is: settled in nat, and none of the other ports of its address in filter."""
    match = _match(frontend.key)
    words = f"{frontend.key} {frontend.owner}"
    lane = _bucket(objects, NAT, frontend.key, False)
    put(objects, Name(NAT, lane, _FIRST, words), *(f"{match} {each}" for each in (*marks, "-j ACCEPT")))
    if frontend.key.address:
        lane = _bucket(objects, FILTER, frontend.key, False)
        put(objects, Name(FILTER, lane, _FIRST, words), f"{match} -j RETURN")


def _drop_early(objects: dict[ObjectKey, Any], frontend: Frontend, place: Place) -> None:
    """What the node itself sends reaches a virtual server, which refuses it, before it comes to filter."""
    key = frontend.key
    addresses = (key.address,) if key.address else place.node_addresses
    texts = [f"{_match(key._replace(address=address))} -j DROP" for address in addresses]
    if texts:
        put(objects, Name(MANGLE, RANGES, _FIRST, f"dropped {key} {frontend.owner}"), *texts)


def _endpoints(objects: dict[ObjectKey, Any], frontend: Frontend, route: Route) -> str:
    """The chain that picks one of the endpoints, each as likely as its weight says."""
    seconds, owner = frontend.affinity_seconds, frontend.owner
    transport = frontend.key.protocol.lower()
    chain = f"{PREFIX}S-{_digest(str(owner), seconds, route.targets, transport)}"
    texts = []
    left = sum(target.weight for target in route.targets)
    places = [_with_port(target.address, target.port) for target in route.targets]
    if seconds:
        for place in places:
            known = f"-m recent --name {_list(owner, place)} --update --seconds {seconds} --reap --rsource"
            texts.append(f"-p {transport} {known} -j DNAT --to-destination {place}")
    for target, place in zip(route.targets, places, strict=True):
        chance = (
            ""
            if target.weight >= left
            else f"-m statistic --mode random --probability {target.weight / left:.11f} "
        )
        remember = f"-m recent --name {_list(owner, place)} --set --rsource " if seconds else ""
        texts.append(f"-p {transport} {chance}{remember}-j DNAT --to-destination {place}")
        left -= target.weight
    put(objects, Name(NAT, chain, _FIRST, str(owner)), *texts)
    return chain


def _protect(objects: dict[ObjectKey, Any], frontend: Frontend) -> None:
    """The other ports of an address where nothing but Services lives."""
    address = frontend.key.address
    chain = _bucket(objects, FILTER, frontend.key, False)
    if frontend.kind is FrontendKind.CLUSTER_IP:
        put(objects, Name(FILTER, chain, _LAST, f"other ports of {address}"), f"-d {address} -j {REFUSE}")
    else:
        local = f"-d {address} -m addrtype --dst-type LOCAL -j {REFUSE}"
        put(objects, Name(FILTER, chain, _LAST, f"host ports behind {address}"), local)


def _restrict(objects: dict[ObjectKey, Any], frontend: Frontend) -> None:
    ranges = frontend.source_ranges or ()
    if any(ip_network(each, strict=False).prefixlen == 0 for each in ranges):
        return
    chain = f"{PREFIX}R-{_digest(frontend.key)}"
    words = f"{frontend.key} {frontend.owner}"
    texts = [*(f"-s {each} -j RETURN" for each in ranges), "-j DROP"]
    put(objects, Name(MANGLE, chain, _FIRST, words), *texts)
    put(objects, Name(MANGLE, RANGES, _FIRST, words), f"{_match(frontend.key)} -j {chain}")


def _bucket(objects: dict[ObjectKey, Any], table: str, key: FrontendKey, inside: bool) -> str:
    """The chain for a frontend's rules, with the rule that leads there."""
    letter = "I" if inside else "A"
    if not key.address:
        first = key.port // 64 * 64
        transport = key.protocol.lower()
        chain = f"{PREFIX}P{letter}-{transport}-{first}"
        match = f"-p {transport} -m {transport} --dport {first}:{first + 63}"
        put(
            objects,
            Name(table, PORTS_INSIDE if inside else PORTS, _BUCKETS, f"{transport} {first:05}"),
            f"{match} -j {chain}",
        )
        return chain
    network = ip_network((key.address, 120 if ":" in key.address else 24), strict=False)
    chain = f"{PREFIX}{letter}-{_digest(network)}"
    put(objects, Name(table, INSIDE if inside else ALL, _BUCKETS, str(network)), f"-d {network} -j {chain}")
    return chain


def _match(key: FrontendKey) -> str:
    transport = key.protocol.lower()
    ports = f"-p {transport} -m {transport} --dport {key.port}"
    return f"-d {key.address} {ports}" if key.address else ports


def _with_port(address: str, port: int) -> str:
    return f"[{ip_address(address)}]:{port}" if ":" in address else f"{address}:{port}"


def _list(owner: PortKey, place: str) -> str:
    """The list of clients that went to an endpoint of a port of a Service."""
    return f"{PREFIX}{_digest(owner.service, owner.port, owner.protocol, place)}"


def _digest(*parts: object) -> str:
    return hashlib.blake2b("\0".join(map(str, _flat(parts))).encode(), digest_size=8).hexdigest()


def _flat(parts: Iterable[object]) -> Iterable[object]:
    for part in parts:
        if isinstance(part, tuple) and not hasattr(part, "_fields"):
            yield from _flat(part)
        else:
            yield part
