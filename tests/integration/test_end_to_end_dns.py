"""Traffic over names: live changes in a real DNS server, and every fault of a real cache, with requests counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import meshlib
from meshlib.runtime.mesh import Mesh
from tests.components.process import wait_for
from tests.components.traffic import Traffic

PATIENCE = 60.0


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    settings = {"allow_loopback": True, "floor": 1.0}
    config = meshlib.load_config(
        {
            "picker": "round_robin",
            "sync_timeout": 30.0,
            "discovery": {"dns": settings},
            "address": {"allow_loopback": True},
        },
        environ={},
    )
    with Mesh(config=config) as made:
        yield made


def target(server: Any, name: str, port: int) -> str:
    host, number = server.address
    return f"dns://{host}:{number}/{name}:{port}"


def settled(traffic: Traffic, wanted: set[str]) -> None:
    """Until a stretch of traffic was served by exactly these."""
    last: set[str] = set()

    def exactly() -> bool:
        nonlocal last
        mark = traffic.mark()
        wait_for(
            lambda: sum(traffic.since(mark).values()) >= 150 or traffic.failures,
            timeout=PATIENCE,
            what="150 requests",
        )
        assert traffic.failures == []
        last = set(traffic.since(mark))
        return last == wanted

    wait_for(exactly, timeout=PATIENCE, what=f"{sorted(wanted)}", interval=0.0)


def test_hosts_come_and_go_behind_a_name(knot: Any, backends: Any, mesh: Mesh) -> None:
    """A record added gets traffic, a record removed loses it; nothing fails, nothing is sent twice."""
    servers = backends.http(3)
    one, two, three = servers
    name = knot.fresh_name("shop")
    knot.set_records(name, "A", [one.host, two.host], ttl=1)
    with Traffic(mesh, target(knot, name, one.port)) as traffic:
        settled(traffic, {one.name, two.name})
        knot.set_records(name, "A", [one.host, two.host, three.host], ttl=1)
        settled(traffic, {one.name, two.name, three.name})
        knot.set_records(name, "A", [two.host, three.host], ttl=1)
        settled(traffic, {two.name, three.name})
    assert traffic.failures == []
    assert traffic.total == sum(server.requests for server in servers)


@pytest.mark.parametrize("fault", ["drop", "refuse", "servfail"])
def test_faults_of_the_dns_server_fail_no_request(
    unbound: Any, knot: Any, backends: Any, mesh: Mesh, fault: str
) -> None:
    """Silence, REFUSED and SERVFAIL say nothing about hosts: the last good set serves until the answers come back."""
    servers = backends.http(2)
    one, two = servers
    name = knot.fresh_name("shop")
    knot.set_records(name, "A", [one.host], ttl=1)
    with Traffic(mesh, target(unbound, name, one.port)) as traffic:
        settled(traffic, {one.name})
        break_it: Callable[[str], None] = getattr(unbound, fault)
        break_it(name)
        knot.set_records(name, "A", [one.host, two.host], ttl=1)
        handle = mesh.target(target(unbound, name, one.port))
        wait_for(lambda: handle.status()["stale"], timeout=PATIENCE, what="the fault to be seen")
        settled(traffic, {one.name})
        unbound.clear(name)
        unbound.flush(name)
        settled(traffic, {one.name, two.name})
    assert traffic.failures == []
    assert traffic.total == sum(server.requests for server in servers)
