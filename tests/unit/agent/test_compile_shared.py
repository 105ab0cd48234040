"""What the client path and the kernel path share: the eligibility vectors, projected from Desired."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from meshlib.agent.compile import compile_desired
from meshlib.agent.desired import Action, Desired, Frontend, FrontendKind, Route
from meshlib.agent.facts import Facts
from meshlib.agent.settings import AgentSettings
from meshlib.model.cluster import Node, ServiceFacts
from meshlib.model.decode_service import service_from_json
from meshlib.model.eligibility import family_groups
from meshlib.model.service import Service, ServicePort, ServiceType, resolve_port
from meshlib.model.vantage import VantagePoint
from tests.unit.model.test_vectors import RUNS, decoded

#: Of families that a case leaves out though its Service is served in them (objects from before dual-stack).
ADDRESSES = {4: "10.96.0.10", 6: "fd00:96::10"}
VERDICTS = {Action.FORWARD: "ok", Action.REJECT: "no-endpoints", Action.DROP: "no-local-endpoints"}


def dressed(service: Service, vantage: VantagePoint) -> Service:
    """With an address in every family that the client would dial, and a node port where there can be one."""
    families = service.ip_families or vantage.families
    known = {6 if ":" in ip else 4: ip for ip in service.cluster_ips}
    ports = service.ports
    if service.type in (ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER):
        ports = tuple(
            replace(port, node_port=port.node_port or 30000 + number) for number, port in enumerate(ports)
        )
    return replace(
        service, ports=ports, cluster_ips=tuple(known.get(each, ADDRESSES[each]) for each in families)
    )


def frontend_of(desired: Desired, port: ServicePort, path: str) -> Frontend | None:
    """The one that traffic of this path meets."""
    mine = [
        each
        for each in desired.frontends
        if (each.owner.port, each.owner.protocol) == (port.name, port.protocol)
    ]
    inner = [each for each in mine if each.kind is FrontendKind.CLUSTER_IP]
    outer = [each for each in mine if each.kind is not FrontendKind.CLUSTER_IP]
    return next(iter(inner if path == "internal" else outer), None)


def route_of(frontend: Frontend, path: str) -> Route:
    return frontend.inside if path == "short-circuit" and frontend.inside is not None else frontend.route


@pytest.mark.acceptance(115)
@pytest.mark.parametrize(("file", "case", "path"), RUNS, ids=[f"{f}: {c['name']} ({p})" for f, c, p in RUNS])
def test_desired_has_the_endpoints_that_the_client_has(file: str, case: dict[str, Any], path: str) -> None:
    """Per family a set of its own; the first family that has any gives the client's answer, on every path."""
    original = service_from_json(json.dumps(case["service"]).encode())
    seen = case["vantage"]
    vantage = VantagePoint(seen["node"], seen["zone"], tuple(seen["families"]))
    service = dressed(original, vantage)
    slices, _, _ = decoded(case)
    facts = Facts(
        {service.key: ServiceFacts(service, tuple(slices))},
        Node(seen["node"], seen["zone"], ("192.0.2.1", "2001:db8::1")),
    )
    settings = AgentSettings(external_ip_cidrs=("198.51.100.0/24",))
    by_family = {family: compile_desired(facts, settings, family) for family in (4, 6)}
    if service.type in (ServiceType.HEADLESS, ServiceType.EXTERNAL_NAME):
        assert [desired.frontends for desired in by_family.values()] == [(), ()]
        return
    port = resolve_port(service, case["port"])
    expected = case["expect"][path]
    routes: list[Route] = []
    for (family,) in family_groups(service, vantage):
        frontend = frontend_of(by_family[family], port, path)
        if frontend is None:
            # A plain ClusterIP has no door to the outside: nothing to compare.
            assert path != "internal"
            assert (original.type, original.external_ips) == (ServiceType.CLUSTER_IP, ())
            return
        routes.append(route_of(frontend, path))
    taken = next((each for each in routes if each.action is Action.FORWARD), None)
    taken = taken or next((each for each in routes if each.action is Action.DROP), Route(Action.REJECT))
    shown = [
        f"[{t.address}]:{t.port}" if ":" in t.address else f"{t.address}:{t.port}" for t in taken.targets
    ]
    assert shown == expected["endpoints"]
    assert VERDICTS[taken.action] == expected["verdict"]
