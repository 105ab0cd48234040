"""MeshTransport and AsyncMeshTransport: httpx's own transports with a mesh pool inside."""

from __future__ import annotations

import httpx

from meshlib.clients.httpx.balanced import Balanced


class MeshTransport(Balanced, httpx.HTTPTransport):
    """For ``httpx.Client(transport=...)`` and ``mounts=``.

    ``target``: every request goes to this target, whatever its URL's host (which stays the Host header and the TLS
    name, unless ``authority`` replaces both). Without it the URL's host decides: hosts of the cluster are balanced,
    all others are dialled as ever. ``mesh``: the Mesh to use, the process's default one otherwise. ``hash_key``: gives
    the key for hash policies from the httpcore request, instead of the configured place. Everything else is httpx's:
    ``verify``, ``cert``, ``http1``, ``http2``, ``limits`` (they hold for each endpoint), ``retries``...

    Thread-safe; usable after fork. Raises TargetError for a target that cannot be parsed, ConfigError for ``proxy``
    or ``uds`` (they decide themselves where to connect) and for ``authority`` without ``target``.
    """


class AsyncMeshTransport(Balanced, httpx.AsyncHTTPTransport):
    """The same for ``httpx.AsyncClient``. May be shared by several asyncio loops; under trio it does not balance."""
