"""wrap, unwrap and the transports: what is replaced and what is left alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import httpcore
import httpx
import pytest

import meshlib.httpx
from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport, unwrap, wrap
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from meshlib.errors import ConfigError, TargetError
from meshlib.runtime.config import load_config


class FakeMesh:
    """Knows no host; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int | None]] = []
        self.config = load_config({})

    def for_url(self, scheme: str, host: str, port: int | None) -> None:
        self.asked.append((scheme, host, port))


@pytest.fixture
def mesh() -> Any:
    return FakeMesh()


def test_importing_loads_no_httpx() -> None:
    """`import meshlib` and `import meshlib.httpx` cost nothing until a name is used."""
    code = (
        "import sys, meshlib, meshlib.httpx, meshlib.clients.httpx\n"
        "assert not {'httpx', 'httpcore', 'ssl'} & set(sys.modules), sorted(sys.modules)\n"
        "meshlib.httpx.MeshTransport\n"
        "assert 'httpx' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names() -> None:
    """meshlib.httpx offers the same objects as the room behind it, and nothing else."""
    assert meshlib.httpx.MeshTransport is MeshTransport
    assert meshlib.httpx.wrap is wrap
    assert dir(meshlib.httpx) == ["AsyncMeshTransport", "MeshTransport", "unwrap", "wrap"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        meshlib.httpx.nothing  # noqa: B018


def test_wrap_replaces_the_pools_of_transport_and_mounts(mesh: Any) -> None:
    """The transport and direct mounts; the client is the same object."""
    mounted = httpx.HTTPTransport()
    with httpx.Client(mounts={"http://orders": mounted, "all://elsewhere": None}) as client:
        assert wrap(client, mesh) is client
        assert isinstance(client._transport._pool, MeshPool)  # type: ignore[attr-defined]
        assert isinstance(mounted._pool, MeshPool)
        assert mounted._pool.mesh is mesh


def test_wrap_of_an_async_client(mesh: Any) -> None:
    """AsyncClient gets the asyncio pool."""
    client = wrap(httpx.AsyncClient(), mesh)
    assert isinstance(client._transport._pool, AsyncMeshPool)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "transport",
    [
        httpx.HTTPTransport(proxy="http://127.0.0.1:3128"),
        httpx.HTTPTransport(uds="/run/app.sock"),
        httpx.MockTransport(lambda request: httpx.Response(204)),
        httpx.WSGITransport(app=lambda environ, start: [b""]),
    ],
    ids=["proxy", "uds", "mock", "wsgi"],
)
def test_wrap_leaves_others_alone(mesh: Any, transport: Any) -> None:
    """What decides itself where to connect, or does not connect, keeps its inside."""
    before = getattr(transport, "_pool", None)
    with httpx.Client(transport=transport) as client:
        wrap(client, mesh)
        assert getattr(transport, "_pool", None) is before


def test_wrap_is_idempotent_and_one_mesh_per_client(mesh: Any) -> None:
    """Twice is once; another Mesh is an error that says what to do."""
    with httpx.Client() as client:
        pool = wrap(client, mesh)._transport._pool  # type: ignore[attr-defined]
        assert wrap(wrap(client), mesh)._transport._pool is pool  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match="unwrap it first"):
            wrap(client, FakeMesh())  # type: ignore[arg-type]


def test_unwrap_restores_the_very_pool(mesh: Any) -> None:
    """After unwrap the client is what it was; a second unwrap changes nothing."""
    with httpx.Client() as client:
        before = client._transport._pool  # type: ignore[attr-defined]
        assert unwrap(unwrap(wrap(client, mesh))) is client
        assert client._transport._pool is before  # type: ignore[attr-defined]


def test_unwrap_leaves_a_mesh_transport(mesh: Any) -> None:
    """It was made for the mesh; only what wrap did is undone."""
    with httpx.Client(transport=MeshTransport(mesh=mesh)) as client:
        unwrap(client)
        assert isinstance(client._transport._pool, MeshPool)  # type: ignore[attr-defined]


@pytest.mark.parametrize("thing", [object(), "client", httpx.HTTPTransport()])
def test_wrap_of_something_else_is_a_type_error(thing: Any) -> None:
    """The message names what was given."""
    with pytest.raises(TypeError, match=type(thing).__name__):
        wrap(thing)


@pytest.mark.parametrize("option", ["proxy", "uds"])
@pytest.mark.parametrize("kind", [MeshTransport, AsyncMeshTransport])
def test_transport_refuses_what_decides_itself(mesh: Any, kind: Any, option: str) -> None:
    """A proxy or Unix socket and a mesh contradict each other."""
    with pytest.raises(ConfigError, match=option):
        kind(mesh=mesh, **{option: "http://127.0.0.1:1"})


def test_authority_needs_a_target(mesh: Any) -> None:
    """Without a target the URL's host is the authority."""
    with pytest.raises(ConfigError, match="needs target="):
        MeshTransport(mesh=mesh, authority="orders")


def test_bad_target_is_refused_at_once() -> None:
    """A typing error is found where it was typed, not at the first request."""
    from meshlib.runtime.mesh import Mesh

    with Mesh() as real, pytest.raises(TargetError):
        MeshTransport("k8s:///", mesh=real)


def test_options_reach_httpx(mesh: Any) -> None:
    """Everything but our own arguments is httpx's."""
    transport = MeshTransport(mesh=mesh, http2=True, retries=3, limits=httpx.Limits(max_connections=7))
    original = transport._pool.original
    assert (original._http2, original._retries, original._max_connections) == (True, 3, 7)


def test_hosts_that_are_not_ours_take_the_original_pool(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request object goes through untouched, whatever scheme, and the mesh saw host and port as typed."""
    seen: list[httpcore.Request] = []

    class Original(httpcore.ConnectionPool):
        pass

    with httpx.Client() as client:
        wrap(client, mesh)
        pool: Any = client._transport._pool  # type: ignore[attr-defined]

        def handle_request(request: httpcore.Request) -> httpcore.Response:
            seen.append(request)
            return httpcore.Response(204)

        monkeypatch.setattr(pool.original, "handle_request", handle_request)
        assert client.get("http://example.test/a").status_code == 204
        assert client.get("https://example.test:8443/a").status_code == 204
    assert [bytes(request.url) for request in seen] == [
        b"http://example.test/a",
        b"https://example.test:8443/a",
    ]
    assert mesh.asked == [("http", "example.test", None), ("https", "example.test", 8443)]


def test_mocked_pool_sees_the_logical_url(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mocking library that patches the pool's class gets the request before any mesh decision."""
    seen: list[bytes] = []

    def mock(self: Any, request: httpcore.Request) -> httpcore.Response:
        seen.append(bytes(request.url))
        return httpcore.Response(200)

    with httpx.Client() as client:
        wrap(client, mesh)
        monkeypatch.setattr(httpcore.ConnectionPool, "handle_request", mock)
        client.get("http://orders.shop.svc/x")
    assert seen == [b"http://orders.shop.svc/x"]
    assert mesh.asked == []
