"""iptables, of both kinds: the reachability that every backend gives; ownership, drift, faults. Real packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshlib.agent.backends.iptables import IptablesBackend
from meshlib.agent.objects import Operation, Verb
from tests.components.process import NotAvailable, leave_out
from tests.kernel.lab import wanted
from tests.kernel.lab.lab import HOST_PORT, Lab, Programmed
from tests.kernel.lab.net import FAR1, FAR2, NODE, POD1, POD2, of
from tests.kernel.lab.prober import Answered, Refused
from tests.kernel.lab.runs import Runs
from tests.kernel.lab.snapshots import NAMES, snapshot
from tests.kernel.lab.wanted import (
    CLUSTER_IP,
    EXTERNAL_IP,
    NODE_PORT,
    REJECT,
    cluster_ip,
    external_ip,
    load_balancer,
    node_port,
    to,
)

Node = Callable[..., Programmed]


@pytest.fixture(params=["-nft", "-legacy"])
def flavour(request: pytest.FixtureRequest) -> str:
    """Through nf_tables, and the kernel's old kind."""
    value: str = request.param
    return value


@pytest.fixture
def runs(lab: Lab) -> Runs:
    """What was run."""
    return Runs(lab)


@pytest.fixture
def backend(lab: Lab, family: int, flavour: str, runs: Runs) -> Iterator[IptablesBackend]:
    """A backend on the lab's node; what it made is removed after the test."""
    made = IptablesBackend(family, runs, (flavour,))
    probe = made.probe()
    if not probe.usable:
        leave_out("kernel", NotAvailable(probe.reason))
    try:
        yield made
    finally:
        there = made.dump(family)
        kinds = {kind: place for place, kind in enumerate(made.kinds)}
        keys = sorted(there, key=lambda key: -kinds[key.kind])
        failed = made.apply(tuple(Operation(Verb.REMOVE, key, there[key]) for key in keys), 0.0)
        left = made.dump(family)
        lab.forget_flows()
        assert not failed
        assert not left


@pytest.fixture
def node(lab: Lab, backend: IptablesBackend) -> Node:
    """node(**place): the lab's node, programmed by iptables."""
    return lambda **more: Programmed(backend, lab.place(backend.family, **more))


@pytest.mark.acceptance(35, 38, 39, 40, 55, 62, 63, 66, 70, 73, 74, 75, 76, 110, 114)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_reachability(lab: Lab, node: Node, name: str, protocol: str) -> None:
    """Who answers, who is refused, who is dropped, and whom the endpoint sees: as the model says."""
    programmed = node()
    desired = snapshot(name, programmed.desired.place, protocol)
    programmed.program(desired)
    lab.check(desired)


@pytest.mark.acceptance(99, 104)
def test_one_run_per_change_and_none_without(node: Node, runs: Runs, family: int) -> None:
    """What is written is read back equal; a new agent has nothing to write; a changed endpoint is one run."""
    programmed = node()
    desired = snapshot("every kind", programmed.desired.place, "TCP")
    del runs.words[:]
    programmed.program(desired)
    assert len(runs.words) == 1
    assert programmed.audit().count == 0
    fresh = Programmed(programmed.backend, desired.place)
    fresh.want(desired)
    fresh.audit()
    assert fresh.planner.plan() == ()
    others = desired.frontends[1:]
    del runs.words[:]
    plan = programmed.program(wanted.desired(desired.place, *others, cluster_ip(family, to(family, POD1))))
    assert len(runs.words) == 1
    assert len(plan) < 10
    assert programmed.audit().count == 0


@pytest.mark.acceptance(96, 97, 98)
def test_damage_is_mended_and_others_are_left_alone(lab: Lab, node: Node, family: int, flavour: str) -> None:
    """Rules that go, move or come in our chains are put right; rules of others stay as they are."""
    programmed = node()
    desired = snapshot("every kind", programmed.desired.place, "TCP")
    tool = f"{'iptables' if family == 4 else 'ip6tables'}{flavour}"
    lab.network.run(
        "node",
        f"{tool} -t nat -N FOREIGN && {tool} -t nat -A FOREIGN -j RETURN && {tool} -t nat -A PREROUTING -j FOREIGN"
        f" && {tool} -A FORWARD -m comment --comment 'not #ours' -j ACCEPT",
    )
    try:
        programmed.program(desired)
        lab.network.run(
            "node",
            f"{tool} -t nat -F MESHLIB-ALL && {tool} -t nat -D PREROUTING 1 && {tool} -t nat -A MESHLIB-IN -j ACCEPT"
            f" && {tool} -N MESHLIB-STRANGER",
        )
        drift = programmed.audit()
        assert drift.missing
        assert drift.surplus
        programmed.write()
        assert programmed.audit().count == 0
        assert isinstance(lab.probe("p1", of(family, CLUSTER_IP), 80), Answered)
        saved = lab.network.run("node", f"{tool}-save")
        assert "-A PREROUTING -j FOREIGN" in saved
        assert "-A FOREIGN -j RETURN" in saved
        assert "not #ours" in saved
        assert "STRANGER" not in saved
    finally:
        lab.network.run(
            "node",
            f"{tool} -t nat -D PREROUTING -j FOREIGN; {tool} -t nat -F FOREIGN; {tool} -t nat -X FOREIGN;"
            f" {tool} -D FORWARD -m comment --comment 'not #ours' -j ACCEPT",
        )


