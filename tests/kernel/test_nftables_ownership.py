"""nftables: what is ours and what is not; restarts, drift, failures. A real kernel."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest

from meshlib.agent.backends.nftables import NftablesBackend
from meshlib.agent.backends.nftables import translate as translation
from meshlib.agent.desired import Desired
from meshlib.agent.objects import ObjectKey, Operation, Verb
from tests.kernel.lab import wanted
from tests.kernel.lab.lab import Lab, Programmed
from tests.kernel.lab.net import FAR1, FAR2, NODE, POD1, POD2, POD_RANGE, of
from tests.kernel.lab.prober import Refused
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

Node = Callable[..., Programmed]
Make = Callable[..., NftablesBackend]
FAMILY_NAME = {4: "ip", 6: "ip6"}


def everything(family: int, programmed: Programmed) -> Desired:
    """A bit of all."""
    return wanted.desired(
        programmed.desired.place,
        cluster_ip(family, wanted.everywhere(family), affinity_seconds=60),
        cluster_ip(family, to(family, POD1, FAR1, weights=(1, 3)), protocol="UDP"),
        load_balancer(
            family,
            to(family, POD1),
            inside=REJECT,
            source_ranges=(of(family, POD_RANGE), of(family, "10.0.2.0/24")),
        ),
        node_port(wanted.everywhere(family)),
    )


@pytest.mark.acceptance(99, 104)
def test_a_restart_writes_nothing(lab: Lab, node: Node, family: int, nftables: Make) -> None:
    """A second agent that wants the same finds it there, writes nothing, and open connections go on."""
    first = node()
    desired = everything(family, first)
    first.program(desired)
    with lab.flow("p1", of(family, CLUSTER_IP), 80) as flow:
        before = flow.ask()
        first.backend.close()  # type: ignore[attr-defined]
        second = Programmed(nftables(family), desired.place)
        second.want(desired)
        assert second.audit().count == 0
        plan, failed = second.write()
        assert (plan, failed) == ((), [])
        assert flow.ask() == before


@pytest.mark.acceptance(104)
def test_what_is_read_is_what_was_written(lab: Lab, node: Node, family: int) -> None:
    """Every object comes back with its value, rules included, and nft can list the table."""
    programmed = node()
    desired = everything(family, programmed)
    programmed.program(desired)
    actual = programmed.backend.dump(family)
    assert dict(actual) == programmed.planner.applied
    listed = lab.network.run("node", f"nft list table {FAMILY_NAME[family]} meshlib")
    for words in ("from everywhere", "pick, and remember", "source ranges", "an endpoint to itself"):
        assert f'comment "{words}"' in listed


@pytest.mark.acceptance(98)
@pytest.mark.parametrize(
    "damage",
    [
        "flush chain {t} in",
        "flush chain {t} vip_4_60s",
        "add rule {t} out counter drop",
        "insert rule {t} leave return",
        "flush map {t} vip_slot",
        "flush set {t} pods",
        "add element {t} cluster_ips {{ {address} }}",
        "delete table {t}",
    ],
)
def test_damage_is_found_and_mended(lab: Lab, node: Node, family: int, damage: str) -> None:
    """Whatever somebody does to the table, an audit sees it, and one write puts it right."""
    programmed = node()
    desired = everything(family, programmed)
    programmed.program(desired)
    before = programmed.backend.dump(family)
    table = f"{FAMILY_NAME[family]} meshlib"
    lab.network.run("node", f"nft '{damage.format(t=table, address=of(family, '10.96.3.3'))}'")
    assert programmed.audit().count > 0
    _, failed = programmed.write()
    assert failed == []
    assert programmed.backend.dump(family) == before
    assert programmed.audit().count == 0
    assert lab.ask("p1", of(family, CLUSTER_IP), 80)


@pytest.mark.acceptance(98)
def test_the_table_vanishes_between_two_writes(lab: Lab, node: Node, family: int) -> None:
    """The next write fails and says so; after an audit everything is back."""
    programmed = node()
    desired = everything(family, programmed)
    programmed.program(desired)
    lab.network.run("node", f"nft delete table {FAMILY_NAME[family]} meshlib")
    programmed.want(wanted.desired(desired.place, *desired.frontends, cluster_ip(family, REJECT, port=99)))
    plan, failed = programmed.write()
    assert {failure.operation for failure in failed} == set(plan)
    assert {failure.errno for failure in failed} == {errno.ENOENT}
    assert programmed.audit().missing
    assert programmed.write()[1] == []
    assert lab.probe("p1", of(family, CLUSTER_IP), 99) == Refused()


@pytest.mark.acceptance(96, 97)
def test_foreign_tables_are_left_alone(lab: Lab, node: Node, family: int) -> None:
    """Other tables survive start, change and cleanup; a table of our name that is not ours is refused, not touched."""
    name = FAMILY_NAME[family]
    chain = "chain c {\n type filter hook input priority 7\n tcp dport @s drop\n}"
    foreign = (
        f"table {name} foreign {{\n set s {{\n type inet_service\n elements = {{ 1, 2 }}\n}}\n {chain}\n}}"
    )
    lab.network.nft("node", foreign)
    try:
        before = lab.network.run("node", "nft list ruleset")
        assert "tcp dport @s drop" in before
        programmed = node()
        programmed.program(everything(family, programmed))
        backend = programmed.backend
        assert isinstance(backend, NftablesBackend)
        assert (backend.cleanup(), backend.cleanup()) == (True, False)
        assert lab.network.run("node", "nft list ruleset").strip() == before.strip()
        lab.network.nft("node", f"add table {name} meshlib\nadd chain {name} meshlib mine")
        try:
            with pytest.raises(FileExistsError, match="somebody else"):
                backend.dump(family)
            with pytest.raises(FileExistsError):
                backend.cleanup()
            assert "chain mine" in lab.network.run("node", f"nft list table {name} meshlib")
        finally:
            lab.network.run("node", f"nft delete table {name} meshlib")
    finally:
        lab.network.run("node", f"nft delete table {name} foreign")


@pytest.mark.acceptance(99)
def test_a_table_of_another_layout_is_replaced(lab: Lab, node: Node, family: int) -> None:
    """An older agent's table goes in the same transaction in which the new one comes."""
    name = FAMILY_NAME[family]
    content = 'comment "meshlib agent, layout 0"\nset vip_slot {\ntype inet_service\n}'
    old = f"table {name} meshlib {{\n{content}\n}}"
    lab.network.nft("node", old)
    programmed = node()
    programmed.want(everything(family, programmed))
    assert programmed.backend.dump(family) == {ObjectKey(translation.TABLE, ""): "meshlib agent, layout 0"}
    programmed.audit()
    assert programmed.write()[1] == []
    assert programmed.audit().count == 0
    assert lab.ask("p1", of(family, CLUSTER_IP), 80)


