"""nftables: sessionAffinity ClientIP. Real packets."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from meshlib.agent.desired import Frontend
from tests.components.process import wait_for
from tests.kernel.lab import wanted
from tests.kernel.lab.lab import MANY, Lab, Programmed
from tests.kernel.lab.net import FAR1, FAR2, NODE, POD1, POD2, of
from tests.kernel.lab.wanted import (
    CLUSTER_IP,
    EXTERNAL_IP,
    LB_IP,
    NODE_PORT,
    cluster_ip,
    external_ip,
    load_balancer,
    node_port,
    owner,
    to,
)

Node = Callable[..., Programmed]
#: Seconds: longer than any test.
LONG = 3600


def places(family: int) -> list[tuple[str, int]]:
    """The four ways to one Service."""
    return [
        (of(family, CLUSTER_IP), 80),
        (of(family, EXTERNAL_IP), 80),
        (of(family, LB_IP), 80),
        (of(family, NODE), NODE_PORT),
    ]


def service(family: int, *pods: str, seconds: int = LONG, protocol: str = "TCP") -> list[Frontend]:
    """All four frontends of one port."""
    route = to(family, *pods)
    return [
        cluster_ip(family, route, protocol=protocol, affinity_seconds=seconds),
        external_ip(family, route, protocol=protocol, affinity_seconds=seconds),
        load_balancer(family, route, protocol=protocol, affinity_seconds=seconds),
        node_port(route, protocol=protocol, affinity_seconds=seconds),
    ]


@pytest.mark.acceptance(81)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_sticks_across_frontends(lab: Lab, node: Node, family: int, protocol: str) -> None:
    """One client goes to one endpoint through every frontend; clients are spread."""
    programmed = node()
    pods = (POD1, POD2, FAR1, FAR2)
    programmed.program(wanted.desired(programmed.desired.place, *service(family, *pods, protocol=protocol)))
    for space in ("p1", "out", "node"):
        seen = {
            lab.ask(space, address, port, protocol).endpoint
            for _ in range(10)
            for address, port in places(family)
        }
        assert len(seen) == 1, space


@pytest.mark.acceptance(80, 82)
def test_changes_of_the_set(lab: Lab, node: Node, family: int) -> None:
    """Others come and go without effect; when the client's endpoint goes, it picks anew at once and sticks again;
    without affinity it is spread."""
    programmed = node()
    place = programmed.desired.place
    vip = of(family, CLUSTER_IP)
    pods = [POD1, POD2, FAR1, FAR2]
    programmed.program(wanted.desired(place, *service(family, *pods)))
    names = {of(family, pod): pod for pod in pods}
    first = names[lab.ask("p1", vip, 80).endpoint]
    for others in ([first], [first, pods[pods.index(first) - 1]], pods):
        programmed.program(wanted.desired(place, *service(family, *others)))
        assert {lab.ask("p1", vip, 80).endpoint for _ in range(10)} == {of(family, first)}
    rest = [pod for pod in pods if pod != first]
    programmed.program(wanted.desired(place, *service(family, *rest)))
    second = lab.ask("p1", vip, 80).endpoint
    assert second in {of(family, pod) for pod in rest}
    assert {lab.ask("p1", address, port).endpoint for address, port in places(family)} == {second}
    # The old one's return does not call the client back.
    programmed.program(wanted.desired(place, *service(family, *pods)))
    assert {lab.ask("p1", vip, 80).endpoint for _ in range(10)} == {second}
    programmed.program(wanted.desired(place, *service(family, *pods, seconds=0)))
    assert len({lab.ask("p1", vip, 80).endpoint for _ in range(MANY)}) == 4


@pytest.mark.acceptance(81)
def test_frontends_with_sets_of_their_own(lab: Lab, node: Node, family: int) -> None:
    """A client that sticks to an endpoint which a Local frontend does not have gets one that it has; Services do not
    share clients."""
    programmed = node()
    place = programmed.desired.place
    programmed.program(
        wanted.desired(
            place,
            cluster_ip(family, to(family, FAR1), affinity_seconds=LONG),
            load_balancer(family, to(family, POD2), affinity_seconds=LONG),
            cluster_ip(family, to(family, FAR2), "10.96.0.99", affinity_seconds=LONG, owner=owner("other")),
        )
    )
    for _ in range(3):
        assert lab.ask("out", of(family, CLUSTER_IP), 80).endpoint == of(family, FAR1)
        assert lab.ask("out", of(family, LB_IP), 80).endpoint == of(family, POD2)
        assert lab.ask("out", of(family, "10.96.0.99"), 80).endpoint == of(family, FAR2)


@pytest.mark.acceptance(83)
def test_expires_and_is_refreshed(lab: Lab, node: Node, family: int) -> None:
    """Use begins the time anew; without use a client is forgotten when it is over, and not before."""
    programmed = node()
    vip = of(family, CLUSTER_IP)
    pods = (POD1, POD2, FAR1, FAR2)
    seconds = 2
    programmed.program(wanted.desired(programmed.desired.place, *service(family, *pods, seconds=seconds)))
    first = lab.ask("p1", vip, 80).endpoint
    begun = time.monotonic()
    while time.monotonic() < begun + 2 * seconds:
        asked = time.monotonic()
        endpoint = lab.ask("p1", vip, 80).endpoint
        if time.monotonic() - asked > seconds / 2:
            pytest.skip("this machine is too busy for two seconds to mean anything")
        assert endpoint == first
        time.sleep(seconds / 10)
    idle = time.monotonic()
    family_name = "ip" if family == 4 else "ip6"

    def remembered() -> bool:
        return "expires" in lab.network.run("node", f"nft list map {family_name} meshlib sticky")

    wait_for(lambda: not remembered(), what="the client to be forgotten")
    assert time.monotonic() - idle > seconds / 2
    # Forgotten: sooner or later it goes elsewhere, a new time each time.
    seen = set()
    for _ in range(12):
        seen.add(lab.ask("p1", vip, 80).endpoint)
        if len(seen) > 1:
            break
        wait_for(lambda: not remembered(), what="the client to be forgotten")
    assert len(seen) > 1
