"""nftables: who is reached from where, with which source address, and who is refused. Real packets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.agent.desired import Masquerade
from tests.kernel.lab import wanted
from tests.kernel.lab.lab import HOST_PORT, PORT, Lab, Programmed
from tests.kernel.lab.net import (
    FAR1,
    FAR2,
    NODE,
    NODE_SECOND,
    OUT,
    POD1,
    POD2,
    POD_RANGE,
    of,
)
from tests.kernel.lab.prober import Answered, Denied, Refused
from tests.kernel.lab.wanted import (
    CLUSTER_IP,
    DROP,
    EXTERNAL_IP,
    LB_IP,
    NODE_PORT,
    REJECT,
    cluster_ip,
    external_ip,
    load_balancer,
    node_port,
    to,
)

Node = Callable[..., Programmed]
#: externalTrafficPolicy Local: the client keeps its address.
LOCAL: dict[str, Any] = {"masquerade": Masquerade.NEVER}


@pytest.mark.acceptance(40, 62, 63, 66, 70, 73, 110, 114)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_every_kind_of_frontend(lab: Lab, node: Node, family: int, protocol: str) -> None:
    """Each client reaches each endpoint through each kind, and the endpoint sees who it should."""
    everywhere = wanted.everywhere(family)
    local, cluster = to(family, POD1, POD2), everywhere
    programmed = node()
    desired = wanted.desired(
        programmed.desired.place,
        cluster_ip(family, everywhere, protocol=protocol),
        external_ip(family, everywhere, protocol=protocol),
        load_balancer(family, everywhere, protocol=protocol),
        node_port(everywhere, protocol=protocol),
        load_balancer(family, local, of_(LB_IP, 1), protocol=protocol, inside=cluster, **LOCAL),
        node_port(local, NODE_PORT + 1, protocol=protocol, inside=cluster, **LOCAL),
        cluster_ip(family, local, of_(CLUSTER_IP, 1), protocol=protocol, masquerade=Masquerade.NEVER),
        cluster_ip(family, everywhere, of_(CLUSTER_IP, 2), protocol=protocol, masquerade=Masquerade.ALWAYS),
    )
    programmed.program(desired)
    lab.check(desired)


def of_(address: str, more: int) -> str:
    """Another address of the same range."""
    head, last = address.rsplit(".", 1)
    return f"{head}.{int(last) + more}"


@pytest.mark.acceptance(35, 38, 39, 55, 76)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_refused_and_dropped(lab: Lab, node: Node, family: int, protocol: str) -> None:
    """Without endpoints refused at once; hidden by a Local policy dropped, but not for those inside."""
    cluster = to(family, FAR1, FAR2)
    programmed = node()
    desired = wanted.desired(
        programmed.desired.place,
        cluster_ip(family, REJECT, protocol=protocol),
        cluster_ip(family, DROP, of_(CLUSTER_IP, 1), protocol=protocol),
        external_ip(family, REJECT, protocol=protocol),
        load_balancer(family, REJECT, protocol=protocol, inside=REJECT, **LOCAL),
        load_balancer(family, DROP, of_(LB_IP, 1), protocol=protocol, inside=cluster, **LOCAL),
        node_port(REJECT, protocol=protocol),
        node_port(DROP, NODE_PORT + 1, protocol=protocol, inside=cluster, **LOCAL),
    )
    programmed.program(desired)
    lab.check(desired)


@pytest.mark.acceptance(40)
def test_policy_changes_on_a_live_service(lab: Lab, node: Node, family: int) -> None:
    """Local keeps the client's address, Cluster does not, and back; an open connection goes on through it all."""
    programmed = node()
    place = programmed.desired.place
    local = wanted.desired(place, load_balancer(family, to(family, POD1), **LOCAL))
    cluster = wanted.desired(place, load_balancer(family, to(family, POD1)))
    vip, out = of(family, LB_IP), of(family, OUT)
    programmed.program(local)
    with lab.flow("out", vip, 80) as flow:
        assert flow.ask().source == out
        programmed.program(cluster)
        assert lab.ask("out", vip, 80).source != out
        programmed.program(local)
        assert lab.ask("out", vip, 80).source == out
        assert flow.ask().source == out


