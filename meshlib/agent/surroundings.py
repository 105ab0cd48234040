"""The netfilter around us: other people's base chains that would stop what our rules let through. Read only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from meshlib.agent.netlink.messages import (
    Malformed,
    Message,
    Request,
    network_number,
    parse_attributes,
    string,
)
from meshlib.agent.netlink.socket import NETFILTER, NetlinkSocket

_GET_CHAINS = 10 << 8 | 4
#: Families of nf_tables whose chains see our packets: IPv4, IPv6, both.
_FAMILIES = {2: "ip", 10: "ip6", 1: "inet"}
_HOOKS = {1: "input", 2: "forward", 3: "output"}
_DROP = 0
#: How the chains of known NetworkPolicy implementations begin.
_POLICIES = {
    "cali-": "Calico",
    "KUBE-ROUTER-": "kube-router",
    "KUBE-NWPLCY-": "kube-router",
    "WEAVE-NPC": "Weave Net",
    "CILIUM_": "Cilium",
    "KUBE-POD-FW-": "kube-router",
    "GALAXY-": "Galaxy",
}


class Chain(NamedTuple):
    """One chain. ``hook`` "" for one that is only called by others."""

    family: str
    table: str
    name: str
    hook: str
    drops: bool  #: what nobody accepts is dropped


def read_chains(netlink: NetlinkSocket) -> list[Chain]:
    """Every chain of the namespace. Raises OSError; EPERM without CAP_NET_ADMIN."""
    return list(parse_chains(netlink.dump(Request(_GET_CHAINS, 0, bytes(4)))))


def parse_chains(messages: Iterable[Message]) -> Iterable[Chain]:
    """Those of a dump that are of families we know. Pure."""
    for message in messages:
        if len(message.payload) < 4:
            raise Malformed(f"a chain of {len(message.payload)} bytes")
        family = _FAMILIES.get(message.payload[0])
        values = dict(parse_attributes(message.payload, 4))
        if family is None or 1 not in values or 3 not in values:
            continue
        hook = ""
        if 4 in values:
            where = dict(parse_attributes(values[4]))
            hook = _HOOKS.get(network_number(where[1], 4), "other") if 1 in where else "other"
        drops = 5 in values and network_number(values[5], 4) == _DROP
        yield Chain(family, string(values[1]), string(values[3]), hook, bool(hook) and drops)


def dropping(chains: Iterable[Chain]) -> list[Chain]:
    """Base chains at input or forward that drop by policy: our accepting cannot overrule them. Pure."""
    return [each for each in chains if each.drops and each.hook in ("input", "forward")]


def obstacles(connect: Callable[[int], NetlinkSocket]) -> list[str]:
    """What of other people's rules may stop what ours let through, in words."""
    try:
        with connect(NETFILTER) as netlink:
            found = dropping(read_chains(netlink))
    except (OSError, Malformed) as error:
        return [f"other people's rules cannot be read: {error}"]
    return [f"{each.family} {each.table} {each.name} drops at {each.hook} by policy" for each in found]


def policies(chains: Iterable[Chain]) -> list[str]:
    """Implementations of NetworkPolicy that filter in netfilter, by their chains. Pure."""
    found = {word for each in chains for start, word in _POLICIES.items() if each.name.startswith(start)}
    return sorted(found)
