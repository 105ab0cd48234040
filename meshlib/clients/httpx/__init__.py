"""httpx over the mesh: ``MeshTransport``, ``AsyncMeshTransport``, ``wrap`` and ``unwrap``.

The seam is the connection pool inside httpx's own transports (``transport._pool``): everything above it - cookies,
redirects, auth, event hooks, exception types, instrumentation - sees the name that the user typed, everything below it
sees the picked endpoint. One thought per module:

* ``flavour``     which httpx and httpcore, and whether their inside is what we know
* ``pool``        ``MeshPool`` / ``AsyncMeshPool``, what is put in the place of ``_pool``
* ``attempt``     the way of one request over endpoints, without IO
* ``faults``      whose fault an exception is
* ``engines``     which connection engine serves
* ``wire``        the one of httpcore: one of its pools per endpoint
* ``held``, ``serial``, ``goaway``  what those pools and their HTTP/2 connections need to lose no request
* ``fast``        our own for HTTP/1.1
* ``outgoing``    a request on its way to an endpoint, as both engines get it
* ``body``        request bodies that know whether they started, response bodies that end a lease
* ``exceptions``  meshlib's errors as httpcore's, so that httpx raises its own types
* ``transport``, ``wrapping``  what people use

Importing this package loads nothing of httpx; the public names are looked up on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib.clients.httpx.transport import AsyncMeshTransport, MeshTransport
    from meshlib.clients.httpx.wrapping import unwrap, wrap

__all__ = ["AsyncMeshTransport", "MeshTransport", "unwrap", "wrap"]

_HOMES = {
    "AsyncMeshTransport": "meshlib.clients.httpx.transport",
    "MeshTransport": "meshlib.clients.httpx.transport",
    "unwrap": "meshlib.clients.httpx.wrapping",
    "wrap": "meshlib.clients.httpx.wrapping",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
