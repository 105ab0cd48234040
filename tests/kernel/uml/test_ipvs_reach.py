"""The differential in the guest: ipvs, with chains of iptables beside it, gives the same table of reachability as
iptables alone; what iptables gives is compared with nftables on the host (tests/kernel/test_same_reach.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshlib.agent.backends.base import Backend
from meshlib.agent.backends.iptables import IptablesBackend
from meshlib.agent.backends.iptables.companion import IptablesCompanion
from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.desired import Desired
from meshlib.agent.netlink.socket import NetlinkSocket
from meshlib.agent.objects import Operation, Verb
from tests.kernel.lab.lab import Lab, Programmed
from tests.kernel.lab.observed import Table, observed
from tests.kernel.lab.prober import Denied, Refused, Silent
from tests.kernel.lab.runs import Runs
from tests.kernel.lab.snapshots import NAMES, snapshot

FLAVOURS = ("-legacy",)  # this kernel's nf_tables has no IPv4


@pytest.fixture(scope="module")
def guest_lab() -> Iterator[Lab]:
    """The lab's network, in the guest."""
    with Lab() as building:
        building.network.sysctl("node", "net/ipv4/vs/conntrack", 1)
        yield building


def _table(lab: Lab, backend: Backend, desired: Desired) -> Table:
    """Programmed, looked at, and everything away again."""
    Programmed(backend, desired.place).program(desired)
    try:
        return observed(lab, desired)
    finally:
        there = backend.dump(desired.place.family)
        order = sorted(there, key=lambda key: -backend.kinds.index(key.kind))
        plan = tuple(Operation(Verb.REMOVE, key, there[key]) for key in order)
        assert not backend.apply(plan, 0.0)
        assert not backend.dump(desired.place.family)
        lab.forget_flows()


@pytest.mark.acceptance(35, 38, 39, 40, 62, 63, 66, 73, 74, 75, 76)
@pytest.mark.parametrize("name", NAMES)
def test_ipvs_and_iptables(guest_lab: Lab, name: str) -> None:
    """One after the other on the same node: not a single cell differs, nor from silence to refusal."""
    lab = guest_lab
    desired = snapshot(name, lab.place(4), "TCP")
    first = _table(lab, IptablesBackend(4, Runs(lab), FLAVOURS), desired)
    private = PrivateAddresses()
    backend = IpvsBackend(
        companion=IptablesCompanion(4, private.key, Runs(lab), FLAVOURS),
        private=private,
        connect=lambda protocol: lab.open(lambda: NetlinkSocket(protocol)),
        drain_seconds=0.0,
    )
    try:
        second = _table(lab, backend, desired)
    finally:
        backend.close()
    assert {key: (first[key], second[key]) for key in first if first[key] != second[key]} == {}
    assert len(first) >= 4 * len(desired.frontends)
    kinds = {type(cell) for cell in first.values()}
    assert frozenset in kinds
    if name != "every kind":
        assert kinds & {Silent, Denied, Refused}
