"""What makes the methods of channels: grpc's four functions as one, and the table of those that were made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from meshlib.runtime.primitives import new_lock

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

#: Methods remembered per channel. Interceptors ask for the callable again at every call, so it must be found, not made;
#: the bound is for programs that pass a new function as serializer each time. More methods than any service has.
METHODS = 1024

#: grpcio calls stubs' methods with this argument since 1.63; older ones do not know it.
_REGISTERED = "_registered_method"


class FourKinds:
    """The four functions of a channel, sync or asyncio: ``_method`` makes each, and takes grpc's arguments."""

    def _method(self, kind: str, /, *args: Any, **named: Any) -> Any:
        raise NotImplementedError

    def unary_unary(self, *args: Any, **named: Any) -> Any:
        return self._method("unary_unary", *args, **named)

    def unary_stream(self, *args: Any, **named: Any) -> Any:
        return self._method("unary_stream", *args, **named)

    def stream_unary(self, *args: Any, **named: Any) -> Any:
        return self._method("stream_unary", *args, **named)

    def stream_stream(self, *args: Any, **named: Any) -> Any:
        return self._method("stream_stream", *args, **named)


class Methods(FourKinds):
    """Remembers each method that was asked for. Thread-safe."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._methods: dict[tuple[Any, ...], Any] = {}

    def _made(self, kind: str, make: Callable[[Any], Any], serializer: Any) -> Any:
        """A new one; ``make`` makes it on the channel of an endpoint. Called with the lock held."""
        raise NotImplementedError

    def _forget(self, method: Any) -> None:
        """It is no longer in the table. Called with the lock held."""

    def _method(
        self,
        kind: str,
        /,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *args: Any,
        **named: Any,
    ) -> Any:
        registered = registered_argument(args, named)
        key = (kind, method, request_serializer, response_deserializer, registered)
        known = self._methods.get(key)
        if known is None:
            with self._lock:
                known = self._methods.get(key)
                if known is None:
                    if len(self._methods) >= METHODS:
                        self._forget(self._methods.pop(next(iter(self._methods))))
                    make = factory(kind, method, request_serializer, response_deserializer, registered)
                    known = self._methods[key] = self._made(kind, make, request_serializer)
        return known


def registered_argument(args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """grpc's fourth argument: by position from interceptors, by name from generated stubs, absent from older ones."""
    unknown = set(named) - {_REGISTERED}
    if unknown or len(args) > 1:
        raise TypeError(f"unexpected arguments {sorted(unknown) or args[1:]} for a method of a mesh channel")
    return bool(args[0] if args else named.get(_REGISTERED, False))


def factory(
    kind: str, method: str, serializer: Any, deserializer: Any, registered: bool
) -> Callable[[Any], Any]:
    """Makes the method on an endpoint's channel, passing ``registered`` only where the installed grpcio knows it."""

    def make(channel: Any) -> Any:
        create = getattr(channel, kind)
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
