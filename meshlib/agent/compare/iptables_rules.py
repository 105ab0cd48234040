"""kube-proxy's rules as ``iptables-save`` prints them, projected. Pure.

A rule of KUBE-SERVICES names an address and a port and leads, through chains of the Service, to chains of endpoints
that translate to one address each. Both the chains of 1.20 and those of newer versions are followed: whatever leads on
is followed, only what translates counts.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from meshlib.agent.compare.projection import Endpoints, Projection
from meshlib.agent.desired import FrontendKey
from meshlib.errors import MeshError

#: From here all frontends are found; node ports have a chain of their own, without addresses.
SERVICES, NODE_PORTS = "KUBE-SERVICES", "KUBE-NODEPORTS"
_OWN, _RANGES = "KUBE-", "KUBE-FW-"
#: Chains that mark or filter: none leads to an endpoint of the frontend itself.
_ASIDE = frozenset({"KUBE-MARK-MASQ", "KUBE-MARK-DROP", SERVICES, NODE_PORTS})


class Unreadable(MeshError):
    """Text that is not what iptables-save prints for a proxy."""


@dataclass(slots=True)
class _Rule:
    address: str = ""
    protocol: str = ""
    port: int = 0
    target: str = ""
    to: tuple[str, int] | None = None
    negated: bool = False
    from_source: bool = False


@dataclass(slots=True)
class _Chains:
    rules: dict[str, list[_Rule]] = field(default_factory=dict)

    def endpoints(self, chain: str, seen: frozenset[str] = frozenset()) -> Endpoints:
        """What a chain may lead to. A loop ends where it began."""
        found: set[tuple[str, int]] = set()
        for rule in self.rules.get(chain, ()):
            if rule.target == "DNAT" and rule.to is not None:
                found.add(rule.to)
            elif self._leads_on(chain, rule) and rule.target not in seen:
                found |= self.endpoints(rule.target, seen | {chain})
        return frozenset(found)

    def _leads_on(self, chain: str, rule: _Rule) -> bool:
        # What is for pods' sources only (the short circuit of a Local policy) is not what others reach; in the chain
        # of source ranges each of them leads there.
        for_all = not rule.from_source or chain.startswith(_RANGES)
        return rule.target.startswith(_OWN) and rule.target not in _ASIDE and for_all


def project(text: str, node_addresses: Iterable[str], family: int) -> Projection:
    """``text``: of ``iptables-save`` (or ip6tables-save), all tables. Node ports are told at ``node_addresses``.
    Raises Unreadable."""
    chains = _read(text)
    found: Projection = {}
    addresses = [each for each in node_addresses if ip_address(each).version == family]
    for chain in (SERVICES, NODE_PORTS):
        for rule in chains.rules.get(chain, ()):
            if not rule.port or rule.negated or rule.target in _ASIDE:
                continue
            forwards = rule.target.startswith(_OWN)
            if not forwards and rule.target not in ("REJECT", "DROP"):
                continue
            endpoints = chains.endpoints(rule.target) if forwards else frozenset()
            for address in (rule.address,) if rule.address else addresses:
                key = FrontendKey(rule.protocol, address, rule.port)
                # Several rules of one frontend (masquerade, source ranges, then the Service) add up.
                found[key] = found.get(key, frozenset()) | endpoints
    return found


def _read(text: str) -> _Chains:
    chains = _Chains()
    for line in text.splitlines():
        if line.startswith("-A KUBE-"):
            try:
                words = shlex.split(line)
                rule = _rule(words[2:])
            except ValueError as error:
                raise Unreadable(f"a rule that is not understood ({error}): {line!r:.200}") from None
            chains.rules.setdefault(words[1], []).append(rule)
    return chains


def _rule(words: list[str]) -> _Rule:
    rule = _Rule()
    follow: Iterator[str] = iter(words)
    before = ""
    for word in follow:
        if word in ("-d", "-s", "--dport", "-p", "-j", "-g", "--to-destination", "--dst-type", "--comment"):
            value = next(follow, "")
            if before == "!":
                rule.negated = rule.negated or word in ("-d", "--dport")
            elif word == "-d":
                network = ip_network(value, strict=False)
                rule.address = str(network.network_address) if network.num_addresses == 1 else ""
            elif word == "-s":
                rule.from_source = True
            elif word == "--dport" and value.isdigit():
                rule.port = int(value)
            elif word == "-p":
                rule.protocol = value.upper()
            elif word in ("-j", "-g"):
                rule.target = value
            elif word == "--to-destination":
                rule.to = _split(value)
        elif word == "--src-type":
            rule.from_source = True
        before = word
    return rule


def _split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return str(ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
