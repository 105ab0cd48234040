"""The lab: the network with its servers, and a backend that programs its node."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import TypeVar

from meshlib.agent.backends.base import Backend
from meshlib.agent.desired import Action, Desired, FrontendKey, Place
from meshlib.agent.engine.planner import Drift, Planner
from meshlib.agent.objects import Failed, Plan
from tests.kernel.lab.expected import Client, Expected, reachability
from tests.kernel.lab.net import (
    FAR1,
    FAR2,
    NODE,
    NODE_SECOND,
    OUT,
    POD1,
    POD2,
    POD_RANGE,
    SERVICE_RANGE,
    Network,
    inside,
    of,
)
from tests.kernel.lab.prober import (
    PATIENCE,
    SILENCE,
    Answered,
    Denied,
    Flow,
    Outcome,
    Refused,
    Silent,
    probe,
)
from tests.kernel.lab.servers import Servers

T = TypeVar("T")

PORT = 8080
SECOND_PORT = 8081
#: A daemon of the node's own, on all of its addresses, virtual ones included.
HOST_PORT = 2222
#: Flows until a rare endpoint must have been seen: with four endpoints one is missed once in 10**12.
MANY = 100


class Lab:
    """Everything between the fixture's beginning and end. Not for two tests at once."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.network = Network()

    def __enter__(self) -> Lab:
        try:
            self._stack.enter_context(self.network)
            self.servers = self._stack.enter_context(Servers())
            self._serve()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _serve(self) -> None:
        for family in (4, 6):
            for space, address in (("p1", POD1), ("p2", POD2), ("far", FAR1), ("far", FAR2)):
                for protocol in ("TCP", "UDP"):
                    for port in (PORT, SECOND_PORT):
                        self.serve(space, protocol, of(family, address), port)
            self.serve("node", "TCP", "0.0.0.0" if family == 4 else "::", HOST_PORT)

    def serve(self, space: str, protocol: str, address: str, port: int) -> socket.socket:
        """A server more; give what is returned to ``servers.stop``."""
        return self.servers.listen(self.network.spaces[space], protocol, address, port)

    def open(self, make: Callable[[], T], space: str = "node") -> T:
        """Calls something inside a namespace: a socket that it opens belongs there."""
        with inside(self.network.spaces[space]):
            return make()

    def probe(
        self,
        space: str,
        address: str,
        port: int,
        protocol: str = "TCP",
        *,
        patience: float = PATIENCE,
        source_port: int = 0,
        source: str = "",
    ) -> Outcome:
        """One new flow from a namespace."""
        return probe(
            self.network.spaces[space],
            protocol,
            address,
            port,
            patience=patience,
            source=source,
            source_port=source_port,
        )

    def ask(self, space: str, address: str, port: int, protocol: str = "TCP") -> Answered:
        """One new flow that must be answered."""
        outcome = self.probe(space, address, port, protocol)
        assert isinstance(outcome, Answered), outcome
        return outcome

    def silent(self, space: str, address: str, port: int, protocol: str = "TCP") -> bool:
        """Whether nothing comes back."""
        return self.probe(space, address, port, protocol, patience=SILENCE) == Silent()

    def flow(
        self, space: str, address: str, port: int, protocol: str = "TCP", *, source_port: int = 0
    ) -> Flow:
        """A flow that stays open."""
        return Flow(self.network.spaces[space], protocol, address, port, source_port=source_port)

    def place(self, family: int, **more: object) -> Place:
        """The node of the lab."""
        facts: dict[str, object] = {
            "node_addresses": (of(family, NODE), of(family, NODE_SECOND)),
            "pod_ranges": (of(family, POD_RANGE),),
            "service_ranges": (of(family, SERVICE_RANGE),),
            "source": of(family, NODE),
            **more,
        }
        return Place(family, **facts)  # type: ignore[arg-type]

    def clients(self, family: int) -> tuple[Client, ...]:
        """Whoever can ask: two pods of the node, the node, a pod elsewhere and somebody outside."""
        return (
            Client("p1", of(family, POD1), inside=True),
            Client("p2", of(family, POD2), inside=True),
            Client("node", of(family, NODE), inside=True, is_node=True),
            Client("out", of(family, OUT), inside=False),
        )

    def forget_flows(self) -> None:
        """Empty the node's connection tracking."""
        self.network.run("node", "conntrack -F 2>/dev/null")

    def check(self, desired: Desired, clients: Iterable[Client] | None = None) -> None:
        """Every client finds at every frontend what the model says. Reports all differences."""
        differences = []
        for client in clients or self.clients(desired.place.family):
            for key, expected in reachability(desired, client).items():
                wrong = self._difference(key, expected, client, desired.place)
                if wrong:
                    differences.append(f"{client.space} → {key}: {wrong}")
        assert not differences, "\n".join(differences)

    def _difference(self, key: FrontendKey, expected: Expected, client: Client, place: Place) -> str:
        protocol, address, port = key
        if expected.action is not Action.FORWARD:
            patience = SILENCE if expected.action is Action.DROP else PATIENCE
            outcome = self.probe(client.space, address, port, protocol, patience=patience)
            if outcome == Denied() and client.is_node and protocol == "UDP":
                return ""
            wanted: Outcome = Silent() if expected.action is Action.DROP else Refused()
            return "" if outcome == wanted else f"{outcome}, not {wanted}"
        seen = set()
        for _ in range(MANY):
            outcome = self.probe(client.space, address, port, protocol)
            if not isinstance(outcome, Answered):
                return f"{outcome}, not one of {sorted(expected.endpoints)}"
            endpoint = (outcome.endpoint, outcome.port)
            if endpoint not in expected.endpoints:
                return f"answered by {endpoint}, not one of {sorted(expected.endpoints)}"
            own = (client.address,) if not client.is_node else (client.address, *place.node_addresses)
            if (outcome.source in own) != (endpoint in expected.kept or client.is_node):
                return f"{endpoint} saw {outcome.source}"
            seen.add(endpoint)
            if seen == expected.endpoints:
                return ""
        return f"only {sorted(seen)} of {sorted(expected.endpoints)} ever answered"


