"""When the thing happened that led to a slice's newest state: what the endpoint controllers note on every slice."""

from __future__ import annotations

from datetime import UTC, datetime

from meshlib.errors import DataError
from meshlib.model.wire import Json, Triggered, typed


def trigger_time(raw: Json) -> float | None:
    """Seconds since 1970 from the last-change-trigger-time annotation of an EndpointSlice or Endpoints object.

    None where there is none or it is no time: it feeds a measurement, so it is never a reason to refuse the object.
    """
    try:
        meta = typed(raw, Triggered, "annotations").metadata
    except DataError:
        return None
    text = meta.annotations.time if meta is not None and meta.annotations is not None else None
    if not text:
        return None
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