@pytest.mark.acceptance(70)
def test_kind_changes_on_a_live_service(lab: Lab, node: Node, family: int) -> None:
    """A node port comes and goes with the type; the same number in TCP and UDP are two ports."""
    programmed = node()
    place, route = programmed.desired.place, to(family, POD1)
    address = of(family, NODE)
    programmed.program(wanted.desired(place, node_port(route), node_port(route, protocol="UDP")))
    assert lab.ask("out", address, NODE_PORT).endpoint == of(family, POD1)
    assert lab.ask("out", of(family, NODE_SECOND), NODE_PORT, "UDP").endpoint == of(family, POD1)
    programmed.program(wanted.desired(place, cluster_ip(family, route), node_port(route, protocol="UDP")))
    assert lab.probe("out", address, NODE_PORT) == Refused()
    lab.forget_flows()
    assert lab.ask("out", address, NODE_PORT, "UDP").endpoint == of(family, POD1)
    assert lab.ask("p2", of(family, CLUSTER_IP), 80).endpoint == of(family, POD1)


@pytest.mark.acceptance(67, 69)
def test_node_ports_on_the_listed_addresses_only(lab: Lab, node: Node, family: int) -> None:
    """An address that is not listed is not served, nor is loopback; one that is added later is."""
    first, second = of(family, NODE), of(family, NODE_SECOND)
    programmed = node(node_addresses=(first,))
    frontends = [node_port(to(family, POD1)), cluster_ip(family, to(family, POD1))]
    programmed.program(wanted.desired(programmed.desired.place, *frontends))
    loopback = "127.0.0.1" if family == 4 else "::1"
    assert isinstance(lab.probe("out", first, NODE_PORT), Answered)
    assert lab.probe("out", second, NODE_PORT) == Refused()
    assert lab.probe("node", loopback, NODE_PORT) == Refused()
    assert lab.probe("p1", of(family, CLUSTER_IP), NODE_PORT) == Refused()
    plan = programmed.program(wanted.desired(lab.place(family, node_addresses=(first, second)), *frontends))
    assert len(plan) == 1
    assert isinstance(lab.probe("out", second, NODE_PORT), Answered)


@pytest.mark.acceptance(74, 75)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_source_ranges(lab: Lab, node: Node, family: int, protocol: str) -> None:
    """Only listed networks pass, at the load balancer's address alone; overlapping ranges are no trouble."""
    route = to(family, POD1)
    programmed = node()
    prefix = "32" if family == 4 else "128"
    only_out = (f"{of(family, OUT)}/{prefix}", of(family, "10.0.2.0/24"))
    only_pods = (of(family, POD_RANGE), f"{of(family, POD1)}/{prefix}")
    with_node = (f"{of(family, NODE)}/{prefix}",)
    everybody = ("0.0.0.0/0",) if family == 4 else ("::/0",)
    desired = wanted.desired(
        programmed.desired.place,
        load_balancer(family, route, protocol=protocol, source_ranges=only_out),
        load_balancer(family, route, of_(LB_IP, 1), protocol=protocol, source_ranges=only_pods),
        load_balancer(
            family, route, of_(LB_IP, 2), protocol=protocol, source_ranges=with_node, inside=route, **LOCAL
        ),
        load_balancer(family, route, of_(LB_IP, 3), protocol=protocol, source_ranges=()),
        load_balancer(family, route, of_(LB_IP, 4), protocol=protocol, source_ranges=everybody),
        cluster_ip(family, route, protocol=protocol, source_ranges=only_out),
        node_port(route, protocol=protocol, source_ranges=only_out),
    )
    programmed.program(desired)
    lab.check(desired)
    wider = wanted.desired(
        programmed.desired.place,
        load_balancer(family, route, protocol=protocol, source_ranges=(of(family, "10.0.0.0/16"), *only_out)),
    )
    programmed.program(wider)
    lab.check(wider)


