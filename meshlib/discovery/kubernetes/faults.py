"""What can go wrong between us and an API server, in one vocabulary. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from meshlib.errors import DataError
from meshlib.model.envelope import Status, status_from_json
from meshlib.model.wire import Json

#: Longest Retry-After that is obeyed, seconds: a server (or proxy) may not switch discovery off for hours.
MAX_RETRY_AFTER = 300.0
#: Characters of a server's message that are shown; it is untrusted text.
_MAX_MESSAGE = 300


class FaultKind(enum.Enum):
    """Kinds differ in what the reflector does next (reliability of the watch, client-go's rules)."""

    UNREACHABLE = "unreachable"  #: refused, reset, timed out, TLS failed: no HTTP answer
    UNAUTHORIZED = "unauthorized"  #: 401
    FORBIDDEN = "forbidden"  #: 403
    NOT_SERVED = "not served"  #: 404: the API version is not there
    EXPIRED = "expired"  #: 410, or reason Expired or Gone: our resourceVersion is too old
    FUTURE_VERSION = (
        "future resourceVersion"  #: 504 "Too large resource version": this server lags behind what we saw
    )
    THROTTLED = "throttled"  #: 429
    SERVER = "server error"  #: 5xx
    SHORT_WATCH = "watch closed at once"  #: 200, nothing, end: a proxy or an API server that shuts down
    BAD_DATA = (
        "unreadable answer"  #: not JSON, not a list, over a limit, compressed unasked, a captive portal
    )
    REJECTED = "rejected"  #: any other status, redirects included


#: After these the whole server is suspected, and the shared gate closes; the others are answers of a live server.
GATE_KINDS = frozenset(
    {
        FaultKind.UNREACHABLE,
        FaultKind.UNAUTHORIZED,
        FaultKind.THROTTLED,
        FaultKind.SERVER,
        FaultKind.SHORT_WATCH,
        FaultKind.BAD_DATA,
    }
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One failed request or broken watch. ``retry_after`` is in seconds, already clamped. ``message`` is for people."""

    kind: FaultKind
    message: str
    status: int = 0
    retry_after: float | None = None
    refused: bool = False  #: UNREACHABLE because nobody listens: waiting will not help soon

    def __str__(self) -> str:
        return self.message


def _clean(text: object) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in str(text)[: _MAX_MESSAGE * 4])
    return shown[:_MAX_MESSAGE]


def retry_after(value: object) -> float | None:
    """Seconds from a Retry-After value, clamped to [0, 300]. An HTTP date or junk counts as "not given"."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    if seconds != seconds:
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _read_status(raw: Json) -> Status | None:
    try:
        return status_from_json(raw)
    except DataError:
        return None


def _too_large(status: Status | None) -> bool:
    return status is not None and (
        "ResourceVersionTooLarge" in status.causes or "Too large resource version" in status.message
    )


def _kind(code: int, reason: str) -> FaultKind:
    if code == 410 or reason in ("Expired", "Gone"):
        return FaultKind.EXPIRED
    if code == 429 or reason == "TooManyRequests":
        return FaultKind.THROTTLED
    if code == 401 or reason == "Unauthorized":
        return FaultKind.UNAUTHORIZED
    if code == 403 or reason == "Forbidden":
        return FaultKind.FORBIDDEN
    if code == 404 or reason == "NotFound":
        return FaultKind.NOT_SERVED
    if 500 <= code <= 599 or reason in ("InternalError", "ServiceUnavailable", "ServerTimeout", "Timeout"):
        return FaultKind.SERVER
    return FaultKind.REJECTED


def from_response(code: int, body: bytes, headers: Mapping[str, str], what: str) -> Fault:
    """A fault from an HTTP answer that is not 200. ``what`` names the request, for the message."""
    status = _read_status(body)
    if code == 504 and _too_large(status):
        kind = FaultKind.FUTURE_VERSION
    elif 200 <= code <= 299:
        kind = FaultKind.BAD_DATA
    else:
        kind = _kind(code, "")
    text = _clean(status.message or status.reason) if status is not None else ""
    if 300 <= code <= 399:
        text = "redirects are not followed, so that the token cannot reach another host"
    return Fault(
        kind,
        f"{what}: HTTP {code}" + (f": {text}" if text else ""),
        code,
        retry_after(headers.get("retry-after")),
    )


def from_error_event(raw: Json, what: str) -> Fault:
    """A fault from the object of a watch's ERROR event; whatever it is, the watch is over."""
    status = _read_status(raw)
    if status is None:
        return Fault(FaultKind.REJECTED, f"{what}: ERROR event without a readable Status")
    kind = FaultKind.FUTURE_VERSION if _too_large(status) else _kind(status.code, status.reason)
    text = _clean(status.message or status.reason)
    after = retry_after(status.retry_after) if status.retry_after else None
    return Fault(kind, f"{what}: ERROR event {status.code or ''} {text}".rstrip(), status.code, after)
