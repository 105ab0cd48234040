"""MeshTransport and AsyncMeshTransport: httpx's own transports with a mesh pool inside."""

from __future__ import annotations

from typing import Any

import httpx

from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import AsyncMeshPool, HashKey, MeshPool
from meshlib.errors import ConfigError
from meshlib.model.target import Target
from meshlib.runtime.default import default_mesh
from meshlib.runtime.mesh import Mesh


class MeshTransport(httpx.HTTPTransport):
    """For ``httpx.Client(transport=...)`` and ``mounts=``.

    ``target``: every request goes to this target, whatever its URL's host (which stays the Host header and the TLS
    name, unless ``authority`` replaces both). Without it the URL's host decides: hosts of the cluster are balanced,
    all others are dialled as ever. ``mesh``: the Mesh to use, the process's default one otherwise. ``hash_key``: gives
    the key for hash policies from the httpcore request, instead of the configured place. Everything else is httpx's:
    ``verify``, ``cert``, ``http1``, ``http2``, ``limits`` (they hold for each endpoint), ``retries``...

    Thread-safe; usable after fork. Raises TargetError for a target that cannot be parsed, ConfigError for ``proxy``
    or ``uds`` (they decide themselves where to connect) and for ``authority`` without ``target``.
    """

    def __init__(
        self,
        target: str | Target | None = None,
        *,
        mesh: Mesh | None = None,
        authority: str | None = None,
        hash_key: HashKey | None = None,
        **options: Any,
    ) -> None:
        _check_options(type(self).__name__, options)
        super().__init__(**options)
        flavour = load()
        if flavour.unsupported:
            flavour.warn(type(self).__name__)
            return
        self._pool: Any = MeshPool(self._pool, flavour, **_mesh_options(target, mesh, authority, hash_key))


class AsyncMeshTransport(httpx.AsyncHTTPTransport):
    """The same for ``httpx.AsyncClient``. May be shared by several asyncio loops; under trio it does not balance."""

    def __init__(
        self,
        target: str | Target | None = None,
        *,
        mesh: Mesh | None = None,
        authority: str | None = None,
        hash_key: HashKey | None = None,
        **options: Any,
    ) -> None:
        _check_options(type(self).__name__, options)
        super().__init__(**options)
        flavour = load()
        if flavour.unsupported:
            flavour.warn(type(self).__name__)
            return
        self._pool: Any = AsyncMeshPool(
            self._pool, flavour, **_mesh_options(target, mesh, authority, hash_key)
        )


def _check_options(where: str, options: dict[str, Any]) -> None:
    for name in ("proxy", "uds"):
        if options.get(name) is not None:
            raise ConfigError(
                f"{where}({name}=)", "decides itself where to connect", "use httpx's own transport for it"
            )


def _mesh_options(
    target: str | Target | None, mesh: Mesh | None, authority: str | None, hash_key: HashKey | None
) -> dict[str, Any]:
    if target is None:
        if authority is not None:
            raise ConfigError("authority=", "needs target=", "without it the URL's host is the authority")
        return {"mesh": mesh, "hash_key": hash_key}
    mesh = mesh or default_mesh()
    return {"mesh": mesh, "handle": mesh.target(target, authority=authority), "hash_key": hash_key}
