"""MeshChannel: a ``grpc.Channel`` over all endpoints of a target."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc

from meshlib.clients.grpc.connectivity import Connectivity
from meshlib.clients.grpc.hash_key import HashKey, Keys
from meshlib.clients.grpc.method import MultiCallable
from meshlib.clients.grpc.methods import KINDS, Methods
from meshlib.clients.grpc.multicallables import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from meshlib.clients.grpc.options import Options, channel_options, core_waits
from meshlib.clients.grpc.otherwise import Bare
from meshlib.clients.grpc.pool import Pool
from meshlib.clients.grpc.routing import SYNC, Make, channel
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.default import default_mesh
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.primitives import new_lock
from meshlib.runtime.process import rebuild_after_fork

#: Channels inherited over a fork: referenced until exit, because collecting them would end the parent's connections.
_graveyard: list[object] = []


class MeshChannel(Methods, grpc.Channel):
    """Balances every call over one single-address channel per endpoint. Thread-safe; usable after fork.

    Made by ``meshlib.grpc.insecure_channel`` and ``secure_channel``. ``connect`` makes the channel to one address,
    ``bare`` grpc's own to the same target, for calls whose host turns out to be none of ours.
    """

    def __init__(
        self,
        handle: TargetHandle,
        connect: Callable[[str], grpc.Channel],
        hash_key: HashKey | None = None,
        bare: Bare | None = None,
        core_waits: bool = False,
    ) -> None:
        super().__init__()
        self._handle = handle
        self._key = Keys(handle, hash_key)
        self._pool = Pool(connect, core_waits)
        self._connectivity = Connectivity(handle, self._pool)
        self._make_bare = bare
        self._bare: grpc.Channel | None = None
        handle.on_removed(self._pool.drop)
        rebuild_after_fork(self)

    def _made(self, kind: str, make: Callable[[Any], Any], serializer: Any) -> MultiCallable:
        bare = self._otherwise if self._make_bare is not None else None
        return _KINDS[kind](self._handle, self._pool, SYSTEM.now, self._key, make, serializer, bare)

    def _otherwise(self) -> Any:
        """grpc's own channel to the same target; see ``otherwise``."""
        with self._lock:
            if self._bare is None and self._make_bare is not None:
                self._bare = self._make_bare()
            return self._bare

    def _get_registered_call_handle(self, method: str) -> int:
        """What ``grpc.experimental``'s static stubs ask for and pass back as fourth argument; any true number does."""
        return 1

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], Any], try_to_connect: bool | None = False
    ) -> None:
        """Call back with the state now and every later one, in order, from a helper thread."""
        self._connectivity.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], Any]) -> None:
        self._connectivity.unsubscribe(callback)

    def close(self) -> None:
        """Close every endpoint's channel; calls in flight end as CANCELLED, later ones raise ValueError, as in grpc."""
        self._connectivity.clear()
        self._pool.close()
        if self._bare is not None:
            self._bare.close()

    def after_fork(self) -> None:
        """In a forked child (called by the runtime): locks and helper threads anew."""
        self._lock = new_lock()
        _graveyard.append(self._bare)
        self._bare = None
        self._connectivity.after_fork()

    def __enter__(self) -> MeshChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        connectivity = getattr(self, "_connectivity", None)
        if connectivity is not None:
            connectivity.abandoned = True

    def __repr__(self) -> str:
        transports = self._pool.transports()
        inflight = sum(transport.calls for transport in transports)
        return f"<{type(self).__name__} {self._handle.target}: {len(transports)} endpoints, {inflight} in flight>"


_KINDS: dict[str, type[MultiCallable]] = dict(
    zip(KINDS, (UnaryUnary, UnaryStream, StreamUnary, StreamStream), strict=True)
)


def insecure_channel(
    target: str,
    options: Options | None = None,
    compression: grpc.Compression | None = None,
    *,
    mesh: Mesh | None = None,
    hash_key: HashKey | None = None,
) -> grpc.Channel:
    """``grpc.insecure_channel`` over all endpoints of a mesh target (``k8s:///orders.shop:grpc``, ``dns:///host:50051``).

    What wraps grpc's own function at that time, such as tracing, wraps this channel too.

    ``mesh``: the default one if None. ``hash_key``: for hash policies, a function of a call's metadata; by default the
    target's ``hash_key`` setting. Raises TargetError and ConfigError. Nothing is looked up or connected before the
    first call.
    """
    make = _maker((mesh or default_mesh()).target(target).explicit, hash_key)
    made: grpc.Channel = channel(
        SYNC, grpc.insecure_channel, target, (), options, {"compression": compression}, make
    )
    return made


def secure_channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: Options | None = None,
    compression: grpc.Compression | None = None,
    *,
    mesh: Mesh | None = None,
    hash_key: HashKey | None = None,
) -> grpc.Channel:
    """``grpc.secure_channel`` over all endpoints of a mesh target.

    The name that TLS verifies is the target's logical authority (decision D2), never anything from cluster data.
    Otherwise as ``insecure_channel``.
    """
    make = _maker((mesh or default_mesh()).target(target).explicit, hash_key)
    made: grpc.Channel = channel(
        SYNC, grpc.secure_channel, target, (credentials,), options, {"compression": compression}, make
    )
    return made


def _maker(handle: TargetHandle, hash_key: HashKey | None) -> Make:
    """``rest``: credentials and compression, as grpc's own class takes them."""

    def make(original: Any, target: str, options: Options, *rest: Any) -> grpc.Channel:
        merged = channel_options(options, handle.authority)
        waits = core_waits(merged)
        return MeshChannel(
            handle, lambda address: original(address, merged, *rest), hash_key, core_waits=waits
        )

    return make
