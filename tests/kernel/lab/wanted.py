"""Short ways to say a Desired of the lab."""

from __future__ import annotations

from collections.abc import Iterable

from meshlib.agent.desired import (
    Action,
    Desired,
    Frontend,
    FrontendKey,
    FrontendKind,
    Hairpin,
    Masquerade,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.model.service import ServiceKey
from tests.kernel.lab.lab import PORT
from tests.kernel.lab.net import FAR1, FAR2, POD1, POD2, of

REJECT, DROP = Route(Action.REJECT), Route(Action.DROP)
#: One address of each kind; tests that need more count up.
CLUSTER_IP, EXTERNAL_IP, LB_IP = "10.96.0.10", "10.77.0.10", "10.77.0.70"
NODE_PORT = 30080


def to(family: int, *addresses: str, port: int = PORT, weights: Iterable[int] = ()) -> Route:
    """Forward to pods of the lab."""
    chosen = list(weights) or [1] * len(addresses)
    targets = (
        Target(of(family, address), port, weight) for address, weight in zip(addresses, chosen, strict=True)
    )
    return Route(Action.FORWARD, tuple(sorted(targets)))


def everywhere(family: int, port: int = PORT) -> Route:
    """All four pods."""
    return to(family, POD1, POD2, FAR1, FAR2, port=port)


def owner(name: str = "web", protocol: str = "TCP", port: str = "http") -> PortKey:
    """A port of a Service."""
    return PortKey(ServiceKey("shop", name), port, protocol)


def frontend(
    kind: FrontendKind, address: str, port: int, route: Route, protocol: str = "TCP", **more: object
) -> Frontend:
    """Any frontend; ``more`` as in Frontend."""
    facts: dict[str, object] = {"owner": owner(protocol=protocol), **more}
    return Frontend(FrontendKey(protocol, address, port), kind, route=route, **facts)  # type: ignore[arg-type]


def cluster_ip(
    family: int,
    route: Route,
    address: str = CLUSTER_IP,
    port: int = 80,
    protocol: str = "TCP",
    **more: object,
) -> Frontend:
    """Masqueraded where the source is no pod of the node, as the compiler says with a known pod range."""
    more = {"masquerade": Masquerade.OFF_NODE, **more}
    return frontend(FrontendKind.CLUSTER_IP, of(family, address), port, route, protocol, **more)


def external_ip(
    family: int,
    route: Route,
    address: str = EXTERNAL_IP,
    port: int = 80,
    protocol: str = "TCP",
    **more: object,
) -> Frontend:
    """externalTrafficPolicy Cluster, unless told."""
    more = {"masquerade": Masquerade.ALWAYS, **more}
    return frontend(FrontendKind.EXTERNAL_IP, of(family, address), port, route, protocol, **more)


def load_balancer(
    family: int, route: Route, address: str = LB_IP, port: int = 80, protocol: str = "TCP", **more: object
) -> Frontend:
    """externalTrafficPolicy Cluster, unless told."""
    more = {"masquerade": Masquerade.ALWAYS, **more}
    return frontend(FrontendKind.LOAD_BALANCER, of(family, address), port, route, protocol, **more)


def node_port(route: Route, port: int = NODE_PORT, protocol: str = "TCP", **more: object) -> Frontend:
    """externalTrafficPolicy Cluster, unless told."""
    more = {"masquerade": Masquerade.ALWAYS, **more}
    return frontend(FrontendKind.NODE_PORT, "", port, route, protocol, **more)


def hairpins(family: int, *ports: int) -> tuple[Hairpin, ...]:
    """Both pods of the node may be sent their own traffic back."""
    return tuple(
        Hairpin(of(family, address), protocol, port)
        for address in (POD1, POD2)
        for protocol in ("TCP", "UDP")
        for port in ports or (PORT,)
    )


def desired(place: Place, *frontends: Frontend) -> Desired:
    """With hairpins for the pods of the node."""
    ordered = tuple(sorted(frontends, key=lambda frontend: frontend.key))
    return Desired(place, ordered, hairpins(place.family))
