"""Balanced: what MeshTransport and AsyncMeshTransport of every flavour share; the classes only add a base."""

from __future__ import annotations

from typing import Any

from meshlib.clients.httpx.flavour import flavour_of, raw_pool
from meshlib.clients.httpx.pool import AsyncMeshPool, HashKey, MeshPool
from meshlib.errors import ConfigError
from meshlib.model.target import Target
from meshlib.runtime.default import default_mesh
from meshlib.runtime.mesh import Mesh


class Balanced:
    """To be listed before a library's own transport class. Puts a mesh pool inside once the transport is made."""

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
        flavour = flavour_of(self)
        if flavour is None:
            raise TypeError(f"{type(self).__name__} has no transport class of httpx among its bases")
        if flavour.unsupported:
            flavour.warn(type(self).__name__)
            return
        pool = raw_pool(self)
        kind = MeshPool if isinstance(pool, flavour.core.ConnectionPool) else AsyncMeshPool
        self._pool: Any = kind(pool, flavour, **_mesh_options(target, mesh, authority, hash_key))


def _check_options(where: str, options: dict[str, Any]) -> None:
    for name in ("proxy", "uds"):
        if options.get(name) is not None:
            raise ConfigError(
                f"{where}({name}=)",
                "decides itself where to connect",
                "use the library's own transport for it",
            )


def _mesh_options(
    target: str | Target | None, mesh: Mesh | None, authority: str | None, hash_key: HashKey | None
) -> dict[str, Any]:
    if target is None:
        if authority is not None:
            raise ConfigError("authority=", "needs target=", "without it the URL's host is the authority")
        return {"mesh": mesh, "hash_key": hash_key}
    mesh = mesh or default_mesh()
    return {"mesh": mesh, "handle": mesh.target(target, authority=authority).explicit, "hash_key": hash_key}
