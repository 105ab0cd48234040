"""ipvs with the companion table, for kernels that have both: the same table of who reaches whom. Real packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.backends.ipvs.private import PrivateAddresses
from meshlib.agent.backends.nftables.companion_table import CompanionTable
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.desired import Masquerade
from meshlib.agent.netlink.socket import NetlinkSocket
from tests.kernel.lab import wanted
from tests.kernel.lab.lab import Lab, Programmed
from tests.kernel.lab.net import FAR1, FAR2, POD1, POD2, of
from tests.kernel.lab.wanted import DROP, REJECT, cluster_ip, external_ip, load_balancer, node_port, to


@pytest.fixture
def ipvs(lab: Lab, family: int) -> Iterator[Programmed]:
    """The lab's node with ipvs and the companion table of a family."""
    private = PrivateAddresses()
    table = CompanionTable(family, private.key, connect=lambda: lab.open(TransactionSocket))
    backend = IpvsBackend(
        companion=table,
        private=private,
        connect=lambda protocol: lab.open(lambda: NetlinkSocket(protocol)),
    )
    probe = lab.open(backend.probe)
    if not probe.usable:
        pytest.skip(f"this kernel has no IPVS: {probe.reason}")
    lab.network.sysctl("node", "net/ipv4/vs/conntrack", 1)
    programmed = Programmed(backend, lab.place(family))
    try:
        yield programmed
        programmed.program(wanted.desired(lab.place(family)))
    finally:
        table.cleanup()
        backend.close()
        lab.forget_flows()


@pytest.mark.acceptance(38, 39, 40, 55, 62, 63, 66, 73, 76)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_the_same_as_nftables(lab: Lab, ipvs: Programmed, family: int, protocol: str) -> None:
    """Every client finds at every kind of frontend what the model says."""
    everywhere, local, far = wanted.everywhere(family), to(family, POD1, POD2), to(family, FAR1, FAR2)
    desired = wanted.desired(
        ipvs.desired.place,
        cluster_ip(family, everywhere, protocol=protocol),
        cluster_ip(family, REJECT, port=81, protocol=protocol),
        external_ip(family, everywhere, protocol=protocol),
        load_balancer(family, local, inside=everywhere, masquerade=Masquerade.NEVER, protocol=protocol),
        load_balancer(family, DROP, port=81, inside=far, masquerade=Masquerade.NEVER, protocol=protocol),
        load_balancer(family, local, port=82, source_ranges=(of(family, "10.1.0.0/24"),), protocol=protocol),
        node_port(everywhere, protocol=protocol),
    )
    ipvs.program(desired)
    lab.check(desired)
