"""The table "your URL -> what happens" of docs/urls.md, row by row, with real clients under install()."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpcore
import httpcore2
import httpx
import httpx2
import pytest

from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from meshlib.model.target import Target
from meshlib.model.update import Snapshot
from tests.components.backends import Backends
from tests.integration.grpc_support import eventually
from tests.integration.install_support import Installed, installed

PAGE = Path(__file__).parents[2] / "docs" / "urls.md"
PLAIN, SECURE = ("http", 80), ("https", 443)
LIBRARIES = {"httpx": (httpx, httpcore), "httpx2": (httpx2, httpcore2)}


def rows() -> list[Any]:
    """URL, what happens, targets."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            url = cells[0].strip("`")
            found.append(pytest.param(url, cells[1], re.findall("`([^`]+)`", cells[2]), id=url))
    return found


class Shop:
    """Services orders of shop and of stock, with real servers behind; DNS knows exactly those."""

    def __init__(self, mesh: Installed, backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mesh = mesh
        self.asked: list[Sequence[Target]] = []
        self.verify = backends.client_context()
        self.known = False
        (plain,) = backends.http(1)
        (secure,) = backends.http(1, tls="orders.shop.svc")
        for namespace in ("shop", "stock"):
            mesh.resolver.publish(f"{namespace}/orders", self._service(namespace, plain, secure))
        monkeypatch.setattr(mesh.mesh, "find_first", self._find_first)

    def _service(self, namespace: str, plain: Any, secure: Any) -> Snapshot:
        key = ServiceKey(namespace, "orders")
        ports = (ServicePort("http", 80), ServicePort("https", 443), ServicePort("alt", 8080))
        slices = tuple(
            EndpointSlice(
                namespace=namespace,
                name=f"orders-{index}",
                service=key,
                family=4,
                ports=tuple(SlicePort(name, backend.port) for name in names),
                endpoints=(SliceEndpoint(address=backend.host, hostname="orders-0"),),
            )
            for index, (backend, names) in enumerate(((plain, ("http", "alt")), (secure, ("https",))))
        )
        return Snapshot(Service(key=key, ports=ports, type=ServiceType.CLUSTER_IP), slices, source="test")

    def _find_first(self, candidates: Sequence[Target], tell: Callable[[Target | None], None]) -> None:
        """As DNS would answer, in the order of the search list."""
        self.asked.append(candidates)
        exists = [t for t in candidates if t.name == "orders" and t.namespace in ("shop", "stock")]
        if self.known:
            tell(exists[0] if exists else None)


@pytest.fixture
def shop(backends: Backends, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    with installed(aliases={"orders.internal": "k8s:///orders.shop:http"}) as mesh:
        yield Shop(mesh, backends, monkeypatch)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize(("url", "decision", "targets"), rows())
def test_row(shop: Shop, name: str, url: str, decision: str, targets: list[str]) -> None:
    """What the page promises is what a request does; the request itself is as it was typed."""
    library, core = LIBRARIES[name]
    bare: list[bytes] = []

    def served_bare(request: Any) -> Any:
        bare.append(request.url.host)
        return core.Response(204)

    with library.Client(trust_env=False, verify=shop.verify) as client:
        client._transport.__dict__["_pool"].handle_request = served_bare
        if decision == "balanced":
            reply = client.get(url)
            assert bare == []
            assert reply.headers["x-host"] == library.URL(url).netloc.decode()
            assert [str(handle.target) for handle in shop.mesh.mesh.handles] == targets
            return
        assert client.get(url).status_code == 204  # nothing is known yet, or ever
        assert len(bare) == 1
        if decision == "untouched":
            assert shop.mesh.mesh.handles == ()
            assert shop.asked == []
            return
        assert [str(target) for target in shop.asked[0]] == targets
        shop.known = True
        for entry in shop.mesh.mesh._urls._entries.values():
            entry.asking = False  # the first question was never answered
        if "orders" in url:
            eventually(lambda: client.get(url).status_code == 200)
            (handle,) = shop.mesh.mesh.handles
            assert str(handle.target) == targets[-1]
            assert len(bare) >= 1
        else:
            assert client.get(url).status_code == 204


def test_a_port_that_the_service_does_not_list(shop: Shop) -> None:
    """Decision D2: the bare way, in transparent use."""
    bare: list[int] = []
    with httpx.Client(trust_env=False) as client:
        pool = client._transport.__dict__["_pool"]
        pool.handle_request = lambda request: bare.append(request.url.port) or httpcore.Response(204)
        assert client.get("http://orders.shop.svc:9999/").status_code == 204
    assert bare == [9999]
