"""install() with very many endpoints, and with transports of the application's own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from typing import Any

import httpx
import httpx2
import pytest

from tests.components.backends import Backends
from tests.components.http_backend import HttpBackend, LoopThread
from tests.components.process import free_port
from tests.integration.grpc_support import eventually
from tests.integration.install_support import URL, installed

CAP = 40


@pytest.mark.parametrize("wire", ["fast", "httpcore"])
def test_ten_thousand_endpoints(wire: str) -> None:
    """150 requests to 150 of them: connected when needed, descriptors bounded by the cap, all given back."""
    loop = LoopThread()
    server = HttpBackend(loop, "all", "0.0.0.0", free_port("127.0.0.1"), None)
    server.start()
    assert server._server is not None
    # every loopback address, and nothing else
    server._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    try:
        with installed(wire=wire, total_connections=CAP) as mesh, httpx.Client() as client:
            addresses = [
                f"127.{1 + i // 65000}.{i // 250 % 250}.{i % 250 + 1}:{server.port}" for i in range(10_000)
            ]
            mesh.serve(addresses)
            mesh.known()
            before, most = len(os.listdir("/proc/self/fd")), 0
            for _ in range(150):
                assert client.get(URL).status_code == 200
                most = max(most, len(os.listdir("/proc/self/fd")) - before)
        assert server.accepted == 150  # round robin: no endpoint came twice
        assert most <= 2 * CAP + 5  # the server's ends are here, too
        eventually(lambda: server.connections == 0)
    finally:
        server.stop()
        loop.close()


@pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda library: library.__name__)
def test_subclasses_of_the_transports(backends: Backends, library: Any) -> None:
    """A transport class of the application that overrides what httpx calls, made before and after: called once per
    request with the logical URL, and what it does about requests and replies counts."""
    servers = backends.http(2)
    seen: list[str] = []

    class Own(library.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            seen.append(str(request.url))
            request.headers["x-own"] = "1"
            reply = super().handle_request(request)
            reply.headers["x-seen"] = "1"
            return reply

    class Later(library.AsyncHTTPTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            seen.append(str(request.url))
            return await super().handle_async_request(request)

    with library.Client(transport=Own()) as before, installed() as mesh:
        mesh.serve(servers)
        mesh.known()
        with library.Client(transport=Own(retries=1), mounts={"https://": Own()}) as after:
            for client in (before, after):
                replies = [client.get(f"{URL}/a") for _ in range(4)]
                assert {reply.text for reply in replies} == {server.name for server in servers}
                assert all(reply.headers["x-seen"] == "1" for reply in replies)

        async def main() -> None:
            async with library.AsyncClient(transport=Later()) as client:
                assert {(await client.get(f"{URL}/a")).text for _ in range(4)} == {s.name for s in servers}

        asyncio.run(main())
    assert seen == [f"{URL}/a"] * 12
    own = [dict(got.headers).get("x-own") for server in servers for got in server.received]
    assert own.count("1") == 8


#: Visits every endpoint with several clients at a time, a few requests each in turn.
CROWD = """
import asyncio, json, os, resource, sys
import httpx
from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh

port, endpoints = int(sys.argv[1]), 600
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
mesh = Mesh(config=load_config({"picker": "round_robin", "address": {"allow_loopback": True}}))
target = "static:///" + ",".join(f"127.1.{i // 250}.{i % 250 + 1}:{port}" for i in range(endpoints))
url, wide = "http://orders.shop.svc", httpx.Limits(keepalive_expiry=600)
clients = [httpx.Client(transport=MeshTransport(target, mesh=mesh, limits=wide)) for _ in range(3)]
found, most = set(), 0

async def main():
    global most
    transports = [AsyncMeshTransport(target, mesh=mesh, limits=wide) for _ in range(3)]
    others = [httpx.AsyncClient(transport=transport) for transport in transports]
    for turn in range(100):
        for client in clients:
            found.add(client.get(url).status_code)
        found.update(reply.status_code for reply in await asyncio.gather(*(each.get(url) for each in others)))
        most = max(most, len(os.listdir("/proc/self/fd")))
    for client in others:
        await client.aclose()

before = len(os.listdir("/proc/self/fd"))
asyncio.run(main())
for client in clients:
    client.close()
mesh.close()
print(json.dumps([sorted(found), most - before]))
"""


@pytest.mark.parametrize("wire", ["fast", "httpcore"])
def test_many_clients_share_the_descriptors(wire: str) -> None:
    """Six clients of a process with 256 descriptors, none of which has its own cap: idle connections give way."""
    loop = LoopThread()
    server = HttpBackend(loop, "all", "0.0.0.0", free_port("127.0.0.1"), None)
    server.start()
    assert server._server is not None
    server._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    try:
        done = subprocess.run(
            [sys.executable, "-c", CROWD, str(server.port)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env={**os.environ, "MESHLIB_WIRE": wire},
        )
        assert done.returncode == 0, done.stderr
        statuses, most = json.loads(done.stdout)
        assert statuses == [200]
        assert server.accepted == 600
        assert 150 < most <= 256 * 3 // 4 + 6 + 12  # one more for each client; pipes and pollers of the loops
    finally:
        server.stop()
        loop.close()
