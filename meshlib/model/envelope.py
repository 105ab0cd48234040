"""Envelopes: lists, watch events and Status objects of the Kubernetes API, opened without decoding what they carry.

The items stay raw, so that a driver can decode them one by one and never holds the interpreter for long.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from meshlib.errors import DataError
from meshlib.model.wire import Json, Meta, typed


@dataclass(frozen=True, slots=True)
class ListEnvelope:
    """A list answer. ``continue_token`` is "" on the last page; ``items`` are views into the decoded buffer."""

    kind: str
    api_version: str
    resource_version: str
    continue_token: str
    items: list[msgspec.Raw]


@dataclass(frozen=True, slots=True)
class WatchEnvelope:
    """One watch event: ADDED, MODIFIED, DELETED, BOOKMARK, ERROR or something a newer server invented."""

    type: str
    object: msgspec.Raw


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """The metadata that a reflector needs of any object; absent texts are ""."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    labels: dict[str, str]
    annotations: dict[str, str]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """A ``v1.Status``: how the API server says no, as an answer or as an ERROR event. Absent: 0 and ""."""

    code: int
    reason: str
    message: str
    causes: tuple[str, ...]  #: reasons of ``details.causes``
    retry_after: int  #: ``details.retryAfterSeconds``, seconds


class _ListMeta(msgspec.Struct):
    resource_version: str | None = msgspec.field(default=None, name="resourceVersion")
    continue_token: str | None = msgspec.field(default=None, name="continue")


class _List(msgspec.Struct, rename="camel"):
    kind: str | None = None
    api_version: str | None = None
    metadata: _ListMeta | None = None
    items: list[msgspec.Raw] | None = None


class _Watch(msgspec.Struct):
    type: str
    object: msgspec.Raw = msgspec.Raw(b"null")


class _Object(msgspec.Struct):
    metadata: Meta
    kind: str | None = None


class _Cause(msgspec.Struct):
    reason: str | None = None


class _Details(msgspec.Struct, rename="camel"):
    causes: list[_Cause] | None = None
    retry_after_seconds: int | None = None


class _Status(msgspec.Struct):
    # The code is read whatever its type is: a Status that cannot be read must not hide that the server said
    # no.
    code: int | float | str | None = None
    reason: str | None = None
    message: str | None = None
    details: _Details | None = None


def list_from_json(raw: Json) -> ListEnvelope:
    """Open a list answer; raises DataError when it is none (a captive portal's page, a Status, half a list)."""
    found = typed(raw, _List, "list")
    kind = found.kind or ""
    if not kind.endswith("List"):
        raise DataError("list", f"kind is {kind[:80]!r}, not a list")
    meta = found.metadata or _ListMeta()
    return ListEnvelope(
        kind,
        found.api_version or "",
        meta.resource_version or "",
        meta.continue_token or "",
        found.items or [],
    )


def watch_from_json(raw: Json) -> WatchEnvelope:
    """Open one line of a watch; raises DataError."""
    found = typed(raw, _Watch, "watch event")
    return WatchEnvelope(found.type, found.object)


def object_meta(raw: Json) -> ObjectMeta:
    """The metadata of any object; raises DataError when there is none."""
    found = typed(raw, _Object, "object")
    meta = found.metadata
    return ObjectMeta(
        meta.name or "",
        meta.namespace or "",
        meta.uid or "",
        meta.resource_version or "",
        meta.labels or {},
        meta.annotations or {},
        found.kind or "",
    )


def status_from_json(raw: Json) -> Status:
    """Read a Status as far as it can be read; raises DataError when it is not an object at all."""
    found = typed(raw, _Status, "Status")
    details = found.details or _Details()
    try:
        code = int(found.code or 0)
    except (ValueError, OverflowError):
        code = 0
    return Status(
        code,
        found.reason or "",
        found.message or "",
        tuple(cause.reason for cause in details.causes or () if cause.reason),
        details.retry_after_seconds or 0,
    )
