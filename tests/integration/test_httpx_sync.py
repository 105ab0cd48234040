"""httpx.Client over the mesh against real servers; every request is counted where it arrives."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx import MeshTransport, unwrap, wrap
from meshlib.clients.httpx.body import settle_abandoned
from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.pool import HASH_KEY_EXTENSION, MeshPool
from meshlib.discovery.dns import lookup
from meshlib.errors import MeshClosed, NoEndpoints, PickTimeout
from meshlib.pickers.hash_key import parse_hash_key
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.testing.manual import ManualResolver
from tests.components.backends import Backends, HttpBackend
from tests.unit.clients_httpx.fakes import FakeHandle, sync_transport

URL = "http://orders.shop.svc"

pytestmark = pytest.mark.usefixtures("wire")


def handle_for(backends: list[HttpBackend]) -> FakeHandle:
    return FakeHandle([(backend.host, backend.port) for backend in backends])


def total(backends: list[HttpBackend]) -> int:
    return sum(backend.requests for backend in backends)


def eventually(check: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Servers notice a closed connection a moment later."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if check():
            return True
        pause.wait(0.01)
    return check()


def settled(handle: FakeHandle) -> bool:
    settle_abandoned()
    return handle.inflight == 0


def test_requests_are_spread_and_see_the_logical_name(backends: Backends) -> None:
    """Round robin over real servers: equal shares, one connection each, Host and response.url as typed."""
    servers = backends.http(3)
    handle = handle_for(servers)
    with httpx.Client(transport=sync_transport(handle), base_url="http://orders.shop.svc:8080") as client:
        replies = [client.get("/a?b=c") for _ in range(30)]
    assert [server.requests for server in servers] == [10, 10, 10]
    assert [server.accepted for server in servers] == [1, 1, 1]
    assert {reply.headers["x-host"] for reply in replies} == {"orders.shop.svc:8080"}
    assert {reply.headers["x-path"] for reply in replies} == {"/a?b=c"}
    assert {str(reply.url) for reply in replies} == {"http://orders.shop.svc:8080/a?b=c"}
    assert settled(handle)
    assert eventually(lambda: not any(server.connections for server in servers))


def test_default_port_is_not_in_host(backends: Backends) -> None:
    """Host is written as httpx writes it, whatever port the endpoint has."""
    servers = backends.http(1)
    with httpx.Client(transport=sync_transport(handle_for(servers))) as client:
        assert client.get("http://orders.shop.svc:80/").headers["x-host"] == "orders.shop.svc"


def test_real_mesh_with_a_static_target(backends: Backends) -> None:
    """The transport, the runtime and a static target together; counters are exact at the end."""
    servers = backends.http(3)
    target = "static:///" + ",".join(server.address for server in servers)
    with Mesh() as mesh:
        with httpx.Client(transport=MeshTransport(target, mesh=mesh)) as client:
            for _ in range(40):
                assert client.get(URL).status_code == 200
            (handle,) = mesh.handles
            endpoints = handle.status()["endpoints"]
            assert sum(endpoint["requests"] for endpoint in endpoints) == total(servers) == 40
            assert sum(endpoint["inflight"] for endpoint in endpoints) == 0
            mesh.close()
            with pytest.raises(MeshClosed):
                client.get(URL)


def test_streaming_bodies_both_ways(backends: Backends) -> None:
    """A generator goes up once; a reply is in flight until it was read to its end."""
    servers = backends.http(2)
    handle = handle_for(servers)
    with httpx.Client(transport=sync_transport(handle)) as client:
        parts = iter([b"one ", b"two ", b"three"])
        assert client.post(f"{URL}/echo", content=parts).content == b"one two three"
        with client.stream("GET", f"{URL}/stream/5/0.01") as reply:
            lines = reply.iter_lines()
            next(lines)
            assert handle.inflight == 1
            assert len(list(lines)) == 4
            assert handle.inflight == 0
        with client.stream("GET", f"{URL}/stream/5/0.01"):
            assert handle.inflight == 1
        assert handle.inflight == 0


def test_cookies_redirects_auth_and_hooks_keep_the_logical_name(backends: Backends) -> None:
    """Everything above the seam works on the name that was typed; a redirect is a new pick."""
    one, two = backends.http(2)
    one.status, one.headers = 302, {"location": "/next", "set-cookie": "session=42; Path=/"}
    seen: list[str] = []
    handle = handle_for([one, two])
    with httpx.Client(
        transport=sync_transport(handle),
        auth=("user", "secret"),
        follow_redirects=True,
        event_hooks={
            "request": [lambda request: seen.append(request.url.host)],
            "response": [lambda response: seen.append(response.url.host)],
        },
    ) as client:
        reply = client.get(f"{URL}/first")
        assert [jar.domain for jar in client.cookies.jar] == ["orders.shop.svc"]
    assert reply.status_code == 200
    assert reply.url == f"{URL}/next"
    assert (one.requests, two.requests) == (1, 1)
    arrived = dict(two.received[0].headers)
    assert arrived["cookie"] == "session=42"
    assert arrived["authorization"].startswith("Basic ")
    assert arrived["host"] == "orders.shop.svc"
    assert set(seen) == {"orders.shop.svc"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refused_moves_on_and_is_sent_once(backends: Backends, method: str) -> None:
    """Two of three refuse: every request succeeds, the body arrives exactly once, the refusals are blamed."""
    servers = backends.http(3)
    servers[0].stop()
    servers[1].stop()
    handle = handle_for(servers)
    with httpx.Client(transport=sync_transport(handle)) as client:
        for number in range(6):
            content = iter([b"order ", str(number).encode()]) if method == "POST" else None
            assert client.request(method, f"{URL}/echo", content=content).status_code == 200
    assert [server.requests for server in servers] == [0, 0, 6]
    assert [got.body for got in servers[2].received] == [
        b"order %d" % number if method == "POST" else b"" for number in range(6)
    ]
    failures = [subchannel.failures for subchannel in handle.subchannels.values()]
    assert failures[0] > 0
    assert failures[1] > 0
    assert failures[2] == 0
    assert settled(handle)


def test_all_refused_is_httpx_connect_error(backends: Backends) -> None:
    """The exception that the bare client raises."""
    servers = backends.http(2)
    for server in servers:
        server.stop()
    handle = handle_for(servers)
    with httpx.Client(transport=sync_transport(handle)) as client, pytest.raises(httpx.ConnectError):
        client.get(URL)
    assert settled(handle)


def test_all_refused_goes_through_the_service_address(backends: Backends) -> None:
    """The one try of decision D3; its connection is closed afterwards and no pool remains."""
    servers = backends.http(1)
    (service,) = backends.http(1)
    servers[0].stop()
    handle = handle_for(servers)
    handle.service = next(iter(handle_for([service]).subchannels.values()))
    transport = sync_transport(handle)
    with httpx.Client(transport=transport) as client:
        assert client.get(URL).status_code == 200
        assert service.requests == 1
        assert eventually(lambda: service.connections == 0)
        assert transport._pool._engine.pool_count() == 1  # type: ignore[attr-defined]
    assert handle.service.inflight == 0


def test_errors_are_httpx_types_with_the_reason(backends: Backends) -> None:
    """An empty set fails at once as ConnectError; a wait that ran out is the timeout that bounded it."""
    handle = FakeHandle([])
    with httpx.Client(transport=sync_transport(handle)) as client:
        with pytest.raises(httpx.ConnectError, match=r"orders\.shop") as caught:
            client.get(URL)
        assert isinstance(caught.value.__cause__, NoEndpoints)
        handle.known, handle.error = False, PickTimeout("orders.shop: waited")
        for timeout, expected in (
            (httpx.Timeout(5, pool=1), httpx.PoolTimeout),
            (httpx.Timeout(5, connect=1), httpx.ConnectTimeout),
        ):
            with pytest.raises(expected) as waited:
                client.get(URL, timeout=timeout)
            assert isinstance(waited.value.__cause__, PickTimeout)
        assert handle.waits == [pytest.approx(1, abs=0.1)] * 2


def test_read_timeout_and_cut_body_count_as_failures(backends: Backends) -> None:
    """The bare library's exceptions; the endpoint is blamed; nothing stays in flight."""
    (server,) = backends.http(1)
    handle = handle_for([server])
    (subchannel,) = handle.subchannels.values()
    with httpx.Client(transport=sync_transport(handle)) as client:
        server.delay = float("inf")
        with pytest.raises(httpx.ReadTimeout):
            client.get(URL, timeout=httpx.Timeout(5, read=0.05))
        server.delay, server.fault = 0.0, "truncate"
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(URL)
    assert subchannel.failures == 2
    assert settled(handle)


