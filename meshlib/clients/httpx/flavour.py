"""Flavour: the pair of libraries a client is made of, and the check that their inside is what we know.

httpx has a maintained continuation with the same inside under another name. Everything in this package works on the
modules held here and never imports them itself, so that both are served by one implementation.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from types import FunctionType
from typing import Any

#: httpx module -> httpcore module. Neither is imported before the application uses it.
LIBRARIES = {"httpx": "httpcore", "httpx2": "httpcore2"}

#: What we read of a connection pool, besides its public names.
_POOL_STATE = (
    "_ssl_context",
    "_max_connections",
    "_max_keepalive_connections",
    "_keepalive_expiry",
    "_http1",
    "_http2",
    "_retries",
    "_local_address",
    "_uds",
    "_network_backend",
    "_socket_options",
    "_connections",
    "_requests",
    "_optional_thread_lock",
    "_assign_requests_to_connections",
    "_close_connections",
)


@dataclass(frozen=True, eq=False)
class Flavour:
    """One httpx with its httpcore. ``unsupported`` says why it cannot be balanced; empty: it can (decision D18)."""

    httpx: Any
    core: Any
    unsupported: str = ""

    def is_direct_pool(self, pool: object) -> bool:
        """A plain pool that dials the URL's host itself: no proxy, no Unix socket, none of ours."""
        kind: Any = type(pool)
        if kind is not self.core.ConnectionPool and kind is not self.core.AsyncConnectionPool:
            return False  # proxies are subclasses
        inside: Any = pool
        return (
            inside._uds is None and getattr(inside, "_proxy", None) is None
        )  # httpcore before 1.0.6 has no _proxy

    def is_mocked(self, pool: object) -> bool:
        """Whether somebody patched the pool's class (respx does): the mock must see the logical URL, not an address.

        Looked at for every request, and without a memory of what was there before: a mock may come and go at any
        time, also before meshlib is loaded. (What a function is does not change, so that is remembered.)
        """
        kind: Any = type(pool)
        method = getattr(kind, "handle_async_request", None) or kind.handle_request
        if _genuine.get(id(method)) is method:
            return False
        if is_from(method, self.core):
            _genuine[id(method)] = method
            return False
        return True

    def warn(self, what: str) -> None:
        """Tell that requests take the bare path (decision D18)."""
        warnings.warn(
            f"meshlib: {what} is left as it is, its requests are not balanced: {self.unsupported}",
            RuntimeWarning,
            stacklevel=4,
        )


#: Functions that were found to be a library's own (one or two for each), by identity: wrappers claim to be equal.
_genuine: dict[int, object] = {}


def is_from(method: object, library: Any) -> bool:
    """Whether a method is the library's own: by where its code lives, as its names can be copied (functools.wraps)."""
    if type(method) is not FunctionType:
        return False
    home: str = method.__globals__.get("__name__", "")
    return home.partition(".")[0] == str(library.__name__)


def raw_pool(transport: object) -> Any:
    """The pool that the transport itself holds, below whatever ``install`` shows in its place; None: it has none."""
    return getattr(transport, "__dict__", {}).get("_pool")


_loaded: dict[str, Flavour] = {}


def load(name: str = "httpx") -> Flavour:
    """The flavour by the name of its httpx module; imports it. Raises ImportError when it is not installed."""
    found = _loaded.get(name)
    if found is None:
        httpx, core = importlib.import_module(name), importlib.import_module(LIBRARIES[name])
        found = _loaded.setdefault(name, check(httpx, core))
    return found


def flavour_of(thing: object) -> Flavour | None:
    """The flavour that a client or transport (or a subclass of the application's) comes from."""
    for kind in type(thing).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in LIBRARIES:
            return load(package)
    return None


def check(httpx: Any, core: Any) -> Flavour:
    """Look whether all private names that this package uses exist and behave as expected. Does no IO."""
    try:
        reason = _differences(httpx, core)
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        reason = f"unexpected inside: {error}"
    if reason:
        versions = f"{httpx.__name__} {_version(httpx)} on {core.__name__} {_version(core)}"
        reason = f"{versions} is not a version this meshlib knows ({reason})"
    return Flavour(httpx, core, reason)


def _differences(httpx: Any, core: Any) -> str:
    for name in ("HTTPTransport", "AsyncHTTPTransport", "Client", "AsyncClient", "ByteStream"):
        if not isinstance(getattr(httpx, name, None), type):
            return f"{httpx.__name__}.{name} is missing"
    for kind, send in (
        (core.ConnectionPool, "handle_request"),
        (core.AsyncConnectionPool, "handle_async_request"),
    ):
        if not callable(getattr(kind, send, None)):
            return f"{kind.__name__}.{send} is missing"
        pool = kind(max_connections=1, keepalive_expiry=1.0)
        missing = [name for name in _POOL_STATE if not hasattr(pool, name)]
        if missing:
            return f"{kind.__name__}.{missing[0]} is missing"
        home = kind.__init__.__globals__  # its class says `__module__ = "httpcore"`, whatever file it is from
        body = home["PoolByteStream"](stream=(), pool_request=None, pool=pool)
        if not (hasattr(body, "_pool") and hasattr(body, "_pool_request")):
            return f"{kind.__name__}'s response bodies have another inside"
        if not _closes_idle(pool):
            return f"{kind.__name__} keeps idle connections in another way"
    return ""


def _closes_idle(pool: Any) -> bool:
    """What retiring an endpoint rests on: with nothing to keep, the next assignment closes what is idle."""
    idle = _Idle()
    pool._connections.append(idle)
    pool._max_keepalive_connections = 0
    with pool._optional_thread_lock:
        closing = pool._assign_requests_to_connections()
    return list(closing) == [idle] and not pool._connections


class _Idle:
    """A connection with nothing to do, for the check."""

    def is_closed(self) -> bool:
        return False

    def has_expired(self) -> bool:
        return False

    def is_idle(self) -> bool:
        return True

    def is_connected(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False

    def can_multiplex(self) -> bool:
        return False


def _version(module: Any) -> str:
    return str(getattr(module, "__version__", "of unknown version"))
