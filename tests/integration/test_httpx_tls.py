"""TLS and HTTP/2 over the mesh: the identity is the logical name, whatever address is dialled."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import MeshPool
from meshlib.runtime.config import load_config
from meshlib.runtime.lease import Lease
from tests.components.backends import Backends, HttpBackend
from tests.unit.clients_httpx.fakes import FakeHandle, async_transport, sync_transport

NAME = "orders.shop.svc"

pytestmark = pytest.mark.usefixtures("wire")


def handle_for(backends: list[HttpBackend]) -> FakeHandle:
    return FakeHandle([(backend.host, backend.port) for backend in backends])


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_identity_is_the_logical_name(backends: Backends, http2: bool) -> None:
    """Certificates for the name, none for the address: verified; Host or :authority carry the name and port."""
    servers = backends.http(2, tls=NAME)
    handle = handle_for(servers)
    transport = sync_transport(handle, verify=backends.client_context(), http2=http2)
    with httpx.Client(transport=transport) as client:
        replies = [client.get(f"https://{NAME}/a") for _ in range(4)]
        with_port = client.get(f"https://{NAME}:8443/a")
        absolute = client.get(f"https://{NAME}./a")
    assert {reply.http_version for reply in replies} == {"HTTP/2" if http2 else "HTTP/1.1"}
    assert {reply.headers["x-host"] for reply in replies} == {NAME}
    assert with_port.headers["x-host"] == f"{NAME}:8443"
    assert absolute.status_code == 200
    assert [server.requests for server in servers] == [3, 3]


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_identity_is_the_logical_name_in_asyncio(backends: Backends, http2: bool) -> None:
    """The same on a loop; with HTTP/2 many requests share one connection per endpoint."""
    servers = backends.http(2, tls=NAME)
    handle = handle_for(servers)

    async def main() -> None:
        transport = async_transport(handle, verify=backends.client_context(), http2=http2)
        async with httpx.AsyncClient(transport=transport) as client:
            for _ in range(2):
                await client.get(f"https://{NAME}/")
            replies = await asyncio.gather(
                *(client.post(f"https://{NAME}/echo", content=b"%d" % n) for n in range(40))
            )
            assert [reply.content for reply in replies] == [b"%d" % n for n in range(40)]
            assert {reply.headers["x-host"] for reply in replies} == {NAME}

    asyncio.run(main())
    assert [server.requests for server in servers] == [21, 21]
    if http2:
        assert [server.accepted for server in servers] == [1, 1]
    assert handle.inflight == 0


def test_wrong_certificate_is_refused_and_not_downgraded(backends: Backends) -> None:
    """An endpoint that cannot prove the name gets no request; another serves it; alone it is a ConnectError."""
    (wrong,) = backends.http(1, tls="payments.shop.svc")
    (right,) = backends.http(1, tls=NAME)
    handle = handle_for([wrong, right])
    context = backends.client_context()
    with httpx.Client(transport=sync_transport(handle, verify=context)) as client:
        assert [client.get(f"https://{NAME}/").status_code for _ in range(4)] == [200] * 4
        assert (wrong.requests, right.requests) == (0, 4)
        handle.replace([(wrong.host, wrong.port)])
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get(f"https://{NAME}/")
    assert wrong.requests == 0
    assert handle.subchannels[wrong.host, wrong.port].failures > 0


def test_untrusted_authority_is_refused(backends: Backends) -> None:
    """A certificate by somebody unknown is no proof."""
    (server,) = backends.http(1, tls=NAME)
    context = ssl.create_default_context(cafile=None, cadata=None)
    with httpx.Client(transport=sync_transport(handle_for([server]), verify=context)) as client:
        with pytest.raises(httpx.ConnectError):
            client.get(f"https://{NAME}/")
    assert server.requests == 0


def test_two_services_on_one_address_share_no_connection(backends: Backends) -> None:
    """A slice of `payments` that points at a pod of `orders`: the connection verified for orders is out of reach."""
    (server,) = backends.http(1, tls=NAME)
    orders, payments = handle_for([server]), handle_for([server])
    handles = {NAME: orders, "payments.shop.svc": payments}

    class TwoHosts:
        config = load_config()

        def for_url(self, scheme: str, host: str, port: int | None) -> Any:
            return handles[host]

    transport = httpx.HTTPTransport(verify=backends.client_context())
    transport._pool = MeshPool(transport._pool, load(), mesh=TwoHosts())  # type: ignore[assignment]
    with httpx.Client(transport=transport) as client:
        assert client.get(f"https://{NAME}/").status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get("https://payments.shop.svc/")
    assert server.requests == 1


def test_two_names_of_one_target_share_no_connection(backends: Backends) -> None:
    """The TLS name is part of the pool's key, for names in the URL and for sni_hostname given by the user."""
    (server,) = backends.http(1, tls=NAME)
    handle = handle_for([server])
    with httpx.Client(transport=sync_transport(handle, verify=backends.client_context())) as client:
        assert client.get(f"https://{NAME}/").status_code == 200
        with pytest.raises(httpx.ConnectError):
            client.get("https://other.shop.svc/")
        by_user = client.get("https://other.shop.svc/", extensions={"sni_hostname": NAME})
        assert by_user.headers["x-host"] == "other.shop.svc"
        with pytest.raises(httpx.ConnectError):
            client.get(f"https://{NAME}/", extensions={"sni_hostname": "other.shop.svc"})
    assert server.requests == 2


