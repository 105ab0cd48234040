"""Events as lines of the standard ``logging``: one INFO line per change of a set, one WARNING per kind of trouble."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import chain, islice, repeat

from meshlib.errors import AccessDenied
from meshlib.model.events import (
    ConfigTaken,
    EndpointsChanged,
    EntrySkipped,
    Event,
    FallbackEnded,
    FellBack,
    ModeChanged,
    SourceFailed,
    SourceRecovered,
    WatchRestarted,
)

# A library must not print to stderr when the application configured no logging (Python's logging HOWTO).
logging.getLogger("meshlib").addHandler(logging.NullHandler())
_balancer = logging.getLogger("meshlib.balancer")
_resolver = logging.getLogger("meshlib.resolver")
_runtime = logging.getLogger("meshlib.runtime")

#: The same trouble is logged once in this time, seconds: a dead API server is retried every 30-60 s, and one line per
#: minute shows that it goes on without filling a disk.
REPEAT_AFTER = 60.0
#: Kinds of trouble remembered for that; their texts come from other tenants, so their number is bounded.
MAX_KINDS = 256
#: Addresses named in a line; the rest is a number. A line should fit on a screen.
MAX_NAMED = 6
#: Characters of foreign text in a line.
MAX_TEXT = 300


class LogEvents:
    """Writes events to the loggers ``meshlib.balancer`` (sets), ``meshlib.resolver`` (sources), ``meshlib.runtime``.

    Safe from any thread; ``now`` is monotonic seconds. Nothing here runs per request.
    """

    def __init__(self, now: Callable[[], float], lock: AbstractContextManager[object]) -> None:
        self._now = now
        self._lock = lock
        self._last: dict[tuple[str, ...], tuple[float, int]] = {}  # kind -> (when logged, held back since)

    def replace_lock(self, lock: AbstractContextManager[object]) -> None:
        """For the child of a fork: the inherited lock may be held by a thread that does not exist there."""
        self._lock = lock

    def __call__(self, event: Event) -> None:
        match event:
            case EndpointsChanged():
                _balancer.info(
                    "%s: %d endpoints (%s) from %s%s",
                    clean(event.target),
                    event.total,
                    _difference(event),
                    clean(event.source),
                    f": {clean(event.reason)}" if event.reason else "",
                )
            case FellBack():
                self._warn(
                    _balancer,
                    ("fell-back", event.target, event.path),
                    f"{clean(event.target)}: calls go to {clean(event.path)}: {clean(event.reason)}",
                )
            case FallbackEnded():
                _balancer.info("%s: calls are balanced again", clean(event.target))
            case SourceFailed():
                self._source_failed(event)
            case SourceRecovered():
                _resolver.info("%s: answers again", clean(event.source))
            case EntrySkipped():
                self._warn(
                    _resolver,
                    ("skipped", event.source, event.reason),
                    f"{clean(event.source)}: skipped {clean(event.where)}: {clean(event.reason)}",
                )
            case ModeChanged():
                _balancer.info("%s: %s: %s", clean(event.target), clean(event.mode), clean(event.reason))
            case ConfigTaken():
                changes = clean("; ".join(event.changes)) or "nothing that is obeyed live changed"
                _runtime.info("%s was read again: %s", clean(event.file), changes)
                for keys, why in (
                    (event.at_restart, "is obeyed after a restart only"),
                    (event.without_effect, "has no effect"),
                ):
                    if keys:
                        _runtime.warning("%s: %s %s", clean(event.file), clean(", ".join(keys)), why)
            case WatchRestarted():
                what = "listed again" if event.relist else "watch reopened"
                _resolver.debug("%s: %s: %s", clean(event.source), what, clean(event.reason))
            case _:
                _runtime.debug("%r", event)

    def _source_failed(self, event: SourceFailed) -> None:
        error = event.error
        consequence = "the last good data stays in use" if event.stale else "nothing is known yet"
        retry = "" if event.retry_in is None else f"; next try in {event.retry_in:.1f} s"
        # The fix is our own text and has lines to paste; everything else may be foreign.
        what = clean(str(error.args[0]) if isinstance(error, AccessDenied) else str(error) or repr(error))
        fix = f"\n{error.fix}" if isinstance(error, AccessDenied) and error.fix else ""
        kind = ("failed", event.source, type(error).__name__)
        self._warn(_resolver, kind, f"{clean(event.source)}: {what} ({consequence}{retry}){fix}")

    def _warn(self, logger: logging.Logger, kind: tuple[str, ...], line: str) -> None:
        now = self._now()
        with self._lock:
            if kind not in self._last and len(self._last) >= MAX_KINDS:
                kind = (kind[0],)
            last, held = self._last.get(kind, (float("-inf"), 0))
            if now - last < REPEAT_AFTER:
                self._last[kind] = (last, held + 1)
                return
            self._last[kind] = (now, 0)
        logger.warning("%s%s", line, f" ({held} more like this before)" if held else "")


def clean(text: str) -> str:
    """Foreign text for a log line: cut, and with line breaks and control characters escaped (no forged lines)."""
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "..."
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _difference(event: EndpointsChanged) -> str:
    more = len(event.added) + len(event.removed) - MAX_NAMED
    if more == -MAX_NAMED:
        return "attributes changed"
    changes = chain(zip(repeat("+"), event.added), zip(repeat("-"), event.removed))
    named = " ".join(f"{sign}{endpoint.authority}" for sign, endpoint in islice(changes, MAX_NAMED))
    return f"+{len(event.added)} -{len(event.removed)}: {named}" + (f" and {more} more" if more > 0 else "")
