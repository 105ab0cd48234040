"""The short hand in which golden snapshots of the compiler are written (tests/vectors/README.md), and back again."""

from __future__ import annotations

import re
from typing import Any

from meshlib.agent.compile import Compiler, DesiredChange
from meshlib.agent.desired import Desired, Frontend, Hairpin, HealthPort, Note, Route
from meshlib.agent.facts import Facts, Host
from meshlib.agent.settings import AgentSettings, agent_settings
from meshlib.errors import DataError
from meshlib.model.address import AddressPolicy
from meshlib.model.cluster import ABSENT, ClusterChange, Node, ServiceFacts
from meshlib.model.decode_node import node_from_object
from meshlib.model.decode_service import service_from_object
from meshlib.model.decode_slices import slice_from_object
from meshlib.model.service import ServiceKey
from meshlib.model.slices import EndpointSlice

NAMESPACE = "shop"
_META = {"labels", "annotations", "created", "namespace", "ingress"}
_PORT = re.compile(r"(\S+) (\d+)(?::(\d+))?(?:/(\w+))?")


def settings_of(case: dict[str, Any]) -> AgentSettings:
    return agent_settings({"node_name": "node-a", **case.get("settings", {})})


def node_of(case: dict[str, Any]) -> Node:
    """Ours is node-a in zone-1, unless the case says otherwise; written as the API has it."""
    given = {"zone": "zone-1", "addresses": ["192.0.2.1", "2001:db8::1"], "pods": [], **case.get("node", {})}
    return node_from_object(
        {
            "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": given["zone"]}},
            "spec": {"podCIDRs": given["pods"]},
            "status": {"addresses": [{"type": "InternalIP", "address": each} for each in given["addresses"]]},
        },
        lambda where, reason: None,
    )


def _port(text: str) -> tuple[str, int, int, str]:
    found = _PORT.fullmatch(text)
    assert found, text
    name, number, node_port, protocol = found.groups()
    return "" if name == "-" else name, int(number), int(node_port or 0), protocol or "TCP"


def service_manifest(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """A Service as the API server would hold it."""
    spec: dict[str, Any] = {key: value for key, value in given.items() if key not in _META | {"ports"}}
    spec.setdefault("clusterIP", "10.96.0.10")
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    ports = []
    for text in given.get("ports", ["http 80"]):
        port_name, number, node_port, protocol = _port(text)
        ports.append({"name": port_name, "port": number, "nodePort": node_port, "protocol": protocol})
    meta = {
        "name": name,
        "namespace": given.get("namespace", NAMESPACE),
        "labels": given.get("labels", {}),
        "annotations": given.get("annotations", {}),
        "creationTimestamp": given.get("created"),
    }
    return {
        "metadata": meta,
        "spec": {**spec, "ports": ports},
        "status": {"loadBalancer": {"ingress": given.get("ingress", [])}},
    }


def _endpoint(text: str) -> dict[str, Any]:
    """``ADDRESS WORD...``: node-X, unready, terminating, dead, unset, zone=X, for=ZONE,ZONE, fornode=NODE, nofor."""
    address, *words = text.split()
    conditions: dict[str, Any] = {"ready": True, "serving": True, "terminating": False}
    made: dict[str, Any] = {"addresses": [] if address == "-" else [address], "hints": {}}
    for word in words:
        key, _, value = word.partition("=")
        if word.startswith("node-"):
            made["nodeName"] = word
        elif key == "zone":
            made["zone"] = value
        elif key == "for":
            made["hints"]["forZones"] = [{"name": each} for each in value.split(",")]
        elif key == "fornode":
            made["hints"]["forNodes"] = [{"name": each} for each in value.split(",")]
        elif key == "host":
            made.setdefault("topology", {})["kubernetes.io/hostname"] = value
        else:
            conditions = {
                "unready": {"ready": False, "serving": False, "terminating": False},
                "terminating": {"ready": False, "serving": True, "terminating": True},
                "dead": {"ready": False, "serving": False, "terminating": True},
                "unset": {},
            }[word]
    return {**made, "conditions": conditions}


def slice_manifest(name: str, given: dict[str, Any]) -> dict[str, Any]:
    ports = []
    for text in given.get("ports", ["http 8080"]):
        port_name, number, _, protocol = _port(text)
        ports.append({"name": port_name, "port": number, "protocol": protocol})
    labels = {"kubernetes.io/service-name": given.get("of", "orders")}
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": labels,
            "generation": given.get("generation", 1),
            "resourceVersion": str(given.get("version", 1)),
        },
        "addressType": given.get("family", "IPv4"),
        "ports": ports,
        "endpoints": [_endpoint(text) for text in given.get("endpoints", [])],
    }


