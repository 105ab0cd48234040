"""The agent's pages over real sockets: probes, scrapes, health ports, and what a hostile client gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable

import httpx
import pytest

from meshlib.agent.desired import HealthPort
from meshlib.agent.ops import pages
from meshlib.agent.ops.health import Vitals, healthz, livez, readyz
from meshlib.agent.ops.health_ports import EVERYWHERE, HealthPorts
from meshlib.agent.ops.pages import Page, PageServer
from meshlib.model.service import ServiceKey

KEY = ServiceKey("shop", "orders")


def site(path: str) -> Page | None:
    return Page(200, b"fine\n") if path == "/ok" else None


def serve(test: Callable[[PageServer, str, int], Awaitable[None]]) -> None:
    async def main() -> None:
        server = PageServer(site)
        host, port = await server.start("127.0.0.1", 0)
        try:
            await test(server, host, port)
        finally:
            await server.close()

    asyncio.run(main())


def test_pages() -> None:
    """GET and HEAD of a page, with a query; an unknown page; another method."""

    async def test(server: PageServer, host: str, port: int) -> None:
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            reply = await client.get("/ok?verbose=1")
            assert (reply.status_code, reply.text) == (200, "fine\n")
            assert reply.headers["x-content-type-options"] == "nosniff"
            head = await client.head("/ok")
            assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "5")
            assert (await client.get("/other")).status_code == 404
            assert (await client.post("/ok", content=b"x")).status_code == 405

    serve(test)


@pytest.mark.parametrize(
    "junk",
    [b"\x16\x03\x01\x02\x00", b"GET /ok HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"x" * 9000, b""],
)
def test_junk_is_answered_and_ended(junk: bytes) -> None:
    """What is no request gets 400, in one bounded read, and the next client is served."""

    async def test(server: PageServer, host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(junk)
        writer.write_eof()
        reply = await reader.read()
        assert reply.startswith(b"HTTP/1.1 400 ")
        writer.close()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://{host}:{port}/ok")).status_code == 200

    serve(test)


def test_a_client_that_says_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request ends by itself, and does not hold up the end of the server."""
    monkeypatch.setattr(pages, "MAX_SECONDS", 0.05)

    async def test(server: PageServer, host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        with contextlib.suppress(ConnectionResetError):  # an end in order is as good
            assert await reader.read() == b""
        writer.close()

    serve(test)


def test_the_server_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections beyond the bound are closed; those within go on."""
    monkeypatch.setattr(pages, "MAX_CONNECTIONS", 2)

    async def test(server: PageServer, host: str, port: int) -> None:
        held = [await asyncio.open_connection(host, port) for _ in range(2)]
        async with asyncio.timeout(5):
            while len(server._connections) < 2:
                await asyncio.sleep(0)
        with pytest.raises(httpx.TransportError):
            async with httpx.AsyncClient() as client:
                await client.get(f"http://{host}:{port}/ok")
        for reader, writer in held:
            writer.write(b"GET /ok HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()

    serve(test)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.acceptance(91, 92, 93)
def test_health_ports() -> None:
    """200 with local endpoints, 503 without or when the agent is not well; changed, removed; a port that is taken
    is told and tried again, and the others are served."""

    async def main() -> None:
        well = [True]
        problems: list[HealthPort] = []
        ports = HealthPorts(lambda: well[0], lambda port, host, error: problems.append(port))
        here = ("127.0.0.1",)
        first, second = free_port(), free_port()
        async with httpx.AsyncClient() as client:

            async def ask(port: int) -> httpx.Response:
                return await client.get(f"http://127.0.0.1:{port}/any/path")

            await ports.want({KEY: HealthPort(KEY, first, 2)}, here)
            reply = await ask(first)
            assert reply.status_code == 200
            assert reply.headers["x-load-balancing-endpoint-weight"] == "2"
            assert reply.json() == {
                "service": {"namespace": "shop", "name": "orders"},
                "localEndpoints": 2,
                "serviceProxyHealthy": True,
            }
            well[0] = False
            assert (await ask(first)).status_code == 503
            well[0] = True
            await ports.want({KEY: HealthPort(KEY, first, 0)}, here)
            reply = await ask(first)
            assert (reply.status_code, json.loads(reply.text)["localEndpoints"]) == (503, 0)
            other = ServiceKey("shop", "payments")
            with socket.create_server(("127.0.0.1", second)):
                both = {KEY: HealthPort(KEY, second, 1), other: HealthPort(other, first, 1)}
                for _ in range(3):
                    await ports.want(both, here)
                assert [port.port for port in problems] == [second]  # told once
                assert (await ask(first)).json()["service"]["name"] == "payments"
            await ports.want({KEY: HealthPort(KEY, second, 1)}, here)
            assert (await ask(second)).status_code == 200
            with pytest.raises(httpx.ConnectError):
                await ask(first)
            await ports.close()
            with pytest.raises(httpx.ConnectError):
                await ask(second)

    asyncio.run(main())


@pytest.mark.acceptance(91)
def test_health_ports_on_every_address() -> None:
    """Both families, each for itself: where one address cannot be had the other is served; addresses come and go."""

    async def main() -> None:
        problems: list[str] = []
        ports = HealthPorts(lambda: True, lambda port, host, error: problems.append(host))
        number = free_port()
        wanted = {KEY: HealthPort(KEY, number, 1)}
        async with httpx.AsyncClient() as client:

            async def answers(host: str) -> bool:
                try:
                    return (await client.get(f"http://{host}:{number}/")).status_code == 200
                except httpx.ConnectError:
                    return False

            try:
                await ports.want(wanted, (EVERYWHERE[4], EVERYWHERE[6]))
                assert (await answers("127.0.0.1"), await answers("[::1]")) == (True, True)
                # No host has an address of the documentation's.
                await ports.want(wanted, ("192.0.2.1", "::1"))
                assert (problems, await answers("[::1]")) == (["192.0.2.1"], True)
                assert not await answers("127.0.0.1")
                await ports.want(wanted, ("127.0.0.1",))
                assert (await answers("127.0.0.1"), await answers("[::1]")) == (True, False)
            finally:
                await ports.close()

    asyncio.run(main())


@pytest.mark.acceptance(94)
def test_health() -> None:
    """Well before the first change; a change that waits too long is not; a leaving node is alive and unhealthy; ready
    once everything was in the kernel. The API server is not asked about anywhere."""
    fresh = Vitals(now=1000.0, sync_period=30.0)
    assert (livez(fresh).ok, healthz(fresh).ok, readyz(fresh).ok) == (True, True, False)
    waiting = Vitals(now=1000.0, sync_period=30.0, pending_since=941.0, synced=True)
    assert (livez(waiting).ok, readyz(waiting).ok) == (True, True)
    stuck = Vitals(now=1000.0, sync_period=30.0, pending_since=939.0, synced=True)
    assert (livez(stuck).ok, healthz(stuck).ok) == (False, False)
    # A kernel (or a programmer) that does not answer: what came since then is in no figure.
    working = Vitals(now=1000.0, sync_period=30.0, synced=True, working_since=850.0)
    assert (livez(working).ok, healthz(working).ok) == (True, True)
    hanging = Vitals(now=1000.0, sync_period=30.0, synced=True, working_since=800.0)
    assert (livez(hanging).ok, healthz(hanging).ok) == (False, False)
    paused = Vitals(now=1000.0, sync_period=30.0, pending_since=0.0, synced=True, paused=True)
    assert livez(paused).ok
    leaving = Vitals(now=1000.0, sync_period=30.0, synced=True, leaving=True)
    assert (livez(leaving).ok, healthz(leaving).ok) == (True, False)
