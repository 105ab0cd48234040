"""install() together with what people put around httpx: mocks, recorders, other transports, hooks, auth, proxies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import pytest_httpx
import respx
import vcr

from tests.components.backends import Backends, HttpBackend
from tests.integration.install_support import URL, Installed, installed


@pytest.fixture
def mesh(backends: Backends) -> Iterator[Installed]:
    with installed() as made:
        made.servers = backends.http(2)  # type: ignore[attr-defined]
        made.serve(servers(made))
        made.known()
        yield made


def servers(mesh: Installed) -> list[HttpBackend]:
    found: list[HttpBackend] = mesh.servers  # type: ignore[attr-defined]
    return found


def total(mesh: Installed) -> int:
    return sum(server.requests for server in servers(mesh))


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(url)


@pytest.mark.parametrize("using", ["httpcore", "httpx"])
def test_respx(mesh: Installed, using: str) -> None:
    """Routes see the logical URL, sync and asyncio, for both mockers; no server is reached; then all is as before."""
    with respx.mock(using=using) as router:
        route = router.get(f"{URL}/a").respond(json={"mocked": True})
        assert httpx.get(f"{URL}/a").json() == {"mocked": True}
        assert asyncio.run(get(f"{URL}/a")).json() == {"mocked": True}
        assert [str(call.request.url) for call in route.calls] == [f"{URL}/a"] * 2
    assert total(mesh) == 0
    assert httpx.get(URL).status_code == 200
    assert total(mesh) == 1


def test_respx_that_was_there_first(backends: Backends) -> None:
    """A mock that began before install(), and before meshlib looked at httpx."""
    with respx.mock as router:
        router.get(URL).respond(418)
        with installed() as mesh:
            mesh.serve(backends.http(1))
            mesh.known()
            assert httpx.get(URL).status_code == 418


def test_respx_passing_through(mesh: Installed, backends: Backends) -> None:
    """What the mock lets through takes the bare way, as long as the mock is there."""
    (other,) = backends.http(1)
    with respx.mock as router:
        router.route(host="orders.shop.svc").pass_through()
        router.route(host=other.host).pass_through()
        assert httpx.get(other.url).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(URL)
    assert total(mesh) == 0
    assert httpx.get(URL).status_code == 200


def test_pytest_httpx(mesh: Installed, httpx_mock: pytest_httpx.HTTPXMock) -> None:
    """Its fixture answers, and lists requests by their logical URL."""
    httpx_mock.add_response(url=f"{URL}/a", text="mocked", is_reusable=True)
    assert httpx.get(f"{URL}/a").text == "mocked"
    assert asyncio.run(get(f"{URL}/a")).text == "mocked"
    assert {str(request.url) for request in httpx_mock.get_requests()} == {f"{URL}/a"}
    assert total(mesh) == 0


def test_vcrpy(mesh: Installed, tmp_path: Path) -> None:
    """A cassette is recorded over balanced requests, holds the logical name, and is played without any server."""
    cassette = tmp_path / "tape.json"
    record = vcr.VCR(serializer="json")
    with record.use_cassette(str(cassette)):
        recorded = httpx.get(f"{URL}/a").text
        asyncio.run(get(f"{URL}/b"))
    assert total(mesh) == 2
    tape = json.loads(cassette.read_text())
    assert [one["request"]["uri"] for one in tape["interactions"]] == [f"{URL}/a", f"{URL}/b"]
    assert not any(server.host in cassette.read_text().replace(server.name, "") for server in servers(mesh))
    with record.use_cassette(str(cassette), record_mode=vcr.mode.NONE):
        assert httpx.get(f"{URL}/a").text == recorded
    assert total(mesh) == 2


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda library: library.__name__)
def test_other_transports_are_left_alone(mesh: Installed, library: Any) -> None:
    """Mock, ASGI and WSGI transports get their requests; nobody is dialled."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    def wsgi(environ: Any, start: Any) -> list[bytes]:
        start("204 No Content", [])
        return [b""]

    async def asgi() -> int:
        async with library.AsyncClient(transport=library.ASGITransport(app=app)) as client:
            status: int = (await client.get(URL)).status_code
            return status

    mock = library.MockTransport(lambda request: library.Response(204))
    for transport in (mock, library.WSGITransport(app=wsgi)):
        with library.Client(transport=transport) as client:
            assert client.get(URL).status_code == 204
    assert asyncio.run(asgi()) == 204
    assert total(mesh) == 0


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda library: library.__name__)
def test_auth_hooks_cookies_and_redirects(mesh: Installed, library: Any) -> None:
    """All work on the name that was typed; a redirect is a request of its own."""
    one, two = servers(mesh)
    one.status, one.headers = 302, {"location": "/next", "set-cookie": "session=42; Path=/"}
    seen: list[str] = []

    class Token(library.Auth):  # type: ignore[misc, name-defined]
        def auth_flow(self, request: Any) -> Any:
            request.headers["authorization"] = "Bearer secret"
            yield request

    with library.Client(
        auth=Token(),
        follow_redirects=True,
        event_hooks={
            "request": [lambda request: seen.append(request.url.host)],
            "response": [lambda response: seen.append(response.request.url.host)],
        },
    ) as client:
        replies = [client.get(f"{URL}/first") for _ in range(2)]
        assert {jar.domain for jar in client.cookies.jar} == {"orders.shop.svc"}
    assert {str(reply.url) for reply in replies} <= {f"{URL}/next", f"{URL}/first"}
    assert set(seen) == {"orders.shop.svc"}
    assert one.requests
    assert {dict(got.headers)["authorization"] for got in one.received + two.received} == {"Bearer secret"}
    redirected = [got for got in two.received if got.path == "/next"]
    assert all(dict(got.headers)["cookie"] == "session=42" for got in redirected)


