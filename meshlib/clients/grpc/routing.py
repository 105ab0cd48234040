"""Routing: a channel of ours in the place where grpc's functions make theirs.

``grpc.insecure_channel`` and ``secure_channel``, and those of ``grpc.aio``, end in ``Channel(target, ...)``, a class
that they look up in a module each time. Replacing that name, and not the functions, leaves whatever wraps the
functions (tracing, in any order) where it is: it wraps our channels like any other. The original class makes the
endpoints' own channels, which nobody wraps: one call, one span.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import grpc
import grpc._channel
import grpc.aio._channel

from meshlib.runtime.primitives import new_lock
from meshlib.runtime.process import rebuild_after_fork

#: Where the class is looked up.
SYNC: Any = grpc._channel
AIO: Any = grpc.aio._channel

_PARAMETERS = {
    SYNC: ("self", "target", "options", "credentials", "compression"),
    AIO: ("self", "target", "options", "credentials", "compression", "interceptors"),
}

#: Makes a channel, or None: (the original class, target, options, and the class's further arguments).
Make = Callable[..., Any]


class _Places:
    """Guards the two names: they are replaced and given back in the reverse order."""

    def __init__(self) -> None:
        self.lock = new_lock()
        rebuild_after_fork(self)

    def after_fork(self) -> None:
        self.lock = new_lock()


_places = _Places()
#: What a channel that is being made in this thread or task is to become; None: nothing of ours.
_wanted: ContextVar[Make | None] = ContextVar("meshlib_grpc_wanted", default=None)


def put_on(home: Any, make: Make) -> Any:
    """Route every channel until ``take_off`` gets what this returned."""
    with _places.lock:
        routed = _route(home.Channel, make)
        home.Channel = routed
    return routed


def take_off(home: Any, routed: Any) -> None:
    with _places.lock:
        if home.Channel is routed:
            home.Channel = routed.original


def channel(
    home: Any,
    function: Callable[..., Any],
    target: str,
    credentials: tuple[Any, ...],
    options: Any,
    rest: dict[str, Any],
    make: Make,
) -> Any:
    """What ``make`` makes, by way of one of grpc's public functions, as it is wrapped now.

    ``credentials``: () for an insecure channel; ``rest``: the arguments after ``options``, in order, by name, because
    wrappers look for them by name and add to them. With a grpcio that we do not know, the endpoints' channels are made
    by the public function instead, and what wraps it wraps those (decision D18).
    """
    if differences():

        def plain(address: str, merged: Any, _: Any, *others: Any) -> Any:
            return function(address, *credentials, merged, **dict(zip(rest, others, strict=True)))

        return make(plain, target, options or (), None, *rest.values())
    token = _wanted.set(make)
    try:
        with _places.lock:
            before = home.Channel
            home.Channel = _route(before, _as_wanted)
            try:
                given = {name: value for name, value in rest.items() if value is not None}
                return function(target, *credentials, options=options, **given)
            finally:
                home.Channel = before
    finally:
        _wanted.reset(token)


def _as_wanted(original: Any, *arguments: Any) -> Any:
    make = _wanted.get()
    if make is None:
        return None
    _wanted.set(None)  # one channel: whatever else is made on the way is somebody else's
    return make(getattr(original, "original", original), *arguments)


def _route(original: type, make: Make) -> Any:
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
    routed.original = original
    return routed


@lru_cache(maxsize=1)
def differences() -> str:
    """Why this grpcio cannot be balanced from the inside (decision D18); empty: it is as we know it."""
    version = (
        f"grpcio {getattr(grpc, '__version__', 'of unknown version')} is not a version this meshlib knows"
    )
    try:
        for home, wanted in _PARAMETERS.items():
            found = tuple(inspect.signature(home.Channel.__init__).parameters)
            if found != wanted:
                return f"{version} ({home.__name__}.Channel takes {', '.join(found)})"
            for name in ("insecure_channel", "secure_channel"):
                function = inspect.unwrap(getattr(AIO if home is AIO else grpc, name))
                code = getattr(function, "__code__", None)
                theirs = getattr(function, "__module__", "") in ("grpc", home.__name__)
                if theirs and code is not None and "Channel" not in code.co_names:
                    return f"{version} ({name} makes its channel in another way)"
    except (AttributeError, TypeError, ValueError) as error:
        return f"{version} (unexpected inside: {error})"
    return ""