@pytest.mark.acceptance(77)
def test_the_host_behind_a_virtual_address(lab: Lab, node: Node, family: int) -> None:
    """Ports of the host are out of reach through virtual addresses, even local ones; a ClusterIP's other ports refuse,
    unused ClusterIPs are silent, and the node's own addresses are left alone."""
    programmed = node()
    route = to(family, POD1)
    programmed.program(
        wanted.desired(
            programmed.desired.place,
            cluster_ip(family, route),
            external_ip(family, route),
            external_ip(family, route, NODE),
            node_port(route),
        )
    )
    vip, prefix = of(family, EXTERNAL_IP), "32" if family == 4 else "128"
    source = of(family, NODE)
    lab.network.ip("node", f"route add local {vip}/{prefix} dev lo table local src {source}")
    try:
        for space in ("p1", "out", "node"):
            assert lab.probe(space, vip, HOST_PORT) == Refused(), space
            assert lab.probe(space, of(family, CLUSTER_IP), HOST_PORT) == Refused(), space
            refused = Denied() if space == "node" else Refused()
            assert lab.probe(space, of(family, CLUSTER_IP), HOST_PORT, "UDP") == refused, space
            assert lab.silent(space, of(family, of_(CLUSTER_IP, 5)), 80), space
        assert lab.ask("p1", vip, 80).endpoint == of(family, POD1)
    finally:
        lab.network.ip("node", f"route del local {vip}/{prefix} dev lo table local")
    with lab.flow("out", of(family, NODE), HOST_PORT) as flow:
        assert flow.ask().endpoint in ("0.0.0.0", "::")
    assert lab.ask("out", of(family, NODE), 80).endpoint == of(family, POD1)


@pytest.mark.acceptance(78)
def test_service_range_changes(lab: Lab, node: Node, family: int) -> None:
    """A range that is added at run time is silent from then on, one that is taken away is not."""
    programmed = node(service_ranges=())
    programmed.program(wanted.desired(programmed.desired.place))
    address = of(family, OUT)
    assert lab.probe("p1", address, 80) == Refused()
    programmed.program(wanted.desired(lab.place(family, service_ranges=(of(family, "10.0.2.0/24"),))))
    assert lab.silent("p1", address, 80)
    programmed.program(wanted.desired(lab.place(family, service_ranges=())))
    assert lab.probe("p1", address, 80) == Refused()


def test_services_of_another_proxy_in_the_same_range(lab: Lab, node: Node, family: int) -> None:
    """Whether it translates, after us, or has its addresses on the host: they are not unused, as those beside them."""
    programmed = node()
    programmed.program(wanted.desired(programmed.desired.place, cluster_ip(family, to(family, POD1))))
    translated, local = (of(family, of_(CLUSTER_IP, count)) for count in (20, 21))
    ip, prefix = ("ip", 32) if family == 4 else ("ip6", 128)
    rule = f"{ip} daddr {translated} tcp dport 80 dnat to {_at(POD2, family)};"
    hooks = [f"type nat hook {hook} priority -100; {rule}" for hook in ("prerouting", "output")]
    lab.network.nft("node", f"table {ip} other {{ chain pre {{ {hooks[0]} }}\nchain out {{ {hooks[1]} }}\n}}")
    route = f"local {local}/{prefix} dev lo table local"
    lab.network.ip("node", f"route add {route}")
    listener = lab.serve("node", "TCP", local, 80)
    try:
        for space in ("p1", "out", "node"):
            assert lab.ask(space, translated, 80).endpoint == of(family, POD2), space
            assert lab.ask(space, local, 80).endpoint == local, space
            assert lab.silent(space, of(family, of_(CLUSTER_IP, 22)), 80), space
    finally:
        lab.servers.stop(listener)
        lab.network.ip("node", f"route del {route}")
        lab.network.nft("node", f"delete table {ip} other")


def _at(address: str, family: int) -> str:
    return f"{address}:{PORT}" if family == 4 else f"[{of(family, address)}]:{PORT}"


