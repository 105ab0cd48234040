"""WebSockets over httpx (httpx-ws, which speaks over ``extensions["network_stream"]`` after a 101), through meshlib's
transports on each wire, to real websockets servers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.components.backends import Backends
from tests.components.http_backend import LoopThread
from tests.components.process import free_port, wait_for

httpx_ws: Any = pytest.importorskip("httpx_ws")
websockets: Any = pytest.importorskip("websockets.asyncio.server")

pytestmark = pytest.mark.usefixtures("wire")

#: More than a socket buffer and than one read: such a message comes in many pieces.
LARGE = "m" * 300_000


class Echo:
    """A real WebSocket server on one address: says its name, then what it is told; ``bye`` has it close with 4001."""

    def __init__(self, loop: LoopThread, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.host, self.address = host, f"{host}:{port}"
        self.hosts: list[str] = []  #: the Host of each upgrade
        self.open = 0

        async def start() -> Any:
            return await websockets.serve(self._serve, host, port, ssl=tls, max_size=None, ping_interval=None)

        self._loop = loop
        self._server = loop.run(start())

    async def _serve(self, connection: Any) -> None:
        self.hosts.append(connection.request.headers["host"])
        self.open += 1
        try:
            await connection.send(self.host)  # at once: it may come in one piece with the 101
            async for message in connection:
                if message == "bye":
                    await connection.close(4001, "as you like")
                await connection.send(message)
        except websockets_closed():
            pass
        finally:
            self.open -= 1

    def stop(self) -> None:
        async def close() -> None:
            self._server.close()
            await self._server.wait_closed()

        self._loop.run(close())


def websockets_closed() -> type[Exception]:
    from websockets.exceptions import ConnectionClosed

    return ConnectionClosed


@pytest.fixture(params=["ws", "wss"])
def echoes(request: pytest.FixtureRequest, backends: Backends) -> Iterator[tuple[str, list[Echo], Any]]:
    """Two servers, the URL of their Service, and what the client verifies."""
    secure = request.param == "wss"
    context = backends._server_context("chat.shop.svc") if secure else None
    if context is not None:
        context.set_alpn_protocols(["http/1.1"])
    loop = LoopThread()
    hosts = ["127.0.0.12", "127.0.0.13"]
    port = free_port(*hosts)
    servers = [Echo(loop, host, port, context) for host in hosts]
    verify = backends.client_context() if secure else False
    try:
        yield ("https" if secure else "http") + "://chat.shop.svc/talk", servers, verify
    finally:
        for server in servers:
            server.stop()
        loop.close()


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh(config=load_config({"picker": "round_robin"})) as made:
        yield made


def target(servers: list[Echo]) -> str:
    return "static:///" + ",".join(server.address for server in servers)


def counted(mesh: Mesh) -> list[int]:
    return [one["inflight"] for handle in mesh.handles for one in handle.status()["endpoints"]]


def test_threads(echoes: tuple[str, list[Echo], Any], mesh: Mesh) -> None:
    """Two conversations go to two endpoints under the logical name, small and large messages, both ways of ending; each
    is in flight until it ends, and its connection is not used again."""
    url, servers, verify = echoes
    with httpx.Client(transport=MeshTransport(target(servers), mesh=mesh, verify=verify)) as client:
        with httpx_ws.connect_ws(url, client, keepalive_ping_interval_seconds=None) as one:
            with httpx_ws.connect_ws(url, client, keepalive_ping_interval_seconds=None) as two:
                assert {one.receive_text(), two.receive_text()} == {server.host for server in servers}
                assert counted(mesh) == [1, 1]
                for message in ("hello", LARGE, ""):
                    one.send_text(message)
                    assert one.receive_text() == message
                two.send_bytes(b"\x00\xff")
                assert two.receive_bytes() == b"\x00\xff"
                two.send_text("bye")
                with pytest.raises(httpx_ws.WebSocketDisconnect) as closed:
                    two.receive_text(timeout=20)
                assert (closed.value.code, closed.value.reason) == (4001, "as you like")
        wait_for(lambda: counted(mesh) == [0, 0])
        wait_for(lambda: not any(server.open for server in servers))
        with httpx_ws.connect_ws(url, client, keepalive_ping_interval_seconds=None) as three:
            three.receive_text()
    assert [host for server in servers for host in server.hosts] == ["chat.shop.svc"] * 3


def test_asyncio(echoes: tuple[str, list[Echo], Any], mesh: Mesh) -> None:
    """The same on a loop, and a conversation whose task is cancelled ends at the server too."""
    url, servers, verify = echoes

    async def main() -> None:
        transport = AsyncMeshTransport(target(servers), mesh=mesh, verify=verify)
        async with httpx.AsyncClient(transport=transport) as client:
            options = {"keepalive_ping_interval_seconds": None}
            async with httpx_ws.aconnect_ws(url, client, **options) as one:
                async with httpx_ws.aconnect_ws(url, client, **options) as two:
                    said = {await one.receive_text(), await two.receive_text()}
                    assert said == {server.host for server in servers}
                    assert counted(mesh) == [1, 1]
                    for message in ("hello", LARGE, ""):
                        await one.send_text(message)
                        assert await one.receive_text() == message
                    await two.send_bytes(b"\x00\xff")
                    assert await two.receive_bytes() == b"\x00\xff"
                    await two.send_text("bye")
                    with pytest.raises(httpx_ws.WebSocketDisconnect) as closed:
                        await two.receive_text(timeout=20)
                    assert (closed.value.code, closed.value.reason) == (4001, "as you like")

            listening = asyncio.Event()

            async def listen() -> None:
                async with httpx_ws.aconnect_ws(url, client, **options) as ws:
                    await ws.receive_text()
                    listening.set()
                    await ws.receive_text()

            task = asyncio.create_task(listen())
            await listening.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while any(counted(mesh)) or any(server.open for server in servers):
                await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert [host for server in servers for host in server.hosts] == ["chat.shop.svc"] * 3


@pytest.mark.parametrize("colour", ["threads", "asyncio"])
def test_a_refused_upgrade_is_an_ordinary_reply(backends: Backends, mesh: Mesh, colour: str) -> None:
    """A server that answers 200 to the proposal: httpx-ws's own exception, and the client goes on."""
    (server,) = backends.http(1)
    address = f"static:///{server.address}"
    url = "http://chat.shop.svc/talk"

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(address, mesh=mesh)) as client:
            with pytest.raises(httpx_ws.WebSocketUpgradeError):
                async with httpx_ws.aconnect_ws(url, client):
                    pass
            assert (await client.get(url)).status_code == 200

    if colour == "asyncio":
        asyncio.run(main())
    else:
        with httpx.Client(transport=MeshTransport(address, mesh=mesh)) as client:
            with pytest.raises(httpx_ws.WebSocketUpgradeError):
                with httpx_ws.connect_ws(url, client):
                    pass
            assert client.get(url).status_code == 200
    assert counted(mesh) == [0]
