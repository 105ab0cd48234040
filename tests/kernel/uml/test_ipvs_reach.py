"""The differential in the guest: ipvs, with chains of iptables beside it, gives the same table of reachability as
iptables alone; what iptables gives is compared with nftables on the host (tests/kernel/test_same_reach.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from meshlib.agent.backends.base import Backend
from meshlib.agent.backends.iptables import IptablesBackend
from meshlib.agent.backends.iptables.companion import IptablesCompanion
from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.desired import Desired, Masquerade
from meshlib.agent.netlink.socket import NetlinkSocket
from meshlib.agent.objects import Operation, Verb
from tests.kernel.lab import wanted
from tests.kernel.lab.lab import PORT, Lab, Programmed
from tests.kernel.lab.net import FAR1, NODE, OUT, POD1, POD2
from tests.kernel.lab.observed import Table, observed
from tests.kernel.lab.prober import SILENCE, Answered, Denied, Refused, Silent
from tests.kernel.lab.runs import Runs
from tests.kernel.lab.snapshots import NAMES, snapshot
from tests.kernel.lab.wanted import (
    CLUSTER_IP,
    LB_IP,
    NODE_PORT,
    REJECT,
    cluster_ip,
    load_balancer,
    node_port,
    to,
)

FLAVOURS = ("-legacy",)  # this kernel's nf_tables has no IPv4


@pytest.fixture(scope="module")
def guest_lab() -> Iterator[Lab]:
    """The lab's network, in the guest."""
    with Lab() as building:
        building.network.sysctl("node", "net/ipv4/vs/conntrack", 1)
        yield building


def _ipvs(lab: Lab) -> IpvsBackend:
    private = PrivateAddresses()
    return IpvsBackend(
        companion=IptablesCompanion(4, private.key, Runs(lab), FLAVOURS),
        private=private,
        connect=lambda protocol: lab.open(lambda: NetlinkSocket(protocol)),
        drain_seconds=0.0,
    )


def _table(lab: Lab, backend: Backend, desired: Desired) -> Table:
    """Programmed, looked at, and everything away again."""
    Programmed(backend, desired.place).program(desired)
    try:
        return observed(lab, desired)
    finally:
        _remove(backend, desired.place.family)
        lab.forget_flows()


def _remove(backend: Backend, family: int) -> None:
    there = backend.dump(family)
    order = sorted(there, key=lambda key: -backend.kinds.index(key.kind))
    assert not backend.apply(tuple(Operation(Verb.REMOVE, key, there[key]) for key in order), 0.0)
    assert not backend.dump(family)


@pytest.mark.acceptance(35, 38, 39, 40, 62, 63, 66, 73, 74, 75, 76)
@pytest.mark.parametrize("name", NAMES)
def test_ipvs_and_iptables(guest_lab: Lab, name: str) -> None:
    """One after the other on the same node: not a single cell differs, nor from silence to refusal."""
    lab = guest_lab
    desired = snapshot(name, lab.place(4), "TCP")
    first = _table(lab, IptablesBackend(4, Runs(lab), FLAVOURS), desired)
    with contextlib.closing(_ipvs(lab)) as backend:
        second = _table(lab, backend, desired)
    assert {key: (first[key], second[key]) for key in first if first[key] != second[key]} == {}
    assert len(first) >= 4 * len(desired.frontends)
    kinds = {type(cell) for cell in first.values()}
    assert frozenset in kinds
    if name != "every kind":
        assert kinds & {Silent, Denied, Refused}


@pytest.mark.acceptance(67, 71, 110)
@pytest.mark.parametrize("mode", ["iptables", "ipvs"])
def test_sctp(guest_lab: Lab, mode: str) -> None:
    """Associations through every kind of frontend, with the source that the policy says, and a refusal."""
    lab = guest_lab
    place = lab.place(4)
    servers = [lab.serve(space, "SCTP", pod, PORT) for space, pod in (("p1", POD1), ("far", FAR1))]
    here, far = to(4, POD1), to(4, FAR1)
    desired = wanted.desired(
        place,
        cluster_ip(4, far, protocol="SCTP"),
        cluster_ip(4, REJECT, port=81, protocol="SCTP"),
        node_port(far, protocol="SCTP"),
        load_balancer(4, here, protocol="SCTP", inside=far, masquerade=Masquerade.NEVER),
    )
    ipvs = _ipvs(lab)
    backend: Backend = ipvs if mode == "ipvs" else IptablesBackend(4, Runs(lab), FLAVOURS)
    try:
        Programmed(backend, place).program(desired)

        def ask(space: str, source: str, address: str, port: int) -> tuple[str, str]:
            # Bound to one address, or an association would name all that its host has, past the translation.
            found = lab.probe(space, address, port, "SCTP", source=source)
            assert isinstance(found, Answered), (space, address, found)
            return found.endpoint, found.source

        for address, port in ((CLUSTER_IP, 80), (NODE, NODE_PORT)):
            assert ask("out", OUT, address, port) == (FAR1, NODE)
        assert ask("p2", POD2, CLUSTER_IP, 80) == (FAR1, POD2)
        assert ask("out", OUT, LB_IP, 80) == (POD1, OUT)
        assert ask("p2", POD2, LB_IP, 80)[0] == FAR1
        refused = lab.probe("out", CLUSTER_IP, 81, "SCTP", source=OUT, patience=SILENCE)
        assert not isinstance(refused, Answered)
    finally:
        _remove(backend, 4)
        ipvs.close()
        for each in servers:
            lab.servers.stop(each)
        lab.forget_flows()
