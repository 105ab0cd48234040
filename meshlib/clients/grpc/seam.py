"""Seam: balancing the channels that an application makes with grpc's own functions, and taking it back.

``grpc.insecure_channel`` and ``secure_channel``, and those of ``grpc.aio``, end in ``Channel(target, ...)``, a class
that they look up in a module each time. That name is replaced, not the functions: whatever wraps the functions
(tracing, in either order) wraps our channels like any other, a function imported by name long before is covered too, as
are ``grpc.experimental``'s static stubs, and endpoints' own channels are made without any of it: one call, one span.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from meshlib.clients.grpc.aio_channel import AioMeshChannel
from meshlib.clients.grpc.aio_interceptors import intercepted, split
from meshlib.clients.grpc.channel import MeshChannel
from meshlib.clients.grpc.options import channel_options
from meshlib.clients.grpc.ours import ByHost, whose
from meshlib.clients.grpc.switch import AioSwitchChannel, SwitchChannel
from meshlib.model.hosts import HostKind
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.mesh import Mesh

_SYNC = ("self", "target", "options", "credentials", "compression")
_AIO = (*_SYNC, "interceptors")


class Seam:
    """One per installation. ``unsupported`` says why this grpcio is left alone; empty: it is not (decision D18)."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._replaced: list[tuple[Any, Any, Any]] = []
        self.unsupported = _differences()

    def put_on(self) -> None:
        if self.unsupported:
            warnings.warn(
                f"meshlib: grpc is left as it is, its calls are not balanced: {self.unsupported}",
                RuntimeWarning,
                stacklevel=4,
            )
            return
        for home, make in _homes(self._sync_channel, self._aio_channel):
            original = home.Channel
            routed = _routed(original, make)
            home.Channel = routed
            self._replaced.append((home, original, routed))

    def take_off(self) -> None:
        """New channels are grpc's; those that were made in the meantime stay what they are, and keep working."""
        for home, original, routed in self._replaced:
            if home.Channel is routed:
                home.Channel = original
        self._replaced.clear()

    def _sync_channel(self, original: Any, target: Any, options: Any, *rest: Any) -> Any:
        """``rest``: credentials and compression, passed on as they come."""

        def connect(authority: str, address: str) -> Any:
            return original(address, channel_options(tuple(options), authority), *rest)

        return self._channel(
            target, options, connect, lambda: original(target, options, *rest), MeshChannel, SwitchChannel
        )

    def _aio_channel(self, original: Any, target: Any, options: Any, *rest: Any) -> Any:
        """``rest``: credentials, compression and interceptors."""
        *others, interceptors = rest

        def connect(authority: str, address: str) -> Any:
            below = split(interceptors)[1]
            return original(address, channel_options(tuple(options), authority), *others, below)

        def balanced(handle: TargetHandle, to: Callable[[str], Any]) -> Any:
            return intercepted(AioMeshChannel(handle, to), split(interceptors)[0])

        return self._channel(
            target, options, connect, lambda: original(target, options, *rest), balanced, AioSwitchChannel
        )

    def _channel(
        self,
        target: Any,
        options: Any,
        connect: Callable[[str, str], Any],
        bare: Callable[[], Any],
        balanced: Callable[..., Any],
        switch: Callable[..., Any],
    ) -> Any:
        """A channel of ours, or None. Raises TargetError for a target in our form that is wrong."""
        found = whose(target, options or (), os.environ)
        if found is None:
            return None
        if isinstance(found, ByHost):
            return self._by_host(found, connect, bare, balanced, switch)
        if not self._mesh.has_scheme(found.scheme):
            return None
        handle = self._mesh.target(found.target)
        return balanced(handle, partial(connect, found.authority or handle.authority))

    def _by_host(
        self,
        found: ByHost,
        connect: Callable[[str, str], Any],
        bare: Callable[[], Any],
        balanced: Callable[..., Any],
        switch: Callable[..., Any],
    ) -> Any:
        mesh, host, port = self._mesh, found.host, found.port
        if mesh.match_url("http", host, port).kind is HostKind.NOT_OURS:
            return None

        def over(handle: TargetHandle) -> Any:
            return balanced(handle, partial(connect, found.authority))

        return switch(lambda: mesh.for_url("http", host, port), bare, over)


def _homes(sync: Any, aio: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    import grpc._channel
    import grpc.aio._channel

    return (grpc._channel, sync), (grpc.aio._channel, aio)


def _routed(original: type, make: Callable[..., Any]) -> Any:
    """A class in the original's place: making one may give a channel of ours; for isinstance it is the original."""

    def __call__(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is not routed:
            return type.__call__(cls, *args, **kwargs)
        bound = signature.bind(None, *args, **kwargs).args[1:]
        ours = make(original, *bound)
        return ours if ours is not None else original(*bound)

    signature = inspect.signature(original.__init__)  # type: ignore[misc]
    methods = {
        "__call__": __call__,
        "__instancecheck__": lambda cls, thing: isinstance(thing, original),
        "__subclasscheck__": lambda cls, kind: issubclass(kind, original),
    }
    meta: Any = type("Routed", (type(original),), methods)
    routed = meta(
        original.__name__, (original,), {"__module__": original.__module__, "__doc__": original.__doc__}
    )
    return routed


def _differences() -> str:
    """Why this grpcio cannot be balanced from the inside; empty: it is as we know it."""
    version = (
        f"grpcio {getattr(grpc, '__version__', 'of unknown version')} is not a version this meshlib knows"
    )
    try:
        for (home, _), wanted in zip(_homes(None, None), (_SYNC, _AIO), strict=True):
            found = tuple(inspect.signature(home.Channel.__init__).parameters)
            if found != wanted:
                return f"{version} ({home.__name__}.Channel takes {', '.join(found)})"
            for name in ("insecure_channel", "secure_channel"):
                function = inspect.unwrap(
                    getattr(home if home.__name__.startswith("grpc.aio") else grpc, name)
                )
                code = getattr(function, "__code__", None)
                theirs = getattr(function, "__module__", "") in ("grpc", home.__name__)
                if theirs and code is not None and "Channel" not in code.co_names:
                    return f"{version} ({name} makes its channel in another way)"
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        return f"{version} (unexpected inside: {error})"
    return ""
