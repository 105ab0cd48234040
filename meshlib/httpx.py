"""``meshlib.httpx``: httpx clients over the mesh.

    client = httpx.Client(transport=meshlib.httpx.MeshTransport())           # hosts of the cluster are balanced
    client = meshlib.httpx.wrap(httpx.Client(base_url="http://orders.shop.svc"))

Importing this module does not load httpx; using one of its names does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport, unwrap, wrap

__all__ = ["AsyncMeshTransport", "MeshTransport", "unwrap", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import meshlib.clients.httpx as home

    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
