"""The check of httpx's inside, and what happens when it is not what we know (decision D18)."""

from __future__ import annotations

import types
from typing import Any

import httpcore
import httpx
import pytest

from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport, flavour, wrap
from meshlib.clients.httpx.flavour import Flavour, check, flavour_of, load


def like(module: types.ModuleType, **changes: Any) -> Any:
    made = types.SimpleNamespace(**{name: getattr(module, name) for name in dir(module)})
    made.__name__ = module.__name__
    for name, value in changes.items():
        setattr(made, name, value)
    return made


class KeepsAll(httpcore.ConnectionPool):
    def _assign_requests_to_connections(self) -> list[Any]:
        return []


class NoSlots(httpcore.ConnectionPool):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self._network_backend


class OtherArguments(httpcore.ConnectionPool):
    def __init__(self, limit: int) -> None:
        super().__init__(max_connections=limit)


def test_the_installed_httpx_is_supported() -> None:
    """The versions that the dependencies allow are the ones that are known."""
    assert load().unsupported == ""


@pytest.mark.parametrize("kind", [KeepsAll, NoSlots, OtherArguments])
def test_changed_pools_are_found(kind: type) -> None:
    """Another behaviour, a missing attribute or other arguments: each is named, none raises."""
    found = check(httpx, like(httpcore, ConnectionPool=kind))
    assert "not a version this meshlib knows" in found.unsupported
    assert httpx.__version__ in found.unsupported


def test_missing_transport_is_found() -> None:
    """An httpx without the classes we build on."""
    assert "HTTPTransport" in check(like(httpx, HTTPTransport=None), httpcore).unsupported


def test_unsupported_version_passes_through_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """No exception, no balancing, one clear warning - for wrap and for both transports."""
    strange = Flavour(httpx, httpcore, "httpx 9.9 is not a version this meshlib knows")
    monkeypatch.setitem(flavour._loaded, "httpx", strange)
    with httpx.Client() as client:
        before = client._transport._pool  # type: ignore[attr-defined]
        with pytest.warns(RuntimeWarning, match="not balanced: httpx 9.9"):
            assert wrap(client) is client
        assert client._transport._pool is before  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning, match="MeshTransport is left as it is"):
        assert type(MeshTransport()._pool) is httpcore.ConnectionPool
    with pytest.warns(RuntimeWarning, match="AsyncMeshTransport is left as it is"):
        assert type(AsyncMeshTransport()._pool) is httpcore.AsyncConnectionPool


def test_subclasses_of_the_application_belong_to_their_flavour() -> None:
    """An application's own client class is an httpx client; anything else has no flavour."""

    class Own(httpx.Client):
        pass

    with Own() as client:
        assert flavour_of(client) is load()
    assert flavour_of(object()) is None


def test_mocked_pool_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mocking library that replaces the pool's method is to see the logical URL."""
    pool = httpcore.ConnectionPool()
    assert not load().is_mocked(pool)
    monkeypatch.setattr(httpcore.ConnectionPool, "handle_request", lambda self, request: None)
    assert load().is_mocked(pool)


class Wrapper:
    """As wrapt's: equal to the function inside, with the same hash."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return bool(self.inner == other)

    def __hash__(self) -> int:
        return hash(self.inner)


def test_a_wrapper_that_claims_to_be_the_librarys_own_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found genuine is remembered by identity: a later wrapper around it is a mock all the same."""
    pool = httpcore.ConnectionPool()
    assert not load().is_mocked(pool)
    genuine = httpcore.ConnectionPool.handle_request
    monkeypatch.setattr(httpcore.ConnectionPool, "handle_request", Wrapper(genuine))
    assert load().is_mocked(pool)
    monkeypatch.setattr(httpcore.ConnectionPool, "handle_request", genuine)
    assert not load().is_mocked(pool)
