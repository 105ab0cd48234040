"""install() with very many endpoints, and with transports of the application's own."""

from __future__ import annotations

import asyncio
import os
import socket
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
