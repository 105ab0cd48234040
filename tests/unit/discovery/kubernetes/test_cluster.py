"""The facts of a whole cluster when the API server misbehaves, over real sockets in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from meshlib.agent.facts import Facts
from meshlib.discovery.kubernetes.cluster import KubernetesCluster
from meshlib.discovery.kubernetes.service_cidrs import RECHECK
from meshlib.model.cluster import ClusterChange, Node
from meshlib.model.events import SourceFailed, SourceRecovered
from meshlib.model.service import ServiceKey
from meshlib.testing.fake_apiserver import Connection, FakeApiServer, Request, status
from tests.unit.discovery.kubernetes.virtual import Client, always, eventually, run

NAMES = ["orders", "bills", "users"]


class Told:
    def __init__(self) -> None:
        self.changes: list[ClusterChange] = []
        self.facts = Facts()

    def tell(self, change: ClusterChange) -> None:
        self.changes.append(change)
        self.facts = self.facts.after(change)

    def endpoints(self) -> dict[str, int]:
        """Of each Service: how many."""
        return {
            key.name: sum(len(each.endpoints) for each in facts.slices)
            for key, facts in self.facts.services.items()
        }


FULL = dict.fromkeys(NAMES, 2)
Test = Callable[[FakeApiServer, KubernetesCluster, Told, Client], Coroutine[Any, Any, None]]


def play(test: Test, *, synced: bool = True, node: str = "", react: Any = None) -> None:
    """A server with three Services in two namespaces, and a source (``synced``: that has told them)."""

    async def main() -> None:
        server = FakeApiServer()
        server.react = react
        await server.start()
        for number, name in enumerate(NAMES):
            server.service(f"ns{number % 2}", name)
            server.slice(f"ns{number % 2}", f"{name}-1", name, ["10.0.0.1", "10.0.0.2"])
        client, told = Client(api_server=server.url), Told()
        source = KubernetesCluster(client.context, node, told.tell)
        source.start()
        if synced:
            await eventually(lambda: told.endpoints() == FULL)
            await asyncio.sleep(2)
        try:
            await test(server, source, told, client)
        finally:
            await source.close()
            await client.close()
            await server.close()

    run(main)


@pytest.mark.acceptance(102)
@pytest.mark.parametrize("late", ["services", "endpointslices"])
def test_nothing_is_told_until_both_are_known(late: str) -> None:
    """One of the two lists fails for a while: no word, then everything in one complete change."""
    failing = True

    async def react(request: Request, connection: Connection) -> bool:
        if failing and request.resource == late:
            await connection.answer(403, status(403, "Forbidden", "not you"))
            return True
        return False

    async def test(server: FakeApiServer, source: KubernetesCluster, told: Told, client: Client) -> None:
        nonlocal failing
        await always(lambda: not told.changes, 30)
        assert not source.synced
        failing = False
        await eventually(lambda: told.changes, 120)
        assert told.changes[0].complete
        assert told.endpoints() == FULL

    play(test, synced=False, react=react)


@pytest.mark.acceptance(100)
def test_an_outage_takes_nothing_away() -> None:
    """An hour without a server: nothing is told, the state is called stale; afterwards only what is new."""

    async def test(server: FakeApiServer, source: KubernetesCluster, told: Told, client: Client) -> None:
        count = len(told.changes)
        await server.refuse()
        await always(lambda: len(told.changes) == count, 3600, step=10)
        assert source.describe()["stale"]
        assert any(isinstance(event, SourceFailed) and event.stale for event in client.events)
        await server.start()
        server.slice("ns0", "orders-1", "orders", ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
        await eventually(lambda: told.endpoints()["orders"] == 3, 120)
        assert all(set(change.services) <= {ServiceKey("ns0", "orders")} for change in told.changes[count:])
        await eventually(lambda: any(isinstance(event, SourceRecovered) for event in client.events))
        await eventually(lambda: not source.describe()["stale"])

    play(test)


def cidr(name: str, *cidrs: str) -> dict[str, Any]:
    meta = {"name": name, "resourceVersion": "7"}
    return {
        "kind": "ServiceCIDR",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": meta,
        "spec": {"cidrs": list(cidrs)},
    }


@pytest.mark.acceptance(78)
def test_ranges_of_service_addresses() -> None:
    """An API server without ServiceCIDRs is no trouble, and is asked again; once it has them they are told, as is each
    that comes. Networks that are none are left out."""
    served = False
    more = asyncio.Event()

    async def react(request: Request, connection: Connection) -> bool:
        group = "/apis/networking.k8s.io/v1"
        if not served or (not request.path.startswith(f"{group}/") and request.path != group):
            return False
        if not request.path.endswith("/servicecidrs"):
            await connection.answer(200, {"kind": "APIResourceList", "resources": [{"name": "servicecidrs"}]})
        elif not request.watch:
            items = [cidr("kubernetes", "10.96.0.0/12", "fd00::/108", "ten")]
            listed = {"kind": "ServiceCIDRList", "metadata": {"resourceVersion": "7"}, "items": items}
            await connection.answer(200, listed)
        else:
            await connection.begin_stream()
            await more.wait()
            event = {"type": "ADDED", "object": cidr("more", "10.200.0.0/16")}
            await connection.chunk(json.dumps(event).encode() + b"\n")
            await connection.gone()
        return True

    async def test(server: FakeApiServer, source: KubernetesCluster, told: Told, client: Client) -> None:
        nonlocal served
        await always(lambda: told.facts.service_ranges == () and source.live, 300, step=10)
        assert not any(isinstance(event, SourceFailed) for event in client.events)
        asked = [request for request in server.requests if "networking" in request.path]
        assert len(asked) == 2
        served = True
        await eventually(lambda: told.facts.service_ranges, 2 * RECHECK)
        assert told.facts.service_ranges == ("10.96.0.0/12", "fd00::/108")
        assert source.describe()["skipped"] == 1
        more.set()
        await eventually(lambda: "10.200.0.0/16" in told.facts.service_ranges)
        assert not told.changes[-1].services

    play(test, react=react)


@pytest.mark.acceptance(100)
@pytest.mark.parametrize("resource", ["services", "endpointslices"])
def test_a_list_that_is_suddenly_empty_is_asked_for_again(resource: str) -> None:
    """After a 410 the list is empty, as from a cache that was not filled yet: nothing is told until a consistent read
    says the same, and that one does not."""
    lying = False
    asked: list[str] = []

    async def react(request: Request, connection: Connection) -> bool:
        if request.resource == resource and not request.watch and lying:
            version = request.params.get("resourceVersion", "")
            asked.append(version)
            if version:
                kind = {"services": "ServiceList", "endpointslices": "EndpointSliceList"}[resource]
                await connection.answer(
                    200, {"kind": kind, "metadata": {"resourceVersion": "900"}, "items": []}
                )
                return True
        return False

    async def test(server: FakeApiServer, source: KubernetesCluster, told: Told, client: Client) -> None:
        nonlocal lying
        lying, lists = True, source.lists
        server.resource_version = 900
        server.compact()
        server.end_watches(resource)
        await eventually(lambda: "" in asked, 120)
        await always(lambda: told.endpoints() == FULL, 30)
        assert asked[0] != ""
        await eventually(lambda: source.lists >= lists)

    play(test, react=react)


def test_complete_lists_are_told_even_where_nothing_changed() -> None:
    """Each time everything was read again the number goes up, which is what a held removal waits for."""

    async def test(server: FakeApiServer, source: KubernetesCluster, told: Told, client: Client) -> None:
        lists = told.changes[-1].lists
        await eventually(lambda: told.changes[-1].lists >= lists + 2, 4000)
        assert all(not change.services for change in told.changes[-2:])
        assert told.endpoints() == FULL

    play(test)


def test_a_node_that_cannot_be_read_is_known_by_its_name() -> None:
    """The server has no Nodes for us (404): Services are told all the same, and the node has its name."""

    async def test(server: FakeApiServer, source: KubernetesCluster, told: Told, client: Client) -> None:
        assert told.facts.node == Node("node-a")
        assert not source.live

    play(test, node="node-a")


def test_a_service_and_its_slices_in_any_order() -> None:
    """Slices before their Service are no news; a Service that goes takes its slices with it, and finds them again."""

    async def test(server: FakeApiServer, source: KubernetesCluster, told: Told, client: Client) -> None:
        server.slice("ns0", "new-1", "new", ["10.0.0.9"])
        await asyncio.sleep(1)
        assert "new" not in told.endpoints()
        server.service("ns0", "new")
        await eventually(lambda: told.endpoints() == {**FULL, "new": 1})
        server.delete("Service", "ns0", "new")
        await eventually(lambda: told.endpoints() == FULL)
        server.service("ns0", "new")
        await eventually(lambda: told.endpoints() == {**FULL, "new": 1})

    play(test)


def test_a_burst_is_told_in_few_words() -> None:
    """A hundred changes at once become a handful of changes, the last of which has everything."""

    async def test(server: FakeApiServer, source: KubernetesCluster, told: Told, client: Client) -> None:
        count = len(told.changes)
        for number in range(100):
            server.slice("ns0", "orders-1", "orders", [f"10.0.1.{n}" for n in range(1, number + 2)])
        await eventually(lambda: told.endpoints()["orders"] == 100)
        assert len(told.changes) - count < 40

    play(test)
