"""Seam: balancing the channels that an application makes with grpc's own functions, and taking it back.

See ``routing`` for the place. Because it lies below the functions, one that was imported by name long before is
covered too, and so are ``grpc.experimental``'s static stubs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from meshlib.clients.grpc import routing
from meshlib.clients.grpc.aio_channel import AioMeshChannel
from meshlib.clients.grpc.aio_interceptors import intercepted, split
from meshlib.clients.grpc.channel import MeshChannel
from meshlib.clients.grpc.options import channel_options, core_waits
from meshlib.clients.grpc.ours import ByHost, whose
from meshlib.clients.grpc.switch import AioSwitchChannel, SwitchChannel
from meshlib.model.hosts import HostKind
from meshlib.policies.rollout import Way
from meshlib.runtime.explicit import UrlHandle
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.observed import Observed


class Seam:
    """One per installation. ``unsupported`` says why this grpcio is left alone; empty: it is not (decision D18)."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._replaced: list[tuple[Any, Any]] = []
        self.unsupported = routing.differences()

    def put_on(self) -> None:
        if self.unsupported:
            warnings.warn(
                f"meshlib: grpc is left as it is, its calls are not balanced: {self.unsupported}",
                RuntimeWarning,
                stacklevel=4,
            )
            return
        for home, make in ((routing.SYNC, self._sync_channel), (routing.AIO, self._aio_channel)):
            self._replaced.append((home, routing.put_on(home, make)))

    def take_off(self) -> None:
        """New channels are grpc's; those that were made in the meantime stay what they are, and keep working."""
        for home, routed in self._replaced:
            routing.take_off(home, routed)
        self._replaced.clear()

    def _sync_channel(self, original: Any, target: Any, options: Any, *rest: Any) -> Any:
        """``rest``: credentials and compression, passed on as they come."""

        def connect(authority: str, address: str) -> Any:
            return original(address, channel_options(tuple(options), authority), *rest)

        def bare() -> Any:
            return original(target, options, *rest)

        def balanced(handle: TargetHandle, to: Callable[[str], Any], by_host: bool) -> Any:
            return MeshChannel(handle, to, bare=bare if by_host else None, core_waits=core_waits(options))

        return self._channel(target, options, connect, bare, balanced, SwitchChannel)

    def _aio_channel(self, original: Any, target: Any, options: Any, *rest: Any) -> Any:
        """``rest``: credentials, compression and interceptors."""
        *others, interceptors = rest

        def connect(authority: str, address: str) -> Any:
            below = split(interceptors)[1]
            return original(address, channel_options(tuple(options), authority), *others, below)

        def beneath() -> Any:  # what runs around the mesh channel's calls runs around these, too
            return original(target, options, *others, split(interceptors)[1])

        def balanced(handle: TargetHandle, to: Callable[[str], Any], by_host: bool) -> Any:
            channel = AioMeshChannel(
                handle, to, bare=beneath if by_host else None, core_waits=core_waits(options)
            )
            return intercepted(channel, split(interceptors)[0])

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
        to = partial(connect, found.authority or handle.authority)
        if found.scheme != "dns":  # grpc itself can make nothing of it
            return balanced(handle.explicit, to, False)

        def find(for_call: bool) -> TargetHandle | None:
            return _let_through(handle, for_call)

        return switch(find, bare, lambda handle: balanced(handle, to, False))

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
            return balanced(UrlHandle(handle), partial(connect, found.authority), True)

        def find(for_call: bool) -> TargetHandle | None:
            if not for_call:
                return mesh.serving_url("http", host, port)
            found = mesh.for_url("http", host, port)
            return None if type(found) is Observed else found

        return switch(find, bare, over)


def _let_through(handle: TargetHandle, for_call: bool) -> TargetHandle | None:
    """What the roll-out says about a call to a target that grpc could reach as well; None: grpc is to."""
    rollout = handle.rollout
    if rollout.gate is None:
        return handle
    if not for_call:
        return None if rollout.lowered else handle
    way = rollout.way()
    if way is Way.BARE_OBSERVE:
        Observed(handle)
    return handle if way is Way.MESH else None