def test_limits_hold_for_each_endpoint(backends: Backends) -> None:
    """max_connections=1: a second request to the same endpoint waits and ends in PoolTimeout, blaming nobody."""
    servers = backends.http(2)
    handle = handle_for(servers)
    with httpx.Client(transport=sync_transport(handle, limits=httpx.Limits(max_connections=1))) as client:
        with client.stream("GET", f"{URL}/stream/100/0.05"), client.stream("GET", f"{URL}/stream/100/0.05"):
            with pytest.raises(httpx.PoolTimeout):
                client.get(URL, timeout=httpx.Timeout(5, pool=0.05))
    assert [server.accepted for server in servers] == [1, 1]
    assert [subchannel.failures for subchannel in handle.subchannels.values()] == [0, 0]


def test_removed_endpoint_finishes_what_it_has(backends: Backends) -> None:
    """In flight: read to the end, then closed. Idle: closed at once. New requests: none."""
    servers = backends.http(2)
    handle = handle_for(servers)
    with httpx.Client(transport=sync_transport(handle)) as client:
        for _ in range(2):
            client.get(URL)
        with client.stream("GET", f"{URL}/stream/20/0.01") as reply:
            before = servers[0].requests
            handle.replace([(servers[1].host, servers[1].port)])
            for _ in range(5):
                client.get(URL)
            assert len(reply.read().splitlines()) == 20
        assert servers[0].requests == before
        assert eventually(lambda: servers[0].connections == 0)
        assert servers[1].connections == 1
        handle.replace([])
        assert eventually(lambda: servers[1].connections == 0)


