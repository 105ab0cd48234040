"""The facts of the kernel path from files: told once whole, then by difference, and never less than was good."""

from __future__ import annotations

import asyncio
from pathlib import Path

from meshlib.discovery.file.cluster import CONFIRM, FileCluster
from meshlib.model.cluster import ABSENT, ClusterChange, Node
from meshlib.model.service import ServiceKey
from tests.unit.discovery.virtual import World, run

NODE = Node("node-a", "zone-1", ("192.0.2.1",))
ORDERS, BILLS = ServiceKey("default", "orders"), ServiceKey("default", "bills")


def service(name: str, address: str) -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{clusterIP: {address}, ports: [{{name: http, port: 80}}]}}\n---\n"
    )


def endpoints(name: str, *addresses: str) -> str:
    listed = ", ".join(f"{{addresses: [{each}]}}" for each in addresses)
    return (
        f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: "
        f"{{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n"
        f"ports: [{{name: http, port: 8080}}]\nendpoints: [{listed}]\n---\n"
    )


class Case:
    """A folder, its source, and what it told; ``settle`` waits until a change has been seen for certain."""

    def __init__(self, world: World, folder: Path) -> None:
        self.told: list[ClusterChange] = []
        self.source = FileCluster(world.context(), str(folder), NODE, self.told.append)
        self.source.start()

    async def settle(self) -> None:
        await asyncio.sleep(2.0)


def addresses(change: ClusterChange, key: ServiceKey) -> set[str]:
    return {each.address for one in change.services[key].slices for each in one.endpoints}


def test_told_whole_and_then_by_difference(tmp_path: Path) -> None:
    """First everything with the node, then single Services; one that goes is told as absent; nothing twice."""

    async def main() -> None:
        world = World()
        (tmp_path / "orders.yaml").write_text(
            service("orders", "10.96.0.10") + endpoints("orders", "10.1.0.1")
        )
        (tmp_path / "bills.yaml").write_text(service("bills", "10.96.0.11"))
        case = Case(world, tmp_path)
        assert case.source.lists == 0
        await case.settle()
        (first,) = case.told
        assert (first.complete, first.node, set(first.services)) == (True, NODE, {ORDERS, BILLS})
        assert addresses(first, ORDERS) == {"10.1.0.1"}
        assert case.source.synced
        assert case.source.live

        (tmp_path / "orders.yaml").write_text(
            service("orders", "10.96.0.10") + endpoints("orders", "10.1.0.1", "10.1.0.2")
        )
        await case.settle()
        assert len(case.told) == 2
        assert set(case.told[1].services) == {ORDERS}
        assert addresses(case.told[1], ORDERS) == {"10.1.0.1", "10.1.0.2"}
        assert case.told[1].lists > case.told[0].lists

        (tmp_path / "bills.yaml").unlink()
        await case.settle()
        assert case.told[2].services == {BILLS: ABSENT}
        assert case.told[2].node is None
        before = case.source.lists
        await case.settle()
        assert len(case.told) == 3
        assert case.source.lists > before
        await asyncio.sleep(CONFIRM)
        assert case.told[3] == ClusterChange(lists=case.told[3].lists)
        assert case.told[3].lists >= before
        await case.source.close()

    run(main())


def test_nothing_is_told_before_every_file_was_read_once(tmp_path: Path) -> None:
    """A broken file may hold any Service: the agent waits; broken later it keeps what was good."""

    async def main() -> None:
        world = World()
        (tmp_path / "bills.yaml").write_text(service("bills", "10.96.0.11"))
        broken = tmp_path / "orders.yaml"
        broken.write_text("kind: [")
        case = Case(world, tmp_path)
        await case.settle()
        assert case.told == []
        assert case.source.describe()["synced"] is False
        assert case.source.describe()["problems"]
        broken.write_text(service("orders", "10.96.0.10"))
        await case.settle()
        assert set(case.told[0].services) == {ORDERS, BILLS}
        broken.write_text("kind: [")
        await case.settle()
        assert case.source.describe()["stale"]
        await asyncio.sleep(CONFIRM)
        assert len(case.told) == 1
        await case.source.close()

    run(main())
