"""install() and httpx, httpx2: existing and new clients, what is left alone, and taking it back. Real servers count."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import httpx
import httpx2
import pytest

import meshlib
from meshlib.clients.httpx.pool import MeshPool
from meshlib.errors import ConfigError
from tests.components.backends import Backends, HttpBackend
from tests.integration.grpc_support import eventually
from tests.integration.install_support import URL, installed, mesh_for_tests

FLAVOURS = [httpx, httpx2]


def counts(servers: list[HttpBackend]) -> list[int]:
    return [server.requests for server in servers]


def class_attributes(library: Any) -> list[dict[str, Any]]:
    return [dict(vars(kind)) for kind in (library.HTTPTransport, library.AsyncHTTPTransport)]


@pytest.fixture(params=FLAVOURS, ids=lambda library: library.__name__)
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_clients_made_before_and_after_and_the_functions(backends: Backends, library: Any) -> None:
    """A client that is open, one that is new, one of a subclass, and ``get()``: all spread their requests."""
    servers = backends.http(2)

    class Own(library.Client):
        pass

    with library.Client() as before, installed() as mesh:
        mesh.serve(servers)
        mesh.known()
        with library.Client() as after, Own() as own:
            for client in (before, after, own):
                assert {client.get(URL).text for _ in range(4)} == {server.name for server in servers}
        assert library.get(URL).headers["x-host"] == "orders.shop.svc"
    assert sum(counts(servers)) == 13


def test_async_clients(backends: Backends, library: Any) -> None:
    """The same for AsyncClient."""
    servers = backends.http(2)

    async def main() -> None:
        async with library.AsyncClient() as before:
            with installed() as mesh:
                mesh.serve(servers)
                mesh.known()
                async with library.AsyncClient() as after:
                    for client in (before, after):
                        for _ in range(4):
                            assert (await client.get(URL)).status_code == 200
                assert counts(servers) == [4, 4]
            # taken back: the bare way, which knows no such host
            with pytest.raises(library.ConnectError):
                await before.get(URL)

    asyncio.run(main())
    assert counts(servers) == [4, 4]


def test_other_hosts_are_served_by_the_clients_own_pool(backends: Backends, library: Any) -> None:
    """Connections that a client had open to others are used before, during and after."""
    (other,) = backends.http(1)
    with library.Client() as client:
        client.get(other.url)
        with installed():
            client.get(other.url)
        client.get(other.url)
    assert (other.requests, other.accepted) == (3, 1)


def test_uninstall_restores_exactly(backends: Backends, library: Any) -> None:
    """Classes and clients are what they were, object by object; connections to endpoints close."""
    servers = backends.http(2)
    before = class_attributes(library)
    with library.Client() as client:
        inside = dict(vars(client._transport))
        with installed() as mesh:
            mesh.serve(servers)
            mesh.known()
            client.get(URL)
            client.get(URL)
            assert type(client._transport._pool) is MeshPool
        assert class_attributes(library) == before
        assert vars(client._transport) == inside
        assert client._transport._pool is inside["_pool"]
        eventually(lambda: not any(server.connections for server in servers))
        with pytest.raises(library.ConnectError):
            client.get(URL)


def test_a_response_that_is_being_read_survives_uninstall(backends: Backends) -> None:
    """Requests in flight finish."""
    (server,) = backends.http(1)
    with httpx.Client() as client:
        with installed() as mesh:
            mesh.serve([server])
            mesh.known()
            context = client.stream("GET", f"{URL}/stream/5/0.01")
            reply = context.__enter__()
        assert len(list(reply.iter_lines())) == 5
        context.__exit__(None, None, None)


def test_installing_again(backends: Backends) -> None:
    """The same twice is once, a different one is an error, and after uninstall another Mesh serves the same client."""
    servers = backends.http(2)
    with httpx.Client() as client:
        for server in servers:
            with installed() as mesh:
                mesh.serve([server])
                mesh.known()
                meshlib.install(mesh=mesh.mesh)
                with mesh_for_tests() as other, pytest.raises(ConfigError, match="uninstall"):
                    meshlib.install(mesh=other.mesh)
                with pytest.raises(ConfigError):
                    meshlib.install(mesh=mesh.mesh, grpc=False)
                assert client.get(URL).text == server.name
    meshlib.uninstall()


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """MESHLIB_DISABLED=1: install() does nothing at all."""
    monkeypatch.setenv("MESHLIB_DISABLED", "1")
    before = class_attributes(httpx)
    meshlib.install()
    assert class_attributes(httpx) == before


def test_only_grpc() -> None:
    """The two are separate switches."""
    before = class_attributes(httpx)
    with installed(httpx=False):
        assert class_attributes(httpx) == before


def test_wrap_and_mesh_transports_keep_their_own_mesh(backends: Backends, library: Any) -> None:
    """Explicit use wins over install, in either order."""
    one, two = backends.http(2)
    transports = meshlib.httpx if library is httpx else meshlib.httpx2
    with mesh_for_tests() as own:
        own.serve([two])
        own.known()
        with library.Client() as wrapped, installed() as mesh:
            mesh.serve([one])
            mesh.known()
            meshlib.wrap(wrapped, own.mesh)
            with library.Client(transport=transports.MeshTransport(mesh=own.mesh)) as made:
                assert wrapped.get(URL).text == made.get(URL).text == two.name
            meshlib.unwrap(wrapped)
            assert wrapped.get(URL).text == one.name


def test_clients_that_are_dropped_are_not_kept(backends: Backends) -> None:
    """install() holds no client alive."""
    (server,) = backends.http(1)
    with installed() as mesh:
        mesh.serve([server])
        mesh.known()
        from meshlib.clients import install as home

        assert home._current is not None
        (seam,) = [
            s for s in home._current.seams if getattr(s, "_flavour", None) and s._flavour.httpx is httpx
        ]
        for _ in range(5):
            httpx.get(URL)
        gc.collect()
        assert not seam._seen


def test_no_kubeconfig_is_read_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decision D12: not even KUBECONFIG; only a setting."""
    from meshlib.runtime.default import transparent_mesh

    monkeypatch.setenv("KUBECONFIG", "/nonexistent/config")
    with transparent_mesh() as mesh:
        assert mesh.config.discovery["k8s"] == {"allow_kubeconfig": False}
    monkeypatch.setenv("MESHLIB_DISCOVERY", '{"k8s": {"kubeconfig": "/some/file"}}')
    with transparent_mesh() as mesh:
        assert mesh.config.discovery["k8s"]["kubeconfig"] == "/some/file"