def test_endpoint_that_left_after_the_pick_keeps_nothing(backends: Backends) -> None:
    """The removal comes between the pick and the first connection: the request is served, its connection closes."""
    (server,) = backends.http(1)
    handle = handle_for([server])
    transport = sync_transport(handle)
    lease = handle.try_acquire()
    assert lease is not None
    handle.try_acquire = lambda *_: lease  # type: ignore[method-assign, assignment]
    handle.replace([])
    with httpx.Client(transport=transport) as client:
        assert client.get(URL).status_code == 200
        assert eventually(lambda: server.connections == 0)
        assert transport._pool._engine.pool_count() == 0  # type: ignore[attr-defined]


def test_threads_share_a_client_under_churn(backends: Backends) -> None:
    """Eight threads and a set that changes all the time: no error, no request lost or doubled, exact counters."""
    servers = backends.http(4)
    every = [(server.host, server.port) for server in servers]
    handle = FakeHandle(every)
    seen = set(handle.subchannels.values())
    stop = threading.Event()

    def churn() -> None:
        turn = 0
        while not stop.wait(0.005):
            turn += 1
            handle.replace(every[: 2 + turn % 3])
            seen.update(handle.subchannels.values())

    def work(thread: int) -> int:
        for number in range(50):
            content = f"{thread}/{number}".encode()
            assert client.post(f"{URL}/echo", content=content).content == content
        return 50

    churning = threading.Thread(target=churn)
    with httpx.Client(transport=sync_transport(handle)) as client, ThreadPoolExecutor(8) as pool:
        churning.start()
        done = sum(pool.map(work, range(8)))
        stop.set()
        churning.join()
    assert done == total(servers) == 400
    assert len({got.body for server in servers for got in server.received}) == 400
    assert sum(subchannel.requests for subchannel in seen) == 400
    assert sum(subchannel.inflight for subchannel in seen) == 0
    assert eventually(lambda: not any(server.connections for server in servers))


