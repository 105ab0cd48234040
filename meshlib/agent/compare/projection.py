"""Projection: frontend -> endpoints, and the difference between two of them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from meshlib.agent.desired import FrontendKey

Endpoints = frozenset[tuple[str, int]]
#: Addresses and ports with the endpoints that new flows may reach; none: refused or dropped.
Projection = dict[FrontendKey, Endpoints]


@dataclass(frozen=True, slots=True)
class Difference:
    """Theirs against ours. ``elsewhere``: node ports that they serve on addresses of the node that we do not use."""

    same: int = 0
    only_theirs: tuple[FrontendKey, ...] = ()
    only_ours: tuple[FrontendKey, ...] = ()
    other_endpoints: tuple[tuple[FrontendKey, Endpoints, Endpoints], ...] = ()  #: theirs, ours
    elsewhere: int = 0

    def __bool__(self) -> bool:
        return bool(self.only_theirs or self.only_ours or self.other_endpoints)


def difference(
    theirs: Mapping[FrontendKey, Endpoints],
    ours: Mapping[FrontendKey, Endpoints],
    node_ports: Collection[tuple[str, int]] = (),
) -> Difference:
    """``node_ports``: protocol and number of ours. kube-proxy serves them on every local address by default; that is a
    choice of addresses, not another Service."""
    ports = frozenset(node_ports)
    only_theirs = [key for key in theirs if key not in ours]
    elsewhere = [key for key in only_theirs if (key.protocol, key.port) in ports]
    both = sorted(theirs.keys() & ours.keys())
    return Difference(
        same=sum(theirs[key] == ours[key] for key in both),
        only_theirs=tuple(sorted(set(only_theirs).difference(elsewhere))),
        only_ours=tuple(sorted(key for key in ours if key not in theirs)),
        other_endpoints=tuple((key, theirs[key], ours[key]) for key in both if theirs[key] != ours[key]),
        elsewhere=len(elsewhere),
    )