class Programmed:
    """A backend with what is wanted of it: the plan as the engine makes it, without its pace and its guard."""

    def __init__(self, backend: Backend, place: Place) -> None:
        self.backend = backend
        self.planner = Planner(backend.kinds)
        self._sources: dict[tuple[object, ...], object] = {}
        self.desired = Desired(place)
        self.planner.change((0,), {}, backend.fixed(place))

    def want(self, desired: Desired) -> None:
        """Nothing is written yet."""
        old, self.desired = self.desired, desired
        backend = self.backend
        if old.place != desired.place:
            self.planner.change((0,), backend.fixed(old.place), backend.fixed(desired.place))
        before = {frontend.key: frontend for frontend in old.frontends}
        after = {frontend.key: frontend for frontend in desired.frontends}
        for key in before.keys() | after.keys():
            gone, new = before.get(key), after.get(key)
            if gone == new and old.place == desired.place:
                continue
            self.planner.change(
                (1, key),
                backend.translate(gone, old.place) if gone else {},
                backend.translate(new, desired.place) if new else {},
            )
        for hairpin in {*old.hairpins, *desired.hairpins}:
            self.planner.change(
                (2, hairpin),
                backend.translate_hairpin(hairpin, old.place) if hairpin in old.hairpins else {},
                backend.translate_hairpin(hairpin, desired.place) if hairpin in desired.hairpins else {},
            )

    def write(self) -> tuple[Plan, list[Failed]]:
        """Apply what is pending."""
        plan = self.planner.plan()
        failed = list(self.backend.apply(plan, 0.0))
        self.planner.done(plan, failed)
        return plan, failed

    def program(self, desired: Desired) -> Plan:
        """Bring the kernel to this; everything must work."""
        self.want(desired)
        plan, failed = self.write()
        assert not failed, failed
        return plan

    def audit(self) -> Drift:
        """Read the kernel, and compare."""
        actual = self.backend.dump(self.desired.place.family)
        return self.planner.audit(actual, lambda key: self.backend.ledger_key(key) is None)