@pytest.mark.acceptance(61, 66)
def test_the_node_talks_from_a_virtual_address(lab: Lab, node: Node, family: int) -> None:
    """A device of the node has the addresses, as kube-proxy's in ipvs mode: an endpoint elsewhere sees the node's."""
    programmed = node()
    route = to(family, FAR1)
    programmed.program(
        wanted.desired(programmed.desired.place, cluster_ip(family, route), external_ip(family, route))
    )
    addresses = [of(family, each) for each in (CLUSTER_IP, EXTERNAL_IP)]
    device = [f"address {{}} {each}/{32 if family == 4 else 128} dev lo" for each in addresses]
    lab.network.ip("node", *(each.format("add") for each in device))
    try:
        for each in addresses:
            answer = lab.ask("node", each, 80)
            assert (answer.endpoint, answer.source in addresses) == (of(family, FAR1), False)
    finally:
        lab.network.ip("node", *(each.format("del") for each in device))


@pytest.mark.acceptance(113)
def test_a_narrower_set(lab: Lab, node: Node, family: int) -> None:
    """When the chosen set shrinks to one zone's endpoints only they are reached, and the others when it grows again."""
    programmed = node()
    place = programmed.desired.place
    for route in (
        to(family, POD1, POD2),
        to(family, FAR1),
        wanted.everywhere(family),
        REJECT,
        to(family, FAR2),
    ):
        desired = wanted.desired(place, cluster_ip(family, route), node_port(route))
        programmed.program(desired)
        lab.check(desired)


@pytest.mark.acceptance(111)
def test_services_come_and_go(lab: Lab, node: Node, family: int) -> None:
    """Many times over, with nothing left behind."""
    programmed = node()
    empty = wanted.desired(programmed.desired.place)
    programmed.program(empty)
    before = programmed.backend.dump(family)
    full = wanted.desired(
        programmed.desired.place,
        cluster_ip(family, wanted.everywhere(family), affinity_seconds=10),
        load_balancer(
            family, to(family, POD1), inside=wanted.everywhere(family), source_ranges=(of(family, POD_RANGE),)
        ),
        node_port(wanted.everywhere(family)),
    )
    for _ in range(5):
        programmed.program(full)
        assert lab.probe("p1", of(family, CLUSTER_IP), 80) != Refused()
        programmed.program(empty)
        assert programmed.backend.dump(family) == before


@pytest.mark.acceptance(61)
def test_pod_ranges_not_known(lab: Lab, node: Node, family: int) -> None:
    """Then nothing is masqueraded for coming from elsewhere, and of those inside only the node is known; hairpins are
    masqueraded all the same."""
    local = to(family, POD1, POD2)
    programmed = node(pod_ranges=())
    desired = wanted.desired(
        programmed.desired.place,
        cluster_ip(family, local),
        cluster_ip(family, local, of_(CLUSTER_IP, 1), masquerade=Masquerade.ALWAYS),
        load_balancer(family, DROP, inside=local, **LOCAL),
    )
    programmed.program(desired)
    lab.check(desired)


@pytest.mark.acceptance(64, 65)
def test_the_mark(lab: Lab, node: Node, family: int) -> None:
    """Any bit can be ours; the others pass as they were, and ours is gone when the packet leaves."""
    theirs = 0x80004001
    programmed = node(masquerade_bit=5)
    programmed.program(wanted.desired(programmed.desired.place, load_balancer(family, to(family, POD1))))
    vip = f"{'ip' if family == 4 else 'ip6'} daddr {of(family, LB_IP)}"
    lab.network.nft(
        "node",
        f"""table inet watch {{
            chain before {{
                type filter hook prerouting priority -150
                {vip} meta mark set {theirs:#x}
            }}
            chain marked {{
                type filter hook forward priority 0
                meta mark {theirs | 1 << 5:#x} counter
            }}
            chain after {{
                type filter hook postrouting priority 200
                meta mark {theirs:#x} counter
            }}
        }}""",
    )
    try:
        assert lab.ask("out", of(family, LB_IP), 80).source == of(family, NODE)
        counted = lab.network.run("node", "nft list table inet watch")
    finally:
        lab.network.run("node", "nft delete table inet watch")
    # The first packet carries our bit as far as it is needed; later ones have their translation already.
    assert "packets 1 " in counted.split("chain after")[0]
    assert "packets 0 " not in counted.split("chain after")[1]
