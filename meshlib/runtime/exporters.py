"""Exporters: found by name, started by one line of code or by the configuration, once per process."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from meshlib.errors import ConfigError
from meshlib.model.events import SourceFailed
from meshlib.observe.exporter import Source, Stop
from meshlib.runtime import process, reading
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.observing import emit
from meshlib.runtime.primitives import new_lock
from meshlib.runtime.registry import exporter_builder

#: Seconds between two calls of what is repeated: well below any interval at which metrics are collected (15 s is
#: Prometheus' usual one), and some thousands of times what one call takes.
INTERVAL = 2.0
#: The extra that brings the library of a built-in exporter.
_EXTRAS = {"prometheus_client": "prometheus", "opentelemetry": "opentelemetry"}

_lock = threading.Lock()
_running: dict[str, Stop] = {}
#: Held while repeated work runs, and by whoever forks: exporters use locks of their libraries, which the child would
#: inherit held for ever.
_gate = threading.Lock()
#: Seconds that a fork waits for it: an exporter that hangs, or that forks itself, may not hold up the application for
#: ever. A thousand times what one call takes.
PATIENCE = 10.0
_forking = threading.local()
#: What is repeated, to be done once more at the end.
_last: list[Callable[[], None]] = []
_told = False  #: multiprocessing knows


def start_exporter(name: str, **options: Any) -> Stop:
    """Export the metrics of this process (and, where the exporter says so, of those that are forked from it).

    ``name``: ``prometheus``, ``opentelemetry`` or one of an installed plugin; ``options`` are the exporter's own. The
    result ends it. Starts no thread and connects nowhere by itself. Raises ConfigError for a name that nobody knows, a
    missing library, wrong options, and an exporter that runs already.
    """
    with _lock:
        if name in _running:
            raise ConfigError(f"exporter {name!r}", "runs already", "stop the first one, or start it once")
        ended = _start(name, options)
        _running[name] = ended

    def stop() -> None:
        with _lock:
            if _running.get(name) is not ended:
                return
            del _running[name]
        ended()

    return stop


def start_configured(names: Iterable[str], place: str) -> None:
    """Start what the configuration names and does not run yet. ``place``: where it was written. Raises ConfigError."""
    for name in names:
        with _lock:
            if name not in _running:
                try:
                    _running[name] = _start(name, {})
                except ConfigError as error:
                    raise ConfigError(place, str(error)) from error


def _start(name: str, options: dict[str, Any]) -> Stop:
    try:
        return exporter_builder(name).start(SOURCE, **options)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS:
            raise
        fix = f"pip install 'meshlib-sdk[{_EXTRAS[library]}]'"
        raise ConfigError(f"exporter {name!r}", f"needs a library that is missing: {error}", fix) from error


def repeat(name: str, work: Callable[[], None]) -> Stop:
    """See ``meshlib.observe.exporter.Repeat``."""
    over = threading.Event()

    def once() -> None:
        with _gate:
            if over.is_set():
                return
            try:
                work()
            except Exception as error:  # foreign code, on the thread that everybody needs
                emit(SourceFailed(name, error, stale=True))

    async def again() -> None:
        try:
            while not over.is_set():
                once()
                await asyncio.sleep(INTERVAL)
        finally:
            once()

    def begin(runtime: process.ProcessRuntime) -> None:
        runtime.control.spawn(again(), name=name)

    forget = process.at_start(begin)
    _last.append(once)
    _end_with_multiprocessing()

    def stop() -> None:
        forget()
        _last.remove(once)
        over.set()

    return stop


def _finish() -> None:
    """At the end of the process: the control thread is not waited for long, and this is short."""
    for once in tuple(_last):
        once()


atexit.register(_finish)


def _end_with_multiprocessing() -> None:
    """Its processes end without atexit, and have finalizers of their own, which each begins without."""
    global _told
    util = sys.modules.get("multiprocessing.util")
    if util is None or _told:
        return
    _told = True
    util.Finalize(None, _finish, exitpriority=0)
    util.register_after_fork(_finish, lambda finish: util.Finalize(None, finish, exitpriority=0))


def _after_fork_in_child() -> None:
    global _lock, _gate
    _lock, _gate = threading.Lock(), threading.Lock()


def _before_fork() -> None:
    if _last:
        _end_with_multiprocessing()
    _forking.holds = _gate.acquire(timeout=PATIENCE)


def _after_fork_in_parent() -> None:
    if _forking.holds:
        _gate.release()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)

SOURCE = Source(
    read=reading.read,
    repeat=repeat,
    now=SYSTEM.now,
    generation=lambda: process.Generation.current,
    new_lock=new_lock,
)