def test_authority_is_the_identity(backends: Backends) -> None:
    """An authority given for the target is what the certificate must prove, its port aside."""
    (server,) = backends.http(1, tls=NAME)
    handle = handle_for([server])
    handle.authority = f"{NAME}:8443"
    with httpx.Client(transport=sync_transport(handle, verify=backends.client_context())) as client:
        assert client.get("https://anything/").headers["x-host"] == f"{NAME}:8443"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])
def test_latency_sample_leaves_out_connection_setup(
    backends: Backends, monkeypatch: pytest.MonkeyPatch, scheme: str, asynchronous: bool
) -> None:
    """The sample begins once per new connection, after the TLS handshake if there is one, and not for reused ones."""
    begun: list[str] = []
    events: list[str] = []
    monkeypatch.setattr(Lease, "connected", lambda lease: begun.append(events[-1]))
    (server,) = backends.http(1, tls=NAME if scheme == "https" else None)
    handle, verify, url = handle_for([server]), backends.client_context(), f"{scheme}://{NAME}/"

    async def atrace(name: str, info: object) -> None:
        events.append(name)

    async def main() -> None:
        async with httpx.AsyncClient(transport=async_transport(handle, verify=verify)) as client:
            for _ in range(3):
                await client.get(url, extensions={"trace": atrace})

    if asynchronous:
        asyncio.run(main())
    else:
        with httpx.Client(transport=sync_transport(handle, verify=verify)) as client:
            for _ in range(3):
                client.get(url, extensions={"trace": lambda name, info: events.append(name)})
    step = "start_tls" if scheme == "https" else "connect_tcp"
    assert begun == [f"connection.{step}.started"]
    assert events.count(f"connection.{step}.complete") == 1


def test_http2_without_tls(backends: Backends) -> None:
    """http1=False: prior knowledge on a plain connection, shared by the threads' requests."""
    servers = backends.http(2)
    handle = handle_for(servers)
    with httpx.Client(transport=sync_transport(handle, http1=False, http2=True)) as client:
        replies = [client.get(f"http://{NAME}/") for _ in range(6)]
    assert {reply.headers["x-version"] for reply in replies} == {"HTTP/2"}
    assert {reply.headers["x-host"] for reply in replies} == {NAME}
    assert [server.accepted for server in servers] == [1, 1]


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_removed_endpoint_over_tls(backends: Backends, http2: bool) -> None:
    """A stream in flight on an endpoint that leaves is read to its end, then its connection closes."""
    servers = backends.http(1, tls=NAME)
    handle = handle_for(servers)

    async def main() -> None:
        transport = async_transport(handle, verify=backends.client_context(), http2=http2)
        async with httpx.AsyncClient(transport=transport) as client:
            async with client.stream("GET", f"https://{NAME}/stream/10/0.01") as reply:
                await asyncio.to_thread(handle.replace, [])
                assert len((await reply.aread()).splitlines()) == 10
            for _ in range(500):
                if servers[0].connections == 0:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("the connection stayed open")

    asyncio.run(main())