@pytest.mark.acceptance(40, 113)
def test_established_connections_go_on(lab: Lab, node: Node, family: int) -> None:
    """Through a changed set, and through the loss of their endpoint; new ones go where they should."""
    programmed = node()
    place = programmed.desired.place
    programmed.program(wanted.desired(place, cluster_ip(family, to(family, POD1))))
    with lab.flow("p2", of(family, CLUSTER_IP), 80) as flow:
        assert flow.ask().endpoint == of(family, POD1)
        for route in (wanted.everywhere(family), to(family, FAR1), REJECT, to(family, FAR2)):
            desired = wanted.desired(place, cluster_ip(family, route), node_port(route))
            programmed.program(desired)
            lab.check(desired)
            assert flow.ask().endpoint == of(family, POD1)


@pytest.mark.acceptance(81, 82)
def test_affinity(lab: Lab, node: Node, family: int) -> None:
    """One client, one endpoint, through every frontend of the port; it moves when that goes."""
    programmed = node()
    place = programmed.desired.place
    targets = [POD1, POD2, FAR1, FAR2]

    def stuck() -> str:
        addresses = ((of(family, CLUSTER_IP), 80), (of(family, NODE), NODE_PORT))
        (found,) = {lab.ask("out", *address).endpoint for address in addresses for _ in range(5)}
        return found

    def program() -> None:
        route = to(family, *targets)
        programmed.program(
            wanted.desired(
                place,
                cluster_ip(family, route, affinity_seconds=600),
                node_port(route, affinity_seconds=600),
            )
        )

    program()
    first = stuck()
    targets = [each for each in targets if of(family, each) != first]
    program()
    second = stuck()
    assert second != first
    targets = [each for each in targets if of(family, each) == second] + [
        POD1 if of(family, POD1) != second else POD2
    ]
    program()
    assert stuck() == second


def test_weights(lab: Lab, node: Node, family: int) -> None:
    """One of weight 9 beside one of weight 1 gets most."""
    programmed = node()
    route = to(family, POD1, POD2, weights=(9, 1))
    programmed.program(wanted.desired(programmed.desired.place, cluster_ip(family, route)))
    seen = [lab.ask("out", of(family, CLUSTER_IP), 80).endpoint for _ in range(60)]
    assert 40 <= seen.count(of(family, POD1)) < 60


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
        )
    )
    vip, prefix = of(family, EXTERNAL_IP), "32" if family == 4 else "128"
    lab.network.ip("node", f"route add local {vip}/{prefix} dev lo table local src {of(family, NODE)}")
    try:
        for space in ("p1", "out", "node"):
            assert lab.probe(space, vip, HOST_PORT) == Refused(), space
            assert lab.probe(space, of(family, CLUSTER_IP), HOST_PORT) == Refused(), space
            assert lab.silent(space, of(family, "10.96.0.15"), 80), space
        assert lab.ask("p1", vip, 80).endpoint == of(family, POD1)
    finally:
        lab.network.ip("node", f"route del local {vip}/{prefix} dev lo table local")
    with lab.flow("out", of(family, NODE), HOST_PORT) as flow:
        assert flow.ask().endpoint in ("0.0.0.0", "::")
    assert lab.ask("out", of(family, NODE), 80).endpoint == of(family, POD1)


@pytest.mark.acceptance(61)
def test_pod_ranges_not_known(lab: Lab, node: Node, family: int) -> None:
    """Then nothing is masqueraded for coming from elsewhere; hairpins are all the same."""
    programmed = node(pod_ranges=())
    desired = wanted.desired(programmed.desired.place, cluster_ip(family, to(family, POD1, POD2)))
    programmed.program(desired)
    lab.check(desired)


@pytest.mark.acceptance(103)
def test_a_refused_rule_fails_alone(lab: Lab, node: Node, family: int) -> None:
    """Everything else is written; what failed is named."""
    programmed = node()
    route = to(family, POD1)
    bad = load_balancer(family, route, source_ranges=(of(family, "10.0.2.0/24"),))
    programmed.want(wanted.desired(programmed.desired.place, cluster_ip(family, route), bad))
    plan = list(programmed.planner.plan())
    names: list[Any] = [each.key.name for each in plan]
    # (The hook that leads there is another object, of a built-in chain.)
    index = next(i for i, name in enumerate(names) if name.chain == "MESHLIB-RANGES")
    value = plan[index].value
    broken = type(value)(
        value.digests, tuple(text.replace("--dport 80", "--dport 80000") for text in value.texts)
    )
    plan[index] = plan[index]._replace(value=broken)
    (failure,) = programmed.backend.apply(tuple(plan), 0.0)
    assert failure.operation.key == plan[index].key
    assert failure.text
    assert isinstance(lab.probe("p1", of(family, CLUSTER_IP), 80), Answered)


def test_the_probe_leaves_nothing(lab: Lab, family: int, flavour: str, runs: Runs) -> None:
    """Not a chain; and without the program it says so."""
    backend = IptablesBackend(family, runs, (flavour,))
    assert backend.probe().usable
    tool = f"{'iptables' if family == 4 else 'ip6tables'}{flavour}"
    assert "MESH" not in lab.network.run("node", f"{tool}-save")
    assert backend.dump(family) == {}
    assert not IptablesBackend(family, flavours=("-nowhere",)).probe().usable
    key, value = next(iter(backend.fixed(lab.place(family)).items()))
    assert backend.words(key, value) == "hook in nat PREROUTING: meshlib MESHLIB-IN"
