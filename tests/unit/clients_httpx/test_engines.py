"""Which wire serves: the option, the Mesh's configuration, and what the fast wire leaves to httpcore."""

from __future__ import annotations

import errno
import importlib.util
from typing import Any

import httpcore
import pytest

from meshlib.clients.httpx import engines
from meshlib.clients.httpx.allowance import Allowance, default_cap
from meshlib.clients.httpx.fast.choice import Choice
from meshlib.clients.httpx.fast.slots import Slots
from meshlib.clients.httpx.fast.sync_engine import SyncFastEngine
from meshlib.clients.httpx.transport import MeshTransport
from meshlib.clients.httpx.wire import SyncEngine, pool_settings
from meshlib.model.endpoint import Endpoint
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.primitives import new_lock


def settings(**options: Any) -> dict[str, Any]:
    return pool_settings(httpcore.ConnectionPool(**options))


@pytest.mark.parametrize(("wire", "kind"), [("fast", SyncFastEngine), ("httpcore", SyncEngine)])
def test_the_meshs_configuration_decides(wire: str, kind: type) -> None:
    with Mesh(config=load_config({"wire": wire}, environ={})) as mesh:
        pool: Any = MeshTransport("static:///127.0.0.1:1", mesh=mesh)._pool
        assert type(pool._new_engine()) is kind


def test_without_httptools_httpcore_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform without a build of it: a warning, and everything works."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="httptools"):
        engine = engines.make_sync("fast", httpcore, httpcore.ConnectionPool(), lambda: 0.0)
    assert type(engine) is SyncEngine


@pytest.mark.parametrize(
    ("options", "secure", "method", "extensions", "fast"),
    [
        ({}, False, b"GET", {}, True),
        ({}, True, b"GET", {}, True),
        ({}, False, b"CONNECT", {}, False),
        ({}, False, b"GET", {"trace": print}, False),
        ({"http2": True}, True, b"GET", {}, False),
        ({"http2": True}, False, b"GET", {}, True),
        ({"http1": False, "http2": True}, False, b"GET", {}, False),
        ({"network_backend": httpcore.MockBackend([])}, False, b"GET", {}, False),
    ],
)
def test_what_is_left_to_httpcore(
    options: dict[str, Any], secure: bool, method: bytes, extensions: dict[str, Any], fast: bool
) -> None:
    """HTTP/2, tracing, tunnels, and connections that the application makes itself."""
    assert Choice(httpcore, settings(**options)).is_fast(method, secure, extensions) is fast


class Connection:
    """An idle connection."""

    def __init__(self, expires_at: float = 10.0, dead: bool = False) -> None:
        self.expires_at, self.dead = expires_at, dead

    def is_dead(self) -> bool:
        return self.dead


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def slots(clock: Clock, **options: Any) -> Slots:
    return Slots(settings(max_connections=5, keepalive_expiry=10.0, **options), clock, new_lock)


def endpoint(number: int) -> Subchannel:
    return Subchannel(Endpoint(address=f"10.0.0.{number}", port=80), new_lock())


def idle_in(found: Slots, subchannel: Subchannel, connection: Connection) -> None:
    slot = found.find(subchannel, "", True)
    slot.take()
    slot.opened(connection)
    assert slot.give_back(connection)
    found.note_idle(slot)


def test_sweeps_find_what_expired_one_list_after_the_other() -> None:
    """A hundred endpoints with one idle connection each: all expired and dead ones are found, the rest stays."""
    clock = Clock()
    found = slots(clock)
    for number in range(100):
        idle_in(found, endpoint(number), Connection(10.0 if number % 2 else 1000.0))
    idle_in(found, endpoint(200), Connection(1000.0, dead=True))
    clock.now = 9.0
    assert [len(gone) for gone in found.expired()] == [0] * 100 + [1]
    clock.now = 20.0
    assert sum(len(gone) == 1 for gone in found.expired()) == 50
    assert [len(gone) for gone in found.expired()] == [0] * 50


def test_idle_connections_make_room() -> None:
    """Whoever has been idle goes; nobody when all are busy."""
    found = slots(Clock())
    assert found.evict() is None
    connection = Connection()
    idle_in(found, endpoint(1), connection)
    assert found.evict() is connection
    assert found.evict() is None


def test_an_allowance_is_a_share_of_the_descriptors_unless_told() -> None:
    """Taken and given back; the error says how many, why, and which key changes it."""
    assert Allowance(new_lock()).cap == default_cap() >= 1
    assert "75% of its descriptors; total_connections changes it" in str(
        Allowance(new_lock()).exhausted(httpcore)
    )
    two = Allowance(new_lock(), 2, "MESHLIB_TOTAL_CONNECTIONS")
    assert [two.take() for _ in range(3)] == [True, True, False]
    two.give_back()
    assert [two.take() for _ in range(2)] == [True, False]
    error = two.exhausted(httpcore)
    assert isinstance(error, httpcore.ConnectError)
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.EMFILE
    assert "2 connections in use" in str(error)
    assert "total_connections = 2, from MESHLIB_TOTAL_CONNECTIONS" in str(error)


def test_an_endpoint_that_left_keeps_nothing() -> None:
    found = slots(Clock())
    gone = endpoint(1)
    gone.removed = True
    assert found.find(gone, "", True).keep == 0
    assert found.find(endpoint(2), "", False).keep == 0
    assert found.count() == 0
