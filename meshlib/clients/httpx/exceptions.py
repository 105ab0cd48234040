"""meshlib's errors as children of httpcore's, so that httpx raises the types that applications already catch.

httpx maps an exception by its httpcore base class and keeps it as ``__cause__``. The classes made here have two
parents, for example httpcore's ConnectError and NoEndpoints: ``except httpx.ConnectError as error`` works as ever,
and ``isinstance(error.__cause__, meshlib.errors.NoEndpoints)`` tells why.
"""

from __future__ import annotations

from typing import Any

from meshlib.errors import MeshError, PickTimeout

_classes: dict[tuple[type, type], type] = {}


def as_httpcore(error: MeshError, core: Any, pool_was_shorter: bool = False) -> Exception:
    """The same error (``args`` and attributes kept, the original in ``__cause__``) as a child of an httpcore exception.

    A PickTimeout becomes the timeout that ran out: ``pool_was_shorter`` says that it was the pool timeout. Everything
    else becomes a ConnectError: no connection could be made.
    """
    base: type
    if isinstance(error, PickTimeout):
        base = core.PoolTimeout if pool_was_shorter else core.ConnectTimeout
    else:
        base = core.ConnectError
    key = (base, type(error))
    kind = _classes.get(key)
    if kind is None:
        made = type(type(error).__name__, key, {"__module__": __name__, "__doc__": type(error).__doc__})
        kind = _classes.setdefault(key, made)
    mapped: Exception = kind(*error.args)
    mapped.__dict__.update(error.__dict__)
    mapped.__cause__ = error
    return mapped
