"""``meshlib.httpx2``: httpx2 clients over the mesh; the same names as ``meshlib.httpx``.

    client = httpx2.Client(transport=meshlib.httpx2.MeshTransport())

Importing this module does not load httpx2; using one of its transports does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx2

    from meshlib.clients.httpx.transport2 import AsyncMeshTransport, MeshTransport
    from meshlib.runtime.mesh import Mesh

    ClientT = TypeVar("ClientT", bound=httpx2.Client | httpx2.AsyncClient)

    def wrap(client: ClientT, mesh: Mesh | None = None) -> ClientT:
        """The very function of ``meshlib.httpx``, with the types of httpx2."""

    def unwrap(client: ClientT) -> ClientT:
        """The same."""


__all__ = ["AsyncMeshTransport", "MeshTransport", "unwrap", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("wrap", "unwrap"):
        from meshlib.clients.httpx import wrapping

        return getattr(wrapping, name)
    from meshlib.clients.httpx import transport2

    return getattr(transport2, name)


def __dir__() -> list[str]:
    return sorted(__all__)
