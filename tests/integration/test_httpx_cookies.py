"""The way around http.cookiejar: what comes of it equals httpx's own, for any reply and jar."""

from __future__ import annotations

import http.cookiejar
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.clients.httpx.cookies import CookieShortcut
from meshlib.clients.httpx.flavour import load
from meshlib.runtime.config import load_config
from tests.components.scripted import ScriptedServer

REPLIES = {
    "none": [],
    "one": [("Set-Cookie", "a=1; Path=/")],
    "several": [("set-cookie", "a=1"), ("X-Other", "b=2"), ("SET-COOKIE", "c=3; Max-Age=60")],
    "old": [("Set-Cookie2", 'a="1"; Version=1')],
    "expired": [("Set-Cookie", "kept=; Max-Age=0")],
    "foreign": [("Set-Cookie", "a=1; Domain=example.org")],
    "broken": [("Set-Cookie", ";;=;")],
}


@pytest.fixture
def short() -> Iterator[CookieShortcut]:
    shortcut = CookieShortcut(load("httpx"))
    shortcut.put_on()
    yield shortcut
    shortcut.take_off()


def jar_after(headers: list[tuple[str, str]], jar: Any = None) -> list[tuple[Any, ...]]:
    """What a client holds after one reply with these headers, having held one cookie before."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers))
    with httpx.Client(transport=transport, cookies=jar) as client:
        client.cookies.set("kept", "before", domain="orders.shop.svc")
        client.get("http://orders.shop.svc/")
        return sorted((c.name, c.value, c.domain, c.path, c.expires is None) for c in client.cookies.jar)


@pytest.mark.parametrize("case", REPLIES)
def test_jars_equal(case: str) -> None:
    """With it and without it a client holds the same cookies."""
    bare = jar_after(REPLIES[case])
    shortcut = CookieShortcut(load("httpx"))
    shortcut.put_on()
    try:
        assert jar_after(REPLIES[case]) == bare
    finally:
        shortcut.take_off()
    assert bool(bare) == (case != "expired")


def test_it_is_short(short: CookieShortcut, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cookie the jar is not asked; with one, or with a jar of the application's own, it is."""
    asked: list[str] = []
    monkeypatch.setattr(
        http.cookiejar.CookieJar, "extract_cookies", lambda jar, *_: asked.append(type(jar).__name__)
    )
    jar_after([("Content-Type", "text/plain")])
    assert asked == []
    jar_after(REPLIES["one"])
    assert asked == ["CookieJar"]

    class Own(http.cookiejar.CookieJar):
        """Counts replies, say."""

    jar_after(REPLIES["none"], Own())
    assert asked == ["CookieJar", "Own"]


def test_put_on_and_taken_off() -> None:
    """A function that somebody put in its place is left alone, before and after."""
    genuine = httpx.Cookies.__dict__["extract_cookies"]
    flavour = load("httpx")
    shortcut = CookieShortcut(flavour)
    shortcut.put_on()
    ours = httpx.Cookies.__dict__["extract_cookies"]
    assert ours is not genuine
    assert (ours.__name__, ours.__wrapped__) == ("extract_cookies", genuine)

    def wrapper(self: Any, response: Any) -> None:
        ours(self, response)

    try:
        httpx.Cookies.extract_cookies = wrapper
        shortcut.take_off()
        assert httpx.Cookies.__dict__["extract_cookies"] is wrapper
        other = CookieShortcut(flavour)
        other.put_on()
        assert httpx.Cookies.__dict__["extract_cookies"] is wrapper
    finally:
        httpx.Cookies.extract_cookies = genuine
    shortcut.put_on()
    shortcut.take_off()
    assert httpx.Cookies.__dict__["extract_cookies"] is genuine


@pytest.mark.parametrize("wire", ["fast", "httpcore"])
def test_install_switches_it_with_the_wire(wire: str) -> None:
    """On with the fast wire, for requests that are not ours as well; off without it, and after uninstall."""
    genuine = httpx.Cookies.__dict__["extract_cookies"]
    with ScriptedServer([[b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n"]]) as server:
        mesh = meshlib.Mesh(config=load_config({"wire": wire}))
        meshlib.install(mesh=mesh, grpc=False)
        try:
            assert (httpx.Cookies.__dict__["extract_cookies"] is genuine) == (wire == "httpcore")
            with httpx.Client() as client:
                client.get(f"http://127.0.0.1:{server.port}/")
                assert dict(client.cookies) == {"a": "1"}
        finally:
            meshlib.uninstall()
            mesh.close()
    assert httpx.Cookies.__dict__["extract_cookies"] is genuine


def test_httpx2_looks_itself() -> None:
    """It has the same look before its jar, so nothing of it is replaced."""
    flavour = load("httpx2")
    genuine = flavour.httpx.Cookies.__dict__["extract_cookies"]
    shortcut = CookieShortcut(flavour)
    shortcut.put_on()
    assert flavour.httpx.Cookies.__dict__["extract_cookies"] is genuine


def test_wrap_is_for_one_client() -> None:
    """A wrapped client takes the short way, until it is unwrapped; others are as they were."""
    genuine = httpx.Cookies.__dict__["extract_cookies"]
    with httpx.Client() as client, httpx.Client() as other, meshlib.Mesh() as mesh:
        meshlib.wrap(meshlib.wrap(client, mesh=mesh), mesh=mesh)
        assert client.cookies.extract_cookies.__wrapped__ is genuine  # type: ignore[attr-defined]
        assert other.cookies.extract_cookies.__func__ is genuine  # type: ignore[attr-defined]
        reply = httpx.Response(200, headers={"Set-Cookie": "a=1"}, request=httpx.Request("GET", "http://a/"))
        client.cookies.extract_cookies(reply)
        assert dict(client.cookies) == {"a": "1"}
        meshlib.unwrap(client)
        assert client.cookies.extract_cookies.__func__ is genuine  # type: ignore[attr-defined]
    with httpx.Client() as client, meshlib.Mesh(config=load_config({"wire": "httpcore"})) as mesh:
        meshlib.wrap(client, mesh=mesh)
        assert client.cookies.extract_cookies.__func__ is genuine  # type: ignore[attr-defined]
