"""The companion table, with ordinary listeners on local virtual addresses in place of virtual servers. Real packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshlib.agent.backends.nftables.companion_table import CompanionTable
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.desired import FrontendKey, Masquerade
from tests.kernel.lab import wanted
from tests.kernel.lab.lab import HOST_PORT, Lab, Programmed
from tests.kernel.lab.net import NODE, OUT, POD1, POD2, of
from tests.kernel.lab.prober import Refused
from tests.kernel.lab.wanted import CLUSTER_IP, DROP, LB_IP, REJECT, cluster_ip, load_balancer, to

PRIVATE = "10.77.99.99"


def _inside(key: FrontendKey, family: int) -> FrontendKey:
    return key._replace(address=of(family, PRIVATE))


@pytest.fixture
def beside(lab: Lab, family: int) -> Iterator[Programmed]:
    """The lab's node with the companion table of a family, and its virtual addresses made local."""
    table = CompanionTable(family, _inside, connect=lambda: lab.open(TransactionSocket))
    addresses = [of(family, each) for each in (CLUSTER_IP, LB_IP, PRIVATE)]
    prefix = "32" if family == 4 else "128"
    routes = [f"local {each}/{prefix} dev lo table local src {of(family, NODE)}" for each in addresses]
    lab.network.ip("node", *(f"route add {route}" for route in routes))
    try:
        yield Programmed(table, lab.place(family))
    finally:
        table.cleanup()
        table.close()
        lab.network.ip("node", *(f"route del {route}" for route in routes))
        lab.forget_flows()


@pytest.mark.acceptance(38, 39, 55, 74, 77)
def test_beside_virtual_servers(lab: Lab, beside: Programmed, family: int) -> None:
    """What is forwarded reaches the virtual server, past host ports of others; the rest is decided by the table."""
    place = beside.desired.place
    cluster, balancer, private = (of(family, each) for each in (CLUSTER_IP, LB_IP, PRIVATE))
    route = to(family, POD2)
    listeners = [lab.serve("node", "TCP", each, 80) for each in (cluster, balancer, private)]
    host_port = f"""table inet hostport {{
        chain pre {{
            type nat hook prerouting priority -100
            tcp dport 80 dnat {"ip" if family == 4 else "ip6"} to {of(family, POD1)}
        }}
    }}"""
    lab.network.nft("node", host_port)
    try:
        beside.program(
            wanted.desired(
                place,
                cluster_ip(family, route, masquerade=Masquerade.NEVER),
                cluster_ip(family, REJECT, port=81),
                load_balancer(family, DROP, inside=route, masquerade=Masquerade.NEVER),
                load_balancer(family, route, port=82, source_ranges=()),
            )
        )
        for space in ("p1", "out", "node"):
            assert lab.ask(space, cluster, 80).endpoint == cluster, space
            assert lab.probe(space, cluster, 81) == Refused(), space
            assert lab.probe(space, cluster, HOST_PORT) == Refused(), space
            assert lab.silent(space, balancer, 82), space
        assert lab.ask("p1", balancer, 80).endpoint == private
        assert lab.ask("node", balancer, 80).endpoint == private
        assert lab.silent("out", balancer, 80)
        assert lab.ask("out", cluster, 80).source == of(family, OUT)
    finally:
        lab.network.run("node", "nft delete table inet hostport")
        for listener in listeners:
            lab.servers.stop(listener)


@pytest.mark.acceptance(83)
def test_exact_affinity_is_the_tables(lab: Lab, beside: Programmed, family: int) -> None:
    """Where IPVS persistence would not do, the table forwards by itself, before a virtual server would."""
    cluster = of(family, CLUSTER_IP)
    listener = lab.serve("node", "TCP", cluster, 80)
    try:
        beside.program(
            wanted.desired(
                beside.desired.place,
                cluster_ip(family, to(family, POD1, POD2), affinity_seconds=60, exact_affinity=True),
            )
        )
        assert (
            len(
                {lab.ask("out", cluster, 80).endpoint for _ in range(10)}
                & {of(family, POD1), of(family, POD2)}
            )
            == 1
        )
    finally:
        lab.servers.stop(listener)
