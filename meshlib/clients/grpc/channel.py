"""MeshChannel: a ``grpc.Channel`` over all endpoints of a target."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc

from meshlib.clients.grpc.connectivity import Connectivity
from meshlib.clients.grpc.hash_key import HashKey, Keys
from meshlib.clients.grpc.multicallables import (
    MultiCallable,
    StreamStream,
    StreamUnary,
    UnaryStream,
    UnaryUnary,
)
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

#: Methods remembered per channel. Interceptors ask for the callable again at every call, so it must be found, not made;
#: the bound is for programs that pass a new function as serializer each time. More methods than any service has.
METHODS = 1024

#: grpcio calls stubs' methods with this argument since 1.63; older ones do not know it.
_REGISTERED = "_registered_method"

#: Channels inherited over a fork: referenced until exit, because collecting them would end the parent's connections.
_graveyard: list[object] = []


class MeshChannel(grpc.Channel):
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
        self._handle = handle
        self._key = Keys(handle, hash_key)
        self._pool = Pool(connect, core_waits)
        self._connectivity = Connectivity(handle, self._pool)
        self._lock = new_lock()
        self._make_bare = bare
        self._bare: grpc.Channel | None = None
        self._methods: dict[tuple[Any, ...], MultiCallable] = {}
        handle.on_removed(self._pool.drop)
        rebuild_after_fork(self)

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        return self._method(UnaryUnary, method, request_serializer, response_deserializer, args, kwargs)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        return self._method(UnaryStream, method, request_serializer, response_deserializer, args, kwargs)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        return self._method(StreamUnary, method, request_serializer, response_deserializer, args, kwargs)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        return self._method(StreamStream, method, request_serializer, response_deserializer, args, kwargs)

    def _method(
        self,
        kind: type[MultiCallable],
        method: str,
        serializer: Any,
        deserializer: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> MultiCallable:
        registered = registered_argument(args, kwargs)
        key = (kind, method, serializer, deserializer, registered)
        known = self._methods.get(key)
        if known is None:
            with self._lock:
                known = self._methods.get(key)
                if known is None:
                    if len(self._methods) >= METHODS:
                        del self._methods[next(iter(self._methods))]
                    make = factory(_NAMES[kind], method, serializer, deserializer, registered)
                    bare = self._otherwise if self._make_bare is not None else None
                    known = kind(self._handle, self._pool, SYSTEM.now, self._key, make, serializer, bare)
                    self._methods[key] = known
        return known

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


_NAMES: dict[type[MultiCallable], str] = {
    UnaryUnary: "unary_unary",
    UnaryStream: "unary_stream",
    StreamUnary: "stream_unary",
    StreamStream: "stream_stream",
}


def registered_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """grpc's fourth argument: by position from interceptors, by name from generated stubs, absent from older ones."""
    unknown = set(kwargs) - {_REGISTERED}
    if unknown or len(args) > 1:
        raise TypeError(f"unexpected arguments {sorted(unknown) or args[1:]} for a method of a mesh channel")
    return bool(args[0] if args else kwargs.get(_REGISTERED, False))


def factory(
    name: str, method: str, serializer: Any, deserializer: Any, registered: bool
) -> Callable[[Any], Any]:
    """Makes the method on an endpoint's channel, passing ``registered`` only where the installed grpcio knows it."""

    def make(channel: Any) -> Any:
        create = getattr(channel, name)
        if registered and _knows_registered(type(channel)):
            return create(method, serializer, deserializer, _registered_method=True)
        return create(method, serializer, deserializer)

    return make


_known: dict[type, bool] = {}


def _knows_registered(channel: type) -> bool:
    known = _known.get(channel)
    if known is None:
        known = _known[channel] = _REGISTERED in inspect.signature(channel.unary_unary).parameters  # type: ignore[attr-defined]
    return known


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
    make = _maker((mesh or default_mesh()).target(target), hash_key)
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
    make = _maker((mesh or default_mesh()).target(target), hash_key)
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
