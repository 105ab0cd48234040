"""Several Meshes of one process on one API server: what they share, and what the close of one does to the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import meshlib
from meshlib.errors import MeshClosed
from meshlib.runtime.mesh import Mesh
from meshlib.testing.fake_apiserver import Connection, FakeApiServer, Request
from tests.components.process import wait_for

ORDERS = "k8s:///orders.shop:http"


class Served:
    """A FakeApiServer on a loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = FakeApiServer()
        self.call(self.server.start)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        async def there() -> Any:
            found = function(*args)
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result(10)

    def lists(self, resource: str) -> int:
        return sum(r.resource == resource and not r.watch for r in self.server.requests)

    def stop(self) -> None:
        self.call(self.server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def served() -> Iterator[Served]:
    running = Served()
    running.call(running.server.service, "shop", "orders")
    running.call(running.server.slice, "shop", "orders-1", "orders", ["10.0.0.1"])
    yield running
    running.stop()


def mesh(served: Served, **more: Any) -> Mesh:
    table = {"discovery": {"k8s": {"api_server": served.server.url}}, "sync_timeout": 20.0, **more}
    return Mesh(config=meshlib.load_config(table, environ={}))


def dialled(one: Mesh) -> set[str]:
    with one.target(ORDERS).pick(timeout=40) as endpoint:
        first = endpoint.address
    picker = one.target(ORDERS).status()["endpoints"]
    return {first} | {each["address"] for each in picker}


def test_equal_meshes_share_a_watch_and_each_closes_its_own(served: Served) -> None:
    """Two Meshes with equal settings cost one list and one watch; the close of one leaves the other's, and news still
    come; a third with another address policy has its own; the last close ends all."""
    server = served.server
    first, second = mesh(served), mesh(served)
    assert dialled(first) == dialled(second) == {"10.0.0.1"}
    assert (served.lists("endpointslices"), served.lists("services")) == (1, 1)
    wait_for(lambda: server.watching("endpointslices") == server.watching("services") == 1)
    third = mesh(served, address={"allow": ["10.0.0.0/8"]})
    assert dialled(third) == {"10.0.0.1"}
    wait_for(lambda: server.watching("endpointslices") == 2)
    first.close()
    served.call(server.slice, "shop", "orders-1", "orders", ["10.0.0.1", "10.0.0.2"])
    for one in (second, third):
        wait_for(lambda one=one: dialled(one) == {"10.0.0.1", "10.0.0.2"})  # type: ignore[misc]
    assert server.watching("endpointslices") == 2
    with pytest.raises(MeshClosed):
        first.target(ORDERS)
    third.close()
    wait_for(lambda: server.watching("endpointslices") == server.watching("services") == 1)
    second.close()
    wait_for(lambda: server.watching("endpointslices") == server.watching("services") == 0)
    again = mesh(served)
    assert dialled(again) == {"10.0.0.1", "10.0.0.2"}
    again.close()


@pytest.mark.parametrize("other", [True, False], ids=["another mesh waits", "nobody waits"])
def test_closed_while_the_list_is_under_way(served: Served, other: bool) -> None:
    """The list that a closed Mesh began is finished for those who wait for it, and dropped when nobody does."""
    server, held = served.server, threading.Event()
    release: list[asyncio.Event] = []

    async def react(request: Request, connection: Connection) -> bool:
        if request.resource == "endpointslices" and not request.watch:
            if not release:
                release.append(asyncio.Event())
            held.set()
            await release[0].wait()
        return False

    server.react = react
    first, second = mesh(served), mesh(served)
    outcome: list[type[Exception]] = []

    def wait_for_closed() -> None:
        with pytest.raises(MeshClosed) as caught, first.target(ORDERS).pick(timeout=40):
            pass
        outcome.append(caught.type)

    threads = [threading.Thread(target=wait_for_closed)]
    if other:
        threads.append(threading.Thread(target=dialled, args=(second,)))
    for each in threads:
        each.start()
    assert held.wait(10)
    if other:
        second.target(ORDERS).status()  # its watch has begun when this returns
    first.close()
    threads[0].join(5)
    assert outcome == [MeshClosed]  # at once, not at the end of its bound
    served.call(release[0].set)
    for each in threads:
        each.join(20)
    if other:
        assert dialled(second) == {"10.0.0.1"}
        assert served.lists("endpointslices") == 1
    second.close()
    wait_for(lambda: server.watching("endpointslices") == server.watching("services") == 0)
