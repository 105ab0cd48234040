"""Which connection engine serves: the ``wire`` of the configuration (decision D18)."""

from __future__ import annotations

import asyncio
import importlib.util
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Union

from meshlib.clients.httpx.allowance import Allowance, MakeAllowance
from meshlib.clients.httpx.wire import AsyncEngine, SyncEngine
from meshlib.runtime.primitives import new_lock

if TYPE_CHECKING:
    from meshlib.clients.httpx.fast.aio_engine import AioFastEngine
    from meshlib.clients.httpx.fast.sync_engine import SyncFastEngine

Sync = Union["SyncEngine", "SyncFastEngine"]
Async = Union["AsyncEngine", "AioFastEngine"]

#: Where no configuration says otherwise.
DEFAULT = "fast"


def make_sync(
    wire: str, core: Any, original: Any, now: Callable[[], float], allowance: MakeAllowance = Allowance
) -> Sync:
    """The engine for a pool that is used by threads. Does no IO."""
    if not _is_fast(wire):
        return SyncEngine(core, original, allowance(new_lock()))
    from meshlib.clients.httpx.fast.sync_engine import SyncFastEngine

    return SyncFastEngine(core, original, now, allowance(new_lock()))


def make_async(
    wire: str,
    core: Any,
    original: Any,
    now: Callable[[], float],
    loop: asyncio.AbstractEventLoop,
    allowance: MakeAllowance = Allowance,
) -> Async:
    """The engine of one loop. Does no IO."""
    alone = nullcontext()  # one thread, and nothing is awaited between a look and a change
    if not _is_fast(wire):
        return AsyncEngine(core, original, loop, allowance(alone))
    from meshlib.clients.httpx.fast.aio_engine import AioFastEngine

    return AioFastEngine(core, original, now, loop, allowance(alone))


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
