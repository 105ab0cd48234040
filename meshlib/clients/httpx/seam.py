"""Seam: balancing every transport of an httpx at once, existing ones included, and taking it back without a trace.

The transports keep their pool in an instance attribute, ``_pool``. A data descriptor of that name on the class is asked
before the instance, so that one assignment on two classes shows every transport - made before, made later, made by
a subclass, or by ``httpx.get`` - a mesh pool in the place of its own, and deleting it shows them their own again.
Nothing is done to a method that sends: instrumentation and mocks that replace ``handle_request`` stay where they are,
whoever came first, and see the logical URL. (One other method is replaced with the fast wire: see ``cookies``.)
"""

from __future__ import annotations

import weakref
from typing import Any

from meshlib.clients.httpx.cookies import CookieShortcut
from meshlib.clients.httpx.flavour import Flavour
from meshlib.clients.httpx.pool import AsyncMeshPool, MeshPool
from meshlib.runtime.mesh import Mesh

#: Where a transport keeps the mesh pool that stands for its own.
_MADE = "_meshlib_pool"


class Seam:
    """The descriptor. One per installation and flavour; read by any thread, put on and taken off by one."""

    def __init__(self, flavour: Flavour, mesh: Mesh) -> None:
        self._flavour = flavour
        self._mesh = mesh
        self._seen: dict[int, weakref.ref[Any]] = {}
        library = flavour.httpx
        self._classes = (library.HTTPTransport, library.AsyncHTTPTransport)
        self._cookies = CookieShortcut(flavour) if mesh.config.wire == "fast" else None

    def put_on(self) -> None:
        for kind in self._classes:
            kind._pool = self
        if self._cookies is not None:
            self._cookies.put_on()

    def take_off(self) -> None:
        """Requests in flight finish; later ones take the transport's own pool, connections to endpoints close."""
        for kind in self._classes:
            if kind.__dict__.get("_pool") is self:
                del kind._pool
        if self._cookies is not None:
            self._cookies.take_off()
        for reference in list(self._seen.values()):
            transport = reference()
            made = transport.__dict__.pop(_MADE, None) if transport is not None else None
            if made is not None:
                made.drain()
        self._seen.clear()

    def __get__(self, transport: Any, owner: type | None = None) -> Any:
        if transport is None:
            return self
        inside = transport.__dict__
        own = inside.get("_pool")
        made = inside.get(_MADE)
        if made is not None and made.original is own:
            return made
        if own is None:
            raise AttributeError(f"{type(transport).__name__!r} object has no attribute '_pool'")
        return self._stand_in(transport, inside, own)

    def __set__(self, transport: Any, pool: object) -> None:
        transport.__dict__["_pool"] = pool

    def __delete__(self, transport: Any) -> None:
        try:
            del transport.__dict__["_pool"]
        except KeyError:
            raise AttributeError("_pool") from None

    def _stand_in(self, transport: Any, inside: dict[str, Any], own: Any) -> Any:
        """A transport's first request. What decides itself where to connect, or was wrapped by hand, stays."""
        flavour = self._flavour
        if isinstance(own, MeshPool | AsyncMeshPool) or not flavour.is_direct_pool(own):
            return own
        inside.pop(_MADE, None)  # of a pool that was replaced
        kind = MeshPool if type(own) is flavour.core.ConnectionPool else AsyncMeshPool
        made = inside.setdefault(_MADE, kind(own, flavour, mesh=self._mesh))
        key = id(transport)
        self._seen[key] = weakref.ref(transport, lambda _: self._seen.pop(key, None))
        return made
