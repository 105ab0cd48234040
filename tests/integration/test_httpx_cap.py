"""The total cap of a client: over each wire, over both at once, and as configured."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx.faults import local_errno
from meshlib.clients.httpx.transport import AsyncMeshTransport, MeshTransport
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.components.backends import Backends, HttpBackend

URL = "http://orders.shop.svc"


def target(servers: list[HttpBackend]) -> str:
    return "static:///" + ",".join(server.address for server in servers)


def capped(cap: int, wire: str) -> Mesh:
    settings = {"total_connections": cap, "wire": wire, "picker": "round_robin"}
    return Mesh(config=load_config(settings, environ={}))


def failures(mesh: Mesh) -> int:
    return sum(endpoint["failures"] for endpoint in mesh.handles[0].status()["endpoints"])


def says_why(error: httpx.ConnectError) -> bool:
    return local_errno(error) == errno.EMFILE and "total_connections = 2" in str(error)


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_idle_connections_make_room_and_the_error_says_why(
    backends: Backends, wire: str, http2: bool
) -> None:
    """Three endpoints, two connections in all: idle ones give way; when both are busy nobody is blamed."""
    servers = backends.http(3, tls="orders.shop.svc")
    url = "https://orders.shop.svc"
    with capped(2, wire) as mesh:
        options: Any = {"mesh": mesh, "verify": backends.client_context(), "http2": http2}
        with httpx.Client(transport=MeshTransport(target(servers), **options)) as client:
            assert [client.get(url).status_code for _ in range(9)] == [200] * 9
            engine = client._transport._pool._engine  # type: ignore[attr-defined]
            assert engine.allowance.used == 2
            with client.stream("GET", f"{url}/stream/50/0.01"), client.stream("GET", f"{url}/stream/50/0.01"):
                with pytest.raises(httpx.ConnectError, match="2 connections in use") as caught:
                    client.get(url)
                assert says_why(caught.value)
            assert client.get(url).status_code == 200
        assert engine.allowance.used == 0

        async def main() -> None:
            transport = AsyncMeshTransport(target(servers), **options)
            async with httpx.AsyncClient(transport=transport) as client:
                assert [(await client.get(url)).status_code for _ in range(9)] == [200] * 9
                engine = next(iter(transport._pool._engines.values()))
                assert engine.allowance.used == 2
                async with client.stream("GET", f"{url}/stream/50/0.01"):
                    async with client.stream("GET", f"{url}/stream/50/0.01"):
                        with pytest.raises(httpx.ConnectError) as caught:
                            await client.get(url)
                        assert says_why(caught.value)
                assert (await client.get(url)).status_code == 200
            assert engine.allowance.used == 0

        asyncio.run(main())
        assert failures(mesh) == 0


def test_both_wires_of_a_client_share_the_cap(backends: Backends) -> None:
    """Connections of the fast wire make room for httpcore's (a traced request) and the other way round."""
    servers = backends.http(3)
    traced: Any = {"trace": lambda name, info: None}

    async def quiet(name: str, info: Any) -> None:
        return None

    with capped(2, "fast") as mesh:
        with httpx.Client(transport=MeshTransport(target(servers), mesh=mesh)) as client:
            for turn in range(12):
                assert client.get(URL, extensions=traced if turn % 2 else None).status_code == 200
                assert client._transport._pool._engine.allowance.used <= 2  # type: ignore[attr-defined]

        async def main() -> None:
            transport = AsyncMeshTransport(target(servers), mesh=mesh)
            async with httpx.AsyncClient(transport=transport) as client:
                for turn in range(12):
                    extensions: Any = {"trace": quiet} if turn % 2 else None
                    assert (await client.get(URL, extensions=extensions)).status_code == 200
                    assert next(iter(transport._pool._engines.values())).allowance.used <= 2

        asyncio.run(main())
    assert sum(server.accepted for server in servers) >= 4
