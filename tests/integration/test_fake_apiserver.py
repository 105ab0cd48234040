"""FakeApiServer beside the real one: the same questions while the same things happen must get the same answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from meshlib.testing.fake_apiserver import FakeApiServer
from tests.components.process import wait_for

Namespace = Callable[[Any], str]
SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"
OF_ORDERS = "kubernetes.io/service-name in (carts,orders)"


class Real:
    def __init__(self, kube: Any, ns: str) -> None:
        self.kube, self.ns, self.client = kube, ns, kube.client

    def slice(self, name: str, service: str, addresses: list[str]) -> None:
        self.kube.put_slice(self.ns, name, service, addresses)

    def delete(self, name: str) -> None:
        self.kube.request("DELETE", f"{SLICES.format(self.ns)}/{name}")


class Fake:
    def __init__(self) -> None:
        self.ns = "shop"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = FakeApiServer(("v1",))
        self._call(self._server.start)
        # A connection that carried a watch ends with it; one kept alive might be taken again just before that.
        self.client = httpx.Client(
            base_url=self._server.url, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        async def there() -> None:
            found = function(*args)
            if asyncio.iscoroutine(found):
                await found

        asyncio.run_coroutine_threadsafe(there(), self._loop).result(10)

    def slice(self, name: str, service: str, addresses: list[str]) -> None:
        self._call(self._server.slice, self.ns, name, service, addresses)

    def delete(self, name: str) -> None:
        self._call(self._server.delete, "EndpointSlice", self.ns, name)

    def stop(self) -> None:
        self.client.close()
        self._call(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    running = Fake()
    yield running
    running.stop()


class Watcher:
    """Follows a watch in a thread: (type, name, service of the object, addresses) of every event."""

    def __init__(self, server: Any, version: str, selector: str) -> None:
        self.events: list[Any] = []
        self.versions: list[int] = []
        query = {
            "watch": "true",
            "resourceVersion": version,
            "labelSelector": selector,
            "timeoutSeconds": "4",
        }
        self._thread = threading.Thread(target=self._follow, args=(server, query))
        self._opened = threading.Event()
        self._thread.start()
        assert self._opened.wait(10)

    def _follow(self, server: Any, query: dict[str, str]) -> None:
        with server.client.stream("GET", SLICES.format(server.ns), params=query, timeout=30) as answer:
            self.events.append(answer.status_code)
            self._opened.set()
            for line in answer.iter_lines():
                event = json.loads(line)
                found = event["object"]
                if event["type"] == "BOOKMARK":
                    continue
                self.versions.append(int(found["metadata"]["resourceVersion"]))
                service = found["metadata"]["labels"]["kubernetes.io/service-name"]
                addresses = [each["addresses"][0] for each in found["endpoints"] or ()]
                self.events.append(
                    (event["type"], found["kind"], found["metadata"]["name"], service, addresses)
                )

    def end(self) -> list[Any]:
        self._thread.join(20)
        assert self.versions == sorted(set(self.versions))
        return self.events


def story(server: Any) -> list[Any]:
    """All that a client of ours looks at, in order."""
    told: list[Any] = []

    def listed(**params: str) -> Any:
        answer = server.client.get(SLICES.format(server.ns), params=params, timeout=30)
        found = answer.json()
        if answer.status_code != 200:
            causes = [each.get("reason") or each["message"] for each in found["details"]["causes"]]
            return answer.status_code, found["kind"], found["reason"], causes
        names = sorted(each["metadata"]["name"] for each in found["items"])
        return answer.status_code, found["kind"], names, bool(found["metadata"]["resourceVersion"])

    def version() -> str:
        """Of the newest slice, not of the list: that one is the whole store's, and the real server's cache of slices,
        where nothing else happens, may not get as far in the 3 s that it waits."""
        found = server.client.get(SLICES.format(server.ns)).json()
        return str(max(int(each["metadata"]["resourceVersion"]) for each in found["items"]))

    told.append(listed(resourceVersion="0"))
    server.slice("a", "orders", ["10.0.0.1"])
    server.slice("b", "carts", ["10.0.0.2"])
    server.slice("c", "other", ["10.0.0.3"])
    start = version()
    told += [listed(), listed(labelSelector=OF_ORDERS), listed(labelSelector="kubernetes.io/service-name")]
    told.append(listed(labelSelector=OF_ORDERS, resourceVersion=start))
    told.append(listed(resourceVersion=str(int(start) + 1_000_000)))
    live = Watcher(server, start, OF_ORDERS)
    server.slice("a", "orders", ["10.0.0.1", "10.0.0.4"])
    server.slice("c", "other", ["10.0.0.5"])  # not selected: nothing is told
    server.slice("a", "other", ["10.0.0.1"])  # the label leaves the selector: as if deleted
    server.slice("a", "orders", ["10.0.0.6"])  # and returns: as if created
    server.slice("b", "orders", ["10.0.0.2"])  # changes inside the selector
    server.delete("b")
    server.delete("c")
    server.slice("d", "orders", [])
    wait_for(lambda: len(live.events) >= 7, what="the events of the open watch")
    late = Watcher(server, start, OF_ORDERS)  # the same, from the history
    told += [live.end(), late.end(), listed()]
    group = server.client.get("/apis/discovery.k8s.io").json()
    told.append((group["kind"], "v1" in {each["version"] for each in group["versions"]}))
    told.append(server.client.get("/apis/discovery.k8s.io/v9/namespaces/x/endpointslices").status_code)
    return told


def test_the_fake_tells_what_the_real_one_tells(kube_v1: Any, namespace: Namespace, fake: Fake) -> None:
    """Lists, selectors, versions of the future, and watches, live and from the history, label changes included."""
    real = story(Real(kube_v1, namespace(kube_v1)))
    assert story(fake) == real