def test_threads_that_are_interrupted_everywhere(backends: Backends) -> None:
    """A thread switch at nearly every step, more threads than connections: each gets its own reply, nothing is lost."""
    servers = backends.http(2)
    handle = handle_for(servers)
    limits = httpx.Limits(
        max_connections=2, keepalive_expiry=None
    )  # on a busy machine this takes longer than 5 s
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with httpx.Client(transport=sync_transport(handle, limits=limits), timeout=60) as client:

            def work(who: int) -> int:
                bodies = [f"{who}/{number}".encode() for number in range(25)]
                return sum(client.post(f"{URL}/echo", content=body).content == body for body in bodies)

            with ThreadPoolExecutor(8) as threads:
                assert list(threads.map(work, range(8))) == [25] * 8
            assert max(server.accepted for server in servers) <= 2
    finally:
        sys.setswitchinterval(before)
    assert sum(server.requests for server in servers) == 200
    assert handle.inflight == 0


def test_dropped_response_is_settled(backends: Backends) -> None:
    """A stream that nobody closes: the next request ends its lease and closes its half-read connection."""
    (server,) = backends.http(1)
    handle = handle_for([server])
    with httpx.Client(transport=sync_transport(handle)) as client:
        reply: Any = client.send(client.build_request("GET", f"{URL}/stream/1000/0.01"), stream=True)
        assert handle.inflight == 1
        del reply
        gc.collect()
        client.get(URL)
        assert handle.inflight == 0
        assert eventually(lambda: server.connections == 1)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_client_dropped_without_close(backends: Backends) -> None:
    """Collected like the bare client: sockets are gone, the handle keeps nothing of it alive."""
    (server,) = backends.http(1)
    handle = handle_for([server])
    client: Any = httpx.Client(transport=sync_transport(handle))
    client.get(URL)
    assert server.connections == 1
    del client
    gc.collect()
    assert eventually(lambda: server.connections == 0)
    handle.replace([])


def test_inherited_connections_are_left_alone(backends: Backends) -> None:
    """After a fork: new connections, and the inherited ones are neither used, swept nor closed."""
    (server,) = backends.http(1)
    handle = handle_for([server])
    transport = sync_transport(handle)
    with httpx.Client(transport=transport) as client:
        client.get(URL)
        inherited: Any = transport._pool._engine  # type: ignore[attr-defined]
        transport._pool.after_fork()  # type: ignore[attr-defined]
        client.get(URL)
        assert (server.accepted, server.connections) == (2, 2)
        handle.replace([])
        assert eventually(lambda: server.connections == 1)
    assert inherited.pool_count() == 1
    assert server.connections == 1
    inherited.close()


def test_hash_key_places(backends: Backends) -> None:
    """Header as configured, the transport's callable before it, the request's own extension before both."""
    (server,) = backends.http(1)
    handle = handle_for([server])
    handle.hash_key = parse_hash_key("header:x-user", "test")
    with httpx.Client(transport=sync_transport(handle)) as client:
        client.get(URL, headers={"X-User": "ann"})
        client.get(URL)
        client.get(URL, headers={"X-User": "ann"}, extensions={HASH_KEY_EXTENSION: b"mine"})
        handle.hash_key = parse_hash_key("client", "test")
        client.get(URL)
        client.get(URL)
    assert handle.keys[:3] == ["ann", None, b"mine"]
    assert handle.keys[3] == handle.keys[4] is not None
    transport = httpx.HTTPTransport()
    transport._pool = MeshPool(  # type: ignore[assignment]
        transport._pool, load(), handle=handle, hash_key=lambda request: request.method
    )
    with httpx.Client(transport=transport) as client:
        client.get(URL)
    assert handle.keys[5] == b"GET"


def test_authority_replaces_host(backends: Backends) -> None:
    """An authority given for the target is what the server sees."""
    (server,) = backends.http(1)
    handle = handle_for([server])
    handle.authority = "orders.example:8443"
    with httpx.Client(transport=sync_transport(handle)) as client:
        reply = client.get(URL)
    assert reply.headers["x-host"] == "orders.example:8443"
    assert [name for name, _ in server.received[0].headers].count("host") == 1