class World:
    """What a case has told so far; each step adds, replaces and (null) takes away."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.node = node_of(case)
        self.host = Host(tuple(case.get("host", ())))
        self.services: dict[str, dict[str, Any]] = {}
        self.slices: dict[str, dict[str, Any]] = {}
        self.skipped: list[str] = []

    def step(self, given: dict[str, Any]) -> ClusterChange:
        """The change that a source would tell."""
        before = self.facts().services
        if "node" in given:
            self.node = node_of(given)
        for kept, new in ((self.services, "services"), (self.slices, "slices")):
            for name, value in given.get(new, {}).items():
                if value is None:
                    del kept[name]
                else:
                    kept[name] = value
        now = self.facts().services
        changed = {key: now.get(key, ABSENT) for key in {*before, *now} if before.get(key) != now.get(key)}
        return ClusterChange(changed, self.node, triggers={key: (float(len(now)),) for key in changed})

    def facts(self) -> Facts:
        slices: dict[ServiceKey, list[EndpointSlice]] = {}
        for name, given in self.slices.items():
            try:
                made = slice_from_object(
                    slice_manifest(name, given),
                    AddressPolicy(),
                    lambda where, reason: self.skipped.append(reason),
                )
            except DataError as error:
                self.skipped.append(error.reason)
                continue
            slices.setdefault(made.service, []).append(made)
        services = [
            service_from_object(service_manifest(name, given)) for name, given in self.services.items()
        ]
        return Facts(
            {each.key: ServiceFacts(each, tuple(slices.get(each.key, ()))) for each in services},
            self.node,
            self.host,
        )


def route_words(route: Route) -> str:
    targets = [
        f"[{t.address}]:{t.port}" if ":" in t.address else f"{t.address}:{t.port}" for t in route.targets
    ]
    assert all(target.weight == 1 for target in route.targets)
    return " ".join([route.action.value, *targets])


def frontend_line(each: Frontend) -> str:
    """Everything that a frontend says, in one line; what is at its default is left out, but never the masquerade."""
    parts = [f"{each.key} {each.kind.value} {each.owner.service.name}:{each.owner.port or '-'}"]
    parts.append(route_words(each.route))
    if each.inside is not None:
        parts.append(f"inside {route_words(each.inside)}")
    parts.append(each.masquerade.value)
    if each.affinity_seconds:
        parts.append(f"affinity {each.affinity_seconds}" + (" exact" if each.exact_affinity else ""))
    if each.scheduler != "rr":
        parts.append(f"scheduler {each.scheduler}")
    if each.source_ranges is not None:
        parts.append(f"only {' '.join(each.source_ranges)}".strip())
    return " | ".join(parts)


def hairpin_line(each: Hairpin) -> str:
    return f"{each.protocol} {each.address} {each.port}"


def health_line(each: HealthPort) -> str:
    return f"{each.service.name} {each.port} {each.local_endpoints}"


def note_line(each: Note) -> str:
    return f"{each.service.name} {each.reason}: {each.text}"


def change_lines(change: DesiredChange) -> list[str]:
    """``+``, ``-`` and ``~`` lines, frontends by key, then hairpins and health ports."""
    lines = []
    for key in sorted(change.frontends):
        old, new = change.frontends[key]
        sign = "+" if old is None else "-" if new is None else "~"
        shown = new or old
        assert shown is not None
        lines.append(f"{sign} {frontend_line(shown)}")
    lines += [f"+ hairpin {hairpin_line(each)}" for each in sorted(change.hairpins_added)]
    lines += [f"- hairpin {hairpin_line(each)}" for each in sorted(change.hairpins_removed)]
    for key_ in sorted(change.health_ports):
        was, now = change.health_ports[key_]
        lines += [f"- health {health_line(was)}"] if was else []
        lines += [f"+ health {health_line(now)}"] if now else []
    return lines


def compiler_for(case: dict[str, Any], family: int) -> Compiler:
    return Compiler(settings_of(case), family)


def check(expected: dict[str, Any], desired: Desired) -> None:
    """Frontends, notes and health ports always; hairpins and the place where the case writes them."""
    assert [frontend_line(each) for each in desired.frontends] == expected.get("frontends", [])
    assert [note_line(each) for each in desired.notes] == expected.get("notes", [])
    assert [health_line(each) for each in desired.health_ports] == expected.get("health", [])
    if "hairpins" in expected:
        assert [hairpin_line(each) for each in desired.hairpins] == expected["hairpins"]
    for key, value in expected.get("place", {}).items():
        found = getattr(desired.place, key)
        assert (list(found) if isinstance(found, tuple) else found) == value
