"""Envelopes of lists, watch events and Status objects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshlib.errors import DataError
from meshlib.model.envelope import Status, list_from_json, object_meta, status_from_json, watch_from_json


def raw(obj: Any) -> bytes:
    return json.dumps(obj).encode()


def test_list() -> None:
    """A list gives its version, its continue token and its items undecoded, in order."""
    found = list_from_json(
        raw(
            {
                "kind": "EndpointSliceList",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"resourceVersion": "9", "continue": "abc", "remainingItemCount": 4},
                "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b", "namespace": "n"}}],
            }
        )
    )
    assert (found.kind, found.api_version) == ("EndpointSliceList", "discovery.k8s.io/v1")
    assert (found.resource_version, found.continue_token) == ("9", "abc")
    assert [object_meta(item).name for item in found.items] == ["a", "b"]


def test_list_without_items_or_metadata() -> None:
    """Null items are an empty list, absent metadata are empty texts."""
    found = list_from_json(raw({"kind": "ServiceList", "items": None}))
    assert (found.items, found.resource_version, found.continue_token) == ([], "", "")


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"",
        b"[]",
        b"null",
        raw({"kind": "Status", "code": 403}),
        raw({"items": []}),
        raw({"kind": "List", "items": 5}),
    ],
)
def test_not_a_list(answer: bytes) -> None:
    """A captive portal's page, a Status or a broken list is no empty list."""
    with pytest.raises(DataError):
        list_from_json(answer)


def test_watch_event() -> None:
    """A watch event gives its type and its object undecoded; a missing or null object reads as null."""
    event = watch_from_json(
        raw({"type": "ADDED", "object": {"kind": "Service", "metadata": {"name": "x", "uid": "u"}}})
    )
    assert event.type == "ADDED"
    meta = object_meta(event.object)
    assert (meta.kind, meta.name, meta.uid, meta.namespace, meta.labels) == ("Service", "x", "u", "", {})
    assert bytes(watch_from_json(b'{"type":"ERROR"}').object) == b"null"
    with pytest.raises(DataError):
        object_meta(watch_from_json(b'{"type":"ERROR","object":null}').object)


def test_line_separators_inside_texts() -> None:
    """NEL, LINE SEPARATOR and escaped newlines inside a text are part of it."""
    obj = {"metadata": {"name": "x", "annotations": {"a": "\u0085\u2028\n\r"}}}
    line = json.dumps({"type": "ADDED", "object": obj}, ensure_ascii=False).encode()
    assert object_meta(watch_from_json(line).object).annotations == {"a": "\u0085\u2028\n\r"}


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"type":5}', b'{"type":"ADDED","object":{}', b'{"type":"A"}{"type":"B"}', b"\xff"]
)
def test_broken_event(line: bytes) -> None:
    """Half a line, two objects on one line and lines that are no event raise DataError."""
    with pytest.raises(DataError):
        watch_from_json(line)


def test_status() -> None:
    """A Status gives code, reason, message, causes and the time to wait."""
    found = status_from_json(
        raw(
            {
                "kind": "Status",
                "code": 410,
                "reason": "Expired",
                "message": "too old resource version",
                "details": {"retryAfterSeconds": 7, "causes": [{"reason": "ResourceVersionTooLarge"}, {}]},
            }
        )
    )
    assert found == Status(410, "Expired", "too old resource version", ("ResourceVersionTooLarge",), 7)


@pytest.mark.parametrize(
    ("obj", "code"),
    [({}, 0), ({"code": "410"}, 410), ({"code": "gone"}, 0), ({"code": None}, 0), ({"code": 410.0}, 410)],
)
def test_status_with_odd_code(obj: dict[str, Any], code: int) -> None:
    """A code of the wrong kind is read as far as possible, so that the refusal is not lost."""
    assert status_from_json(raw(obj)).code == code


@pytest.mark.parametrize("answer", [b"", b"null", b"[]", b"<html>"])
def test_no_status(answer: bytes) -> None:
    """What is no object is no Status."""
    with pytest.raises(DataError):
        status_from_json(answer)