@pytest.mark.acceptance(101)
def test_one_bad_operation_does_not_hold_up_the_rest(lab: Lab, node: Node, family: int) -> None:
    """What the kernel refuses comes back with its error; all else takes effect; a missing removal is no error."""
    programmed = node()
    programmed.program(wanted.desired(programmed.desired.place))
    good = dict(programmed.backend.translate(cluster_ip(family, to(family, POD1)), programmed.desired.place))
    bad = ObjectKey("vip_slot", b"short")
    absent = ObjectKey("cluster_ips", translation.packed(of(family, "10.96.7.7")))
    plan = [Operation(Verb.ADD, key, value) for key, value in good.items()]
    plan += [Operation(Verb.ADD, bad, b"x" * 8), Operation(Verb.REMOVE, absent, None)]
    failed = programmed.backend.apply(tuple(plan), 0.0)
    assert [failure.operation.key for failure in failed] == [bad]
    assert failed[0].errno == errno.EINVAL
    assert lab.ask("p1", of(family, CLUSTER_IP), 80).endpoint == of(family, POD1)


@pytest.mark.acceptance(101)
def test_a_transaction_takes_effect_as_a_whole(lab: Lab, node: Node, family: int) -> None:
    """While a Service's whole set is exchanged over and over, every new connection reaches one of the two sets."""
    programmed = node()
    place = programmed.desired.place
    sets = [to(family, POD1, POD2), to(family, FAR1)]
    vip = of(family, CLUSTER_IP)
    programmed.program(wanted.desired(place, cluster_ip(family, sets[0]), node_port(sets[0])))
    known = {of(family, pod) for pod in (POD1, POD2, FAR1)}
    for turn in range(150):
        route = sets[turn % 2]
        programmed.program(wanted.desired(place, cluster_ip(family, route), node_port(route)))
        assert lab.ask("p1", vip, 80).endpoint in known
        expected = {of(family, FAR1)} if turn % 2 else {of(family, POD1), of(family, POD2)}
        assert lab.ask("out", of(family, NODE), NODE_PORT).endpoint in expected


@pytest.mark.acceptance(53)
def test_established_connections_survive_every_change(lab: Lab, node: Node, family: int) -> None:
    """The endpoint leaves the set, the Service loses all endpoints, is removed and comes back: the connection stays."""
    programmed = node()
    place = programmed.desired.place
    vip = of(family, LB_IP)
    with_pod = wanted.desired(place, load_balancer(family, to(family, POD1)))
    programmed.program(with_pod)
    with lab.flow("out", vip, 80) as flow:
        before = flow.ask()
        for after in (
            wanted.desired(place, load_balancer(family, to(family, FAR1, FAR2))),
            wanted.desired(place, load_balancer(family, REJECT)),
            wanted.desired(place, load_balancer(family, to(family, POD2), source_ranges=())),
            wanted.desired(place),
            with_pod,
        ):
            programmed.program(after)
            assert flow.ask() == before


@pytest.mark.acceptance(89)
def test_strays_do_not_reach_the_client(lab: Lab, node: Node, family: int) -> None:
    """A segment from the endpoint that connection tracking cannot place is stopped; one from elsewhere is not ours."""
    programmed = node()
    programmed.program(wanted.desired(programmed.desired.place, cluster_ip(family, to(family, FAR1))))
    # Wrong checksum: invalid, whatever the flow.
    segment = bytearray(20)
    segment[2:4] = (40000).to_bytes(2, "big")
    segment[12:14] = bytes((0x50, 0x10))
    segment[16:18] = bytes((0xDE, 0xAD))
    watch = "type filter hook forward priority 0\nct state invalid tcp dport 40000 counter"
    lab.network.nft("node", f"table inet watch {{\nchain c {{\n{watch}\n}}\n}}")
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    raw = lab.open(lambda: socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_TCP), "far")
    try:
        raw.bind((of(family, FAR1), 0))
        for port, passes in ((8080, False), (8081, True)):
            segment[0:2] = port.to_bytes(2, "big")
            raw.sendto(bytes(segment), (of(family, POD1), 0))
            # It is forwarded before the call returns: everything is on one machine, without a queue.
            assert ("packets 0" not in lab.network.run("node", "nft list table inet watch")) == passes
    finally:
        raw.close()
        lab.network.run("node", "nft delete table inet watch")
