"""Which connection engine serves: the ``wire`` of the configuration (decision D18)."""

from __future__ import annotations

import asyncio
import importlib.util
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Union

from meshlib.clients.httpx.wire import AsyncEngine, SyncEngine

if TYPE_CHECKING:
    from meshlib.clients.httpx.fast.aio_engine import AioFastEngine
    from meshlib.clients.httpx.fast.sync_engine import SyncFastEngine

Sync = Union["SyncEngine", "SyncFastEngine"]
Async = Union["AsyncEngine", "AioFastEngine"]

#: Where no configuration says otherwise.
DEFAULT = "fast"


def make_sync(wire: str, core: Any, original: Any, now: Callable[[], float]) -> Sync:
    """The engine for a pool that is used by threads. Does no IO."""
    if not _is_fast(wire):
        return SyncEngine(core, original, now)
    from meshlib.clients.httpx.fast.sync_engine import SyncFastEngine

    return SyncFastEngine(core, original, now)


def make_async(
    wire: str, core: Any, original: Any, now: Callable[[], float], loop: asyncio.AbstractEventLoop
) -> Async:
    """The engine of one loop. Does no IO."""
    if not _is_fast(wire):
        return AsyncEngine(core, original, now, loop)
    from meshlib.clients.httpx.fast.aio_engine import AioFastEngine

    return AioFastEngine(core, original, now, loop)


def _is_fast(wire: str) -> bool:
    if wire != "fast":
        return False
    if importlib.util.find_spec("httptools") is None:  # compiled: a platform may have no build of it
        warnings.warn(
            'meshlib: wire = "fast" needs httptools, which is not installed; httpcore\'s connections serve instead',
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
