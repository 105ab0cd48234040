"""Userspace mode on the lab's node: who is reached from where, without any rule in the kernel."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshlib.agent.backends.userspace import Proxy, UserspaceBackend
from meshlib.agent.backends.userspace.backend import waiting
from meshlib.agent.backends.userspace.flow import new_socket
from meshlib.agent.backends.userspace.room import Room
from meshlib.agent.desired import Action, Masquerade
from tests.kernel.lab import wanted
from tests.kernel.lab.expected import reachability
from tests.kernel.lab.lab import MANY, Lab, Programmed
from tests.kernel.lab.net import FAR1, FAR2, NODE, OUT, POD1, POD2, SERVICE_RANGE, of
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
def node(lab: Lab, family: int) -> Iterator[Callable[..., Programmed]]:
    """node(): one local route for virtual addresses and listeners on the wildcard address; both go after the test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def make_socket(family: int, kind: int) -> socket.socket:
        return lab.open(lambda: new_socket(family, kind))

    wildcard = "0.0.0.0" if family == 4 else "::"
    proxy = Proxy(loop, Room(10_000), random.random, print, make=make_socket)
    submit = waiting(lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop))
    ranges = [of(family, each) for each in (SERVICE_RANGE, "10.77.0.0/16")]
    lab.network.ip("node", *(f"route add local {each} dev lo table local" for each in ranges))
    try:
        yield lambda: Programmed(UserspaceBackend(family, [wildcard], proxy, submit), lab.place(family))
    finally:
        asyncio.run_coroutine_threadsafe(proxy.close(0.0), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        lab.network.ip("node", *(f"route del local {each} dev lo table local" for each in ranges))


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
