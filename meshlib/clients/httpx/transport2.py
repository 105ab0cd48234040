"""The same two transports for httpx2, the maintained continuation of httpx."""

from __future__ import annotations

import httpx2

from meshlib.clients.httpx.balanced import Balanced


class MeshTransport(Balanced, httpx2.HTTPTransport):
    """For ``httpx2.Client(transport=...)`` and ``mounts=``; everything else as ``meshlib.httpx.MeshTransport``."""


class AsyncMeshTransport(Balanced, httpx2.AsyncHTTPTransport):
    """The same for ``httpx2.AsyncClient``."""
