"""Userspace mode on the lab's node: who is reached from where, without any rule in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.agent.desired import Action, Masquerade
from tests.kernel.lab import wanted
from tests.kernel.lab.expected import reachability
from tests.kernel.lab.lab import MANY, Lab, Programmed
from tests.kernel.lab.net import FAR1, FAR2, NODE, OUT, POD1, POD2, of
from tests.kernel.lab.prober import SILENCE, Answered, Refused, Silent
from tests.kernel.lab.wanted import (
    CLUSTER_IP,
    DROP,
    LB_IP,
    NODE_PORT,
    REJECT,
    cluster_ip,
    external_ip,
    load_balancer,
    node_port,
    to,
)


@pytest.fixture
def node(userspace: Callable[..., Programmed]) -> Callable[..., Programmed]:
    """The node that is served."""
    return userspace


@pytest.mark.acceptance(39, 70, 76, 110, 114)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_the_same_endpoints_as_in_every_mode(
    lab: Lab, node: Callable[..., Programmed], family: int, protocol: str
) -> None:
    """Each client finds the endpoints that the model says, or none; the endpoint sees the node."""
    everywhere, local, far = wanted.everywhere(family), to(family, POD1, POD2), to(family, FAR1, FAR2)
    never: dict[str, Any] = {"masquerade": Masquerade.NEVER, "protocol": protocol}
    programmed = node()
    only_out = (f"{of(family, OUT)}/{32 if family == 4 else 128}",)
    second = LB_IP[:-1] + "1"
    desired = wanted.desired(
        programmed.desired.place,
        cluster_ip(family, everywhere, protocol=protocol),
        cluster_ip(family, REJECT, port=81, protocol=protocol),
        cluster_ip(family, DROP, port=82, protocol=protocol),
        external_ip(family, everywhere, protocol=protocol),
        load_balancer(family, local, inside=far, **never),
        load_balancer(family, local, second, protocol=protocol, source_ranges=only_out),
        node_port(local, inside=everywhere, **never),
    )
    programmed.program(desired)
    wrong = []
    for client in lab.clients(family):
        for key, expected in reachability(desired, client).items():
            seen = set()
            if expected.action is not Action.FORWARD:
                outcome = lab.probe(client.space, key.address, key.port, protocol, patience=SILENCE)
                if isinstance(outcome, Answered):
                    wrong.append(f"{client.space} {key}: {outcome}")
                continue
            for _ in range(MANY):
                answer = lab.ask(client.space, key.address, key.port, protocol)
                seen.add((answer.endpoint, answer.port))
                if seen >= expected.endpoints:
                    break
            if seen != expected.endpoints:
                wrong.append(f"{client.space} {key}: {seen}, not {expected.endpoints}")
    assert not wrong, wrong
    assert lab.ask("out", of(family, LB_IP), 80, protocol).source.startswith(of(family, "10.0.0.0")[:4])


@pytest.mark.acceptance(35, 55, 76)
def test_refused_and_silent(lab: Lab, node: Callable[..., Programmed], family: int) -> None:
    """Where a port is one Service's alone it refuses at once, or does not answer at all; both can turn back."""
    programmed = node()
    place = programmed.desired.place
    vip, address = of(family, CLUSTER_IP), of(family, NODE)
    for _ in range(2):
        programmed.program(wanted.desired(place, cluster_ip(family, DROP), node_port(REJECT)))
        for space in ("p1", "out"):
            assert lab.probe(space, vip, 80, patience=SILENCE) == Silent()
            assert lab.probe(space, address, NODE_PORT) == Refused()
        programmed.program(
            wanted.desired(place, cluster_ip(family, to(family, POD1)), node_port(to(family, POD2)))
        )
        assert lab.ask("out", vip, 80).endpoint == of(family, POD1)
        assert lab.ask("out", address, NODE_PORT).endpoint == of(family, POD2)


@pytest.mark.acceptance(81, 82)
def test_affinity(lab: Lab, node: Callable[..., Programmed], family: int) -> None:
    """One client, one endpoint, through every frontend of the port."""
    route = wanted.everywhere(family)
    programmed = node()
    programmed.program(
        wanted.desired(
            programmed.desired.place,
            cluster_ip(family, route, affinity_seconds=60),
            node_port(route, affinity_seconds=60),
        )
    )
    addresses = ((of(family, CLUSTER_IP), 80), (of(family, NODE), NODE_PORT))
    assert len({lab.ask("out", *address).endpoint for address in addresses for _ in range(6)}) == 1