def test_mounts(mesh: Installed) -> None:
    """A mounted direct transport balances, a mounted mock mocks, a `None` mount is the client's own transport."""
    mock = httpx.MockTransport(lambda request: httpx.Response(204))
    mounts = {"http://orders.shop.svc": httpx.HTTPTransport(), "http://mocked.shop.svc": mock}
    with httpx.Client(mounts={**mounts, "http://none.shop.svc": None}) as client:
        assert client.get(URL).status_code == 200
        assert client.get("http://mocked.shop.svc").status_code == 204
    assert total(mesh) == 1


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda library: library.__name__)
@pytest.mark.parametrize("given", ["argument", "environment"])
def test_proxies_are_left_alone(
    mesh: Installed, backends: Backends, library: Any, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes through a proxy still does, with the URL as typed; NO_PROXY makes it ours."""
    (proxy,) = backends.http(1)
    if given == "environment":
        monkeypatch.setenv("http_proxy", proxy.url)
        options = {}
    else:
        options = {"proxy": proxy.url}
    with library.Client(**options) as client:
        assert client.get(f"{URL}/a").text == proxy.name
    assert proxy.received[0].path == f"{URL}/a"
    assert total(mesh) == 0
    if given == "environment":
        monkeypatch.setenv("no_proxy", "orders.shop.svc")
        with library.Client() as client:
            assert client.get(f"{URL}/a").status_code == 200
        assert total(mesh) == 1


def test_own_transport_around_a_transport(mesh: Installed) -> None:
    """A caching or retrying transport that holds an httpx transport inside: the inner one balances."""

    class Around(httpx.BaseTransport):
        def __init__(self) -> None:
            self.inner = httpx.HTTPTransport()

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return self.inner.handle_request(request)

        def close(self) -> None:
            self.inner.close()

    with httpx.Client(transport=Around()) as client:
        assert [client.get(URL).status_code for _ in range(4)] == [200] * 4
    assert [server.requests for server in servers(mesh)] == [2, 2]


def test_extensions_and_timeouts(mesh: Installed) -> None:
    """trace, network_stream and each kind of timeout, as on a bare client."""
    events: list[str] = []
    with httpx.Client() as client:
        reply = client.get(URL, extensions={"trace": lambda name, info: events.append(name)})
        stream = reply.extensions["network_stream"]
        assert stream.get_extra_info("server_addr")[0] in {server.host for server in servers(mesh)}
    assert "http11.send_request_headers.started" in events
    for server in servers(mesh):
        server.delay = float("inf")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(URL, timeout=httpx.Timeout(5, read=0.05))
    for server in servers(mesh):
        server.delay = 0
