"""wrap and unwrap: balance an existing client in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from meshlib.clients.httpx.cookies import restore, shorten
from meshlib.clients.httpx.flavour import Flavour, flavour_of, raw_pool
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from meshlib.errors import ConfigError
from meshlib.runtime.mesh import Mesh

if TYPE_CHECKING:
    import httpx

ClientT = TypeVar("ClientT", bound="httpx.Client | httpx.AsyncClient")


def wrap(client: ClientT, mesh: Mesh | None = None) -> ClientT:
    """Have an ``httpx.Client`` or ``AsyncClient`` balance requests to hosts of the cluster; returns the same client.

    Works on the client's transport and its mounts. Proxied, Unix-socket, ASGI, WSGI, mock and other transports are left
    alone, as is everything when this httpx is not a version we know (with a warning). Wrapping twice changes
    nothing; an explicit ``wrap`` wins over ``install``. ``mesh``: the Mesh to use, the process's default one otherwise.
    A transport shared by several clients is wrapped for all of them. Call it from one thread, before or between
    requests.

    Raises TypeError for anything but a client, ConfigError when it is already wrapped with another Mesh.
    """
    flavour = _flavour(client)
    if flavour.unsupported:
        flavour.warn(type(client).__name__)
        return client
    for transport in _transports(client):
        pool = raw_pool(transport)
        if isinstance(pool, MeshPool | AsyncMeshPool):
            if mesh is not None and pool.mesh is not mesh:
                raise ConfigError(
                    "wrap(mesh=)", "this client is wrapped with another Mesh", "unwrap it first"
                )
        elif flavour.is_direct_pool(pool):
            kind = MeshPool if type(pool) is flavour.core.ConnectionPool else AsyncMeshPool
            transport._pool = kind(pool, flavour, mesh=mesh, from_wrap=True)
            if mesh is None or mesh.config.wire == "fast":
                shorten(client, flavour)
    return client


def unwrap(client: ClientT) -> ClientT:
    """Undo ``wrap``: requests in flight finish, new ones take the bare path. A MeshTransport stays what it is."""
    _flavour(client)
    for transport in _transports(client):
        pool = raw_pool(transport)
        if isinstance(pool, MeshPool | AsyncMeshPool) and pool.from_wrap:
            transport._pool = pool.original
            pool.drain()
            restore(client)
    return client


def _flavour(client: object) -> Flavour:
    flavour = flavour_of(client)
    if flavour is None or not isinstance(client, flavour.httpx.Client | flavour.httpx.AsyncClient):
        raise TypeError(f"expected an httpx.Client or httpx.AsyncClient, got {type(client).__name__}")
    return flavour


def _transports(client: Any) -> Iterator[Any]:
    """The transports of the client that have a connection pool."""
    for transport in (getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()):
        if raw_pool(transport) is not None:
            yield transport
