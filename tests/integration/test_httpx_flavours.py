"""Both flavours, httpx and httpx2, through the same scenarios on both wires, sync and asyncio, with real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import httpx2
import pytest

import meshlib.httpx
import meshlib.httpx2
from meshlib.errors import NoEndpoints
from tests.components.backends import Backends, HttpBackend
from tests.integration.grpc_support import eventually
from tests.integration.install_support import URL, Installed, mesh_for_tests

pytestmark = pytest.mark.usefixtures("wire")
TLS_URL = "https://orders.shop.svc:80"


class Caller:
    """One client of a flavour and colour; ``request`` reads the whole body."""

    def __init__(self, library: Any, home: Any, colour: str, mesh: Installed, **options: Any) -> None:
        self.library = library
        self._loop = asyncio.new_event_loop() if colour == "async" else None
        if self._loop is not None:
            self._client = library.AsyncClient(transport=home.AsyncMeshTransport(mesh=mesh.mesh, **options))
        else:
            self._client = library.Client(transport=home.MeshTransport(mesh=mesh.mesh, **options))

    def request(self, method: str, url: str, **options: Any) -> Any:
        reply = self._client.request(method, url, **options)
        return self._loop.run_until_complete(reply) if self._loop is not None else reply

    def get(self, url: str, **options: Any) -> Any:
        return self.request("GET", url, **options)

    def close(self) -> None:
        if self._loop is None:
            self._client.close()
        else:
            self._loop.run_until_complete(self._client.aclose())
            self._loop.close()


class Callers:
    """Makes callers and closes them."""

    def __init__(self, library: Any, home: Any, colour: str, mesh: Installed) -> None:
        self.library, self.home, self.colour, self.mesh = library, home, colour, mesh
        self._made: list[Caller] = []

    def __call__(self, **options: Any) -> Caller:
        made = Caller(self.library, self.home, self.colour, self.mesh, **options)
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()


@pytest.fixture
def mesh(wire: str) -> Iterator[Installed]:
    with mesh_for_tests() as made:
        yield made


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[(httpx, meshlib.httpx), (httpx2, meshlib.httpx2)], ids=["httpx", "httpx2"])
def caller(request: pytest.FixtureRequest, colour: str, mesh: Installed) -> Iterator[Callers]:
    made = Callers(*request.param, colour, mesh)
    yield made
    made.close()


def published(mesh: Installed, servers: list[HttpBackend]) -> None:
    mesh.serve(servers)
    mesh.known()
    handle = mesh.mesh.target("orders.shop.svc:80")
    eventually(lambda: len(handle.status()["endpoints"]) == len(servers))


def test_spread_over_kept_connections(caller: Callers, mesh: Installed, backends: Backends) -> None:
    """Equal shares, one connection each, the logical name on both sides; nothing in flight at the end."""
    servers = backends.http(3)
    published(mesh, servers)
    client = caller()
    replies = [client.get(f"{URL}/a?b=c") for _ in range(12)]
    assert [server.requests for server in servers] == [4, 4, 4]
    assert [server.accepted for server in servers] == [1, 1, 1]
    assert {str(reply.url) for reply in replies} == {f"{URL}/a?b=c"}
    assert {reply.headers["x-host"] for reply in replies} == {"orders.shop.svc"}
    assert {type(reply).__module__ for reply in replies} == {caller.library.__name__}
    handle = mesh.mesh.target("orders.shop.svc:80")
    assert sum(endpoint["inflight"] for endpoint in handle.status()["endpoints"]) == 0


def test_a_refused_connection_moves_on(caller: Callers, mesh: Installed, backends: Backends) -> None:
    """Each body arrives exactly once."""
    servers = backends.http(3)
    published(mesh, servers)
    servers[0].stop()
    servers[1].stop()
    client = caller()
    for number in range(4):
        assert client.request("POST", f"{URL}/echo", content=b"%d" % number).content == b"%d" % number
    assert [got.body for got in servers[2].received] == [b"0", b"1", b"2", b"3"]


def test_exceptions_are_the_flavours_own(caller: Callers, mesh: Installed, backends: Backends) -> None:
    """Refused everywhere, nobody there, too slow, cut off: what its users catch, with our reason as cause."""
    library = caller.library
    (server,) = backends.http(1)
    published(mesh, [server])
    client = caller()
    server.delay = float("inf")
    with pytest.raises(library.ReadTimeout):
        client.get(URL, timeout=library.Timeout(5, read=0.05))
    server.delay, server.fault = 0, "truncate"
    with pytest.raises(library.RemoteProtocolError):
        client.get(f"{URL}/stream/2/0")
    server.fault = ""
    server.stop()
    with pytest.raises(library.ConnectError):
        client.get(URL)
    mesh.serve([])
    handle = mesh.mesh.target("orders.shop.svc:80")
    eventually(lambda: handle.state.error is not None)
    with pytest.raises(library.ConnectError) as caught:
        client.get(URL)
    assert isinstance(caught.value.__cause__, NoEndpoints)


def test_a_stale_connection_is_replaced(caller: Callers, mesh: Installed, backends: Backends) -> None:
    """The server restarted in between: the next request is answered."""
    (server,) = backends.http(1)
    published(mesh, [server])
    client = caller()
    client.get(URL)
    server.stop()
    server.start()
    assert client.get(URL).status_code == 200
    assert server.requests == 2


def test_an_endpoint_that_leaves(caller: Callers, mesh: Installed, backends: Backends) -> None:
    """No more requests; its idle connection closes."""
    servers = backends.http(2)
    published(mesh, servers)
    client = caller()
    for _ in range(4):
        client.get(URL)
    published(mesh, servers[:1])
    for _ in range(4):
        client.get(URL)  # an asyncio client closes on its loop
    assert [server.requests for server in servers] == [6, 2]
    eventually(lambda: servers[1].connections == 0)


@pytest.mark.parametrize("http2", [False, True])
def test_tls_verifies_the_logical_name(
    caller: Callers, mesh: Installed, backends: Backends, http2: bool
) -> None:
    """Over HTTP/1.1 and HTTP/2; a certificate for another name is refused."""
    servers = backends.http(2, tls="orders.shop.svc")
    published(mesh, servers)
    client = caller(verify=backends.client_context(), http2=http2)
    replies = [client.get(TLS_URL) for _ in range(4)]
    assert {reply.http_version for reply in replies} == {"HTTP/2" if http2 else "HTTP/1.1"}
    assert [server.requests for server in servers] == [2, 2]
    published(mesh, backends.http(1, tls="stock.shop.svc"))
    with pytest.raises(caller.library.ConnectError, match=r"(?i)certificate|hostname"):
        client.get(TLS_URL)


def test_many_at_once(mesh: Installed, backends: Backends) -> None:
    """64 concurrent requests on one asyncio client of each flavour: every reply belongs to its request."""
    servers = backends.http(3)
    published(mesh, servers)

    async def ask(library: Any, home: Any) -> None:
        async with library.AsyncClient(transport=home.AsyncMeshTransport(mesh=mesh.mesh)) as client:
            bodies = [f"{number}".encode() for number in range(64)]
            replies = await asyncio.gather(*(client.post(f"{URL}/echo", content=body) for body in bodies))
            assert [reply.content for reply in replies] == bodies

    for library, home in ((httpx, meshlib.httpx), (httpx2, meshlib.httpx2)):
        asyncio.run(ask(library, home))
    assert sum(server.requests for server in servers) == 128
    eventually(
        lambda: sum(e["inflight"] for e in mesh.mesh.target("orders.shop.svc:80").status()["endpoints"]) == 0
    )


def test_public_names_of_httpx2() -> None:
    """The same four names in both modules; importing either loads neither library."""
    import subprocess
    import sys

    assert dir(meshlib.httpx2) == dir(meshlib.httpx)
    assert issubclass(meshlib.httpx2.MeshTransport, httpx2.HTTPTransport)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        meshlib.httpx2.nothing  # noqa: B018
    code = (
        "import sys, meshlib.httpx, meshlib.httpx2\n"
        "assert not {'httpx', 'httpx2'} & set(sys.modules)\n"
        "meshlib.httpx2.AsyncMeshTransport\n"
        "assert 'httpx' not in sys.modules and 'httpx2' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
