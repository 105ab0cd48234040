"""meshlib's errors as httpcore's."""

from __future__ import annotations

import httpcore
import pytest

from meshlib.clients.httpx.exceptions import as_httpcore
from meshlib.errors import (
    AccessDenied,
    MeshError,
    NoEndpoints,
    NoLocalEndpoints,
    NotSynced,
    PickTimeout,
    ServiceNotFound,
    UnknownPort,
)


@pytest.mark.parametrize("kind", [NoEndpoints, NoLocalEndpoints, NotSynced, ServiceNotFound, UnknownPort])
def test_resolve_errors_are_connect_errors(kind: type[MeshError]) -> None:
    """Both parents, the text and the original are kept."""
    original = kind("orders.shop: why")
    mapped = as_httpcore(original, httpcore)
    assert isinstance(mapped, httpcore.ConnectError)
    assert isinstance(mapped, kind)
    assert str(mapped) == "orders.shop: why"
    assert mapped.__cause__ is original


@pytest.mark.parametrize(
    ("pool_was_shorter", "expected"), [(False, httpcore.ConnectTimeout), (True, httpcore.PoolTimeout)]
)
def test_pick_timeout_is_the_timeout_that_ran_out(pool_was_shorter: bool, expected: type) -> None:
    """A caller that set a pool timeout gets a pool timeout, and can still catch TimeoutError."""
    mapped = as_httpcore(PickTimeout("orders.shop: waited"), httpcore, pool_was_shorter)
    assert isinstance(mapped, expected)
    assert isinstance(mapped, PickTimeout)
    assert isinstance(mapped, TimeoutError)


def test_attributes_are_kept_and_classes_are_made_once() -> None:
    """An error with more than a text keeps it; the same pair of parents is one class."""
    mapped = as_httpcore(AccessDenied("forbidden", fix="kind: Role"), httpcore)
    assert "kind: Role" in str(mapped)
    assert type(as_httpcore(NoEndpoints("a"), httpcore)) is type(as_httpcore(NoEndpoints("b"), httpcore))
