"""Explain: what this node does with one address and port, why, and whether the kernel holds what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from meshlib.agent.backends.base import words
from meshlib.agent.desired import Action, Frontend, FrontendKey, FrontendKind, Masquerade, Place, Route
from meshlib.agent.engine.node import FamilyEngine
from meshlib.agent.objects import ObjectKey
from meshlib.model.address import canonical
from meshlib.model.address import family as family_of

_KINDS = {
    FrontendKind.CLUSTER_IP: "the Service's ClusterIP",
    FrontendKind.EXTERNAL_IP: "one of its externalIPs",
    FrontendKind.LOAD_BALANCER: "an address of its load balancer",
    FrontendKind.NODE_PORT: "its node port",
}


def parse_frontend(text: str, protocol: str = "TCP") -> FrontendKey:
    """``ADDRESS:PORT``, IPv6 in brackets. Raises ValueError with what is wrong."""
    host, found, port = text.rpartition(":")
    if not found or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise ValueError(f"{text!r:.80} is not ADDRESS:PORT")
    bare = host.removeprefix("[").removesuffix("]")
    if (":" in bare) != (bare != host):
        raise ValueError(f"{text!r:.80} is ambiguous: write IPv6 in brackets")
    try:
        return FrontendKey(protocol, str(ip_address(bare)), int(port))
    except ValueError:
        raise ValueError(f"{bare!r:.80} is not an IP address") from None


def explain(families: Mapping[int, FamilyEngine], asked: FrontendKey) -> dict[str, Any]:
    """On the worker's thread. Reads the kernel; where it cannot, ``kernel`` says why. The keys are part of the
    interface."""
    address = canonical(asked.address)
    asked = asked._replace(address=address)
    engine = families.get(family_of(address))
    if engine is None:
        return {"asked": str(asked), "served": False, "why": "no backend programs this family here"}
    place = engine.programmer.place
    key = asked
    frontend = engine.compiler.frontend(key)
    if frontend is None and address in place.node_addresses:
        key = asked._replace(address="")
        frontend = engine.compiler.frontend(key)
    if frontend is None:
        return {"asked": str(asked), "served": False, "why": _unserved(engine, asked, place)}
    notes = [note for note in engine.notes if note.service == frontend.owner.service or str(key) in note.text]
    return {
        "asked": str(asked),
        "served": True,
        "service": str(frontend.owner.service),
        "port": frontend.owner.port,
        "through": _KINDS[frontend.kind],
        "everybody": _route(frontend.route),
        "pods_and_node": _route(frontend.inside) if frontend.inside is not None else None,
        "why": _why(frontend),
        "masquerade": frontend.masquerade.value,
        "masquerade_why": _masquerade(frontend, place),
        "affinity_seconds": frontend.affinity_seconds,
        "scheduler": frontend.scheduler if engine.programmer.backend.name == "ipvs" else "",
        "source_ranges": None if frontend.source_ranges is None else list(frontend.source_ranges),
        "held_back": key in engine.programmer.held,
        "notes": [f"{note.service}: {note.text} ({note.reason})" for note in sorted(notes)],
        "kernel": _kernel(engine, frontend, place),
    }


def _route(route: Route) -> dict[str, Any]:
    return {
        "action": route.action.value,
        "endpoints": [
            {"address": target.address, "port": target.port, "weight": target.weight}
            for target in route.targets
        ],
    }


def _why(frontend: Frontend) -> str:
    match frontend.route.action:
        case Action.REJECT:
            return "no endpoint anywhere is ready (or serving while it terminates): refused at once"
        case Action.DROP:
            policy = "internal" if frontend.kind is FrontendKind.CLUSTER_IP else "external"
            return f"{policy}TrafficPolicy is Local, and the endpoints are on other nodes: no answer"
        case Action.FORWARD:
            if frontend.inside is not None:
                return (
                    "externalTrafficPolicy is Local: outside sources get this node's endpoints, pods here all"
                )
            return "its eligible endpoints; `meshlib resolve` tells of those that are not"


def _masquerade(frontend: Frontend, place: Place) -> str:
    match frontend.masquerade:
        case Masquerade.ALWAYS:
            return "endpoints may be on other nodes, and their replies have to come back through this one"
        case Masquerade.NEVER:
            return "the client's address is kept: a Local policy, or traffic of pods only"
        case Masquerade.OFF_NODE:
            if not place.pod_ranges:
                return "never: the pods' range is not known (detect_local, or spec.podCIDRs of the Node)"
            return f"unless the source is a pod of this node ({', '.join(place.pod_ranges)}) or the node"


def _unserved(engine: FamilyEngine, asked: FrontendKey, place: Place) -> str:
    served = sorted(
        f"{key.port}/{key.protocol}"
        for key in engine.programmer.frontends
        if key.address == asked.address and key != asked
    )
    if served:
        return f"a virtual address, but not this port: refused. Served there: {', '.join(served)}"
    if asked.address in place.node_addresses:
        return "an address of this node, and no node port: not ours, the host's own servers answer"
    parsed = ip_address(asked.address)
    if any(parsed in ip_network(each) for each in place.service_ranges):
        return "in the range of ClusterIPs, and no Service has it: dropped"
    return "not ours: this packet is left alone"


def _kernel(engine: FamilyEngine, frontend: Frontend, place: Place) -> dict[str, Any]:
    programmer = engine.programmer
    backend = programmer.backend
    wanted = backend.translate(frontend, place)
    try:
        actual = backend.dump(place.family)
    except OSError as error:
        return {"error": str(error)}

    def said(keys: list[ObjectKey]) -> list[str]:
        return sorted(words(backend, key, wanted[key]) for key in keys)

    missing = [key for key in wanted if key not in actual]
    # An object that several frontends share may rightly have the value that another one asks for.
    shared = programmer.planner.wanted
    different = [
        key
        for key in wanted
        if key in actual and actual[key] != (shared.value(key) if key in shared else wanted[key])
    ]
    return {
        "mode": backend.name,
        "objects": said([key for key in wanted if key in actual]),
        "missing": said(missing),
        "different": said(different),
    }
