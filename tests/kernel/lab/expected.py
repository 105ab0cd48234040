"""What a Desired means for a client, said without any kernel: the other side of every differential test. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from meshlib.agent.desired import Action, Desired, Frontend, FrontendKey, FrontendKind, Masquerade, Route


@dataclass(frozen=True, slots=True)
class Client:
    """Where a flow comes from. ``inside``: a pod of this node, or the node itself."""

    space: str
    address: str
    inside: bool
    is_node: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """``endpoints``: those that may answer, all of them in time. ``kept``: of these, the ones that see the client's own
    address; the others see the node's."""

    action: Action
    endpoints: frozenset[tuple[str, int]] = frozenset()
    kept: frozenset[tuple[str, int]] = frozenset()


def reachability(desired: Desired, client: Client) -> dict[FrontendKey, Expected]:
    """What this client finds at every frontend; a node port is looked for at each node address."""
    table = {}
    for frontend in desired.frontends:
        expected = _expected(desired, frontend, client)
        if frontend.key.address:
            table[frontend.key] = expected
        else:
            for address in desired.place.node_addresses:
                table[frontend.key._replace(address=address)] = expected
    return table


def _expected(desired: Desired, frontend: Frontend, client: Client) -> Expected:
    if frontend.kind is FrontendKind.LOAD_BALANCER and frontend.source_ranges is not None:
        address = ip_address(client.address)
        if not any(address in ip_network(each) for each in frontend.source_ranges):
            return Expected(Action.DROP)
    # Without a known range nobody can tell this node's pods from others.
    inside = client.is_node or (client.inside and bool(desired.place.pod_ranges))
    short = inside and frontend.inside is not None
    route: Route = frontend.inside if short and frontend.inside is not None else frontend.route
    if route.action is not Action.FORWARD or not route.targets:
        return Expected(route.action if route.action is not Action.FORWARD else Action.REJECT)
    endpoints = frozenset((target.address, target.port) for target in route.targets)
    hairpins = {(hairpin.address, hairpin.port) for hairpin in desired.hairpins}
    masqueraded = frontend.masquerade is Masquerade.ALWAYS or (
        frontend.masquerade is Masquerade.OFF_NODE and not client.inside and bool(desired.place.pod_ranges)
    )
    if masqueraded:
        kept = frozenset[tuple[str, int]]()
    else:
        itself = {each for each in endpoints if each[0] == client.address and each in hairpins}
        kept = endpoints - itself
    return Expected(Action.FORWARD, endpoints, kept)