def test_expired_idle_connections_are_swept(backends: Backends) -> None:
    """An endpoint that gets no more requests does not keep its idle connection beyond keepalive_expiry."""
    servers = backends.http(2)
    handle = handle_for(servers)
    clock = [0.0]
    transport = httpx.HTTPTransport(limits=httpx.Limits(keepalive_expiry=0.05))
    transport._pool = MeshPool(  # type: ignore[assignment]
        transport._pool, load(), handle=handle, now=lambda: clock[0]
    )
    with httpx.Client(transport=transport) as client:
        client.get(URL)
        client.get(URL)
        assert [server.connections for server in servers] == [1, 1]
        engine = transport._pool._engine  # type: ignore[attr-defined]

        def swept() -> bool:
            clock[0] += 10
            for _ in engine.sweep():
                pass
            return not any(server.connections for server in servers)

        assert eventually(swept)


class Stale:
    """Serves one request per connection, then hangs up when the second arrives, as a server does that timed it out."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.requests: Counter[bytes] = Counter()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self._read(connection)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                self._read(connection)

    def _read(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            got = connection.recv(4096)
            if not got:
                return
            data += got
        self.requests[data.partition(b" ")[0]] += 1

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(5)


@pytest.fixture
def stale() -> Iterator[Stale]:
    server = Stale()
    yield server
    server.close()


def test_stale_connection_is_replaced_for_get_only(stale: Stale) -> None:
    """GET on a connection that the server just gave up is sent again; POST is not, as it may have been served."""
    handle = FakeHandle([("127.0.0.1", stale.port)])
    with httpx.Client(transport=sync_transport(handle)) as client:
        for _ in range(3):
            assert client.get(URL).text == "ok"
        assert stale.requests[b"GET"] == 5
        with pytest.raises(
            (httpx.RemoteProtocolError, httpx.ReadError)
        ):  # FIN or RST: the body may be unread
            client.post(URL, content=b"order")
        assert stale.requests[b"POST"] == 1
    (subchannel,) = handle.subchannels.values()
    assert subchannel.failures == 1
    assert settled(handle)


def test_wrapped_client_balances_what_is_ours_only(backends: Backends) -> None:
    """An existing client and a real Mesh: an alias is balanced, any other URL takes the bare path, unwrap ends it."""
    servers = backends.http(2)
    (other,) = backends.http(1)
    target = "static:///" + ",".join(server.address for server in servers)
    config = load_config({"aliases": {"orders.internal": target}})
    with Mesh(config=config) as mesh, wrap(httpx.Client(), mesh) as client:
        for _ in range(20):
            assert client.get("http://orders.internal/").headers["x-host"] == "orders.internal"
        assert client.get(other.url).headers["x-host"] == other.address
        assert total(servers) == 20
        unwrap(client)
        assert client.get(other.url).status_code == 200
        assert eventually(lambda: not any(server.connections for server in servers))
    assert other.requests == 2


def test_the_way_by_dns_ends_when_discovery_speaks(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller whose own bound is shorter than the common one goes by DNS; what it opened there is given up later."""
    bare, pod = backends.http(2)

    async def addresses(host: str, context: object, timeout: float) -> tuple[str, ...]:
        return (bare.host,)

    monkeypatch.setattr(lookup, "addresses", addresses)
    resolver = ManualResolver("k8s")
    config = load_config({"sync_timeout": 60, "address": {"allow_loopback": True}}, environ={})
    target = f"k8s:///orders.shop:{bare.port}"
    with (
        Mesh(config=config, resolvers={"k8s": resolver}) as mesh,
        httpx.Client(transport=MeshTransport(target, mesh=mesh)) as client,
    ):
        handle = mesh.target(target)
        handle.try_start()
        assert eventually(lambda: handle.balancer.dns_picker is not None)
        reply = client.get(URL, timeout=httpx.Timeout(20, connect=0.5))
        assert (reply.status_code, bare.requests) == (200, 1)
        assert bare.connections
        resolver.endpoints("shop/orders", [pod.address], port=bare.port)
        assert eventually(lambda: handle.state.picker is not None)
        assert eventually(lambda: not bare.connections)
        for _ in range(3):
            client.get(URL)
        assert (bare.requests, pod.requests) == (1, 3)
