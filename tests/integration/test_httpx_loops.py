"""Other ways to run concurrently than threads and asyncio's own loop: trio passes through, uvloop as the policy of a
program, gevent with everything patched.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

import meshlib
from tests.components.backends import Backends
from tests.integration.install_support import URL, installed
from tests.integration.test_run import environ


def test_trio_passes_through(backends: Backends) -> None:
    """Under trio an installed client and a wrapped one do what the bare one does, for names of the cluster too; on
    asyncio the same clients balance."""
    trio = pytest.importorskip("trio")
    one, two = backends.http(2)

    async def outcome(client: httpx.AsyncClient, url: str) -> tuple[Any, ...]:
        try:
            reply = await client.get(url)
        except httpx.TransportError as error:
            return type(error), error.__cause__.__class__
        return reply.status_code, reply.headers["x-host"], reply.headers["x-backend"]

    async def under_trio(client: httpx.AsyncClient) -> list[tuple[Any, ...]]:
        found = [await outcome(client, url) for url in (one.url, f"{one.url}/other", f"{URL}/")]
        stream = client.stream("GET", f"{one.url}/stream/3/0")
        async with stream as reply:
            found.append(tuple([line async for line in reply.aiter_lines()]))
        return found

    async def bare() -> list[tuple[Any, ...]]:
        async with httpx.AsyncClient() as client:
            return await under_trio(client)

    async def through_and_closed(client: httpx.AsyncClient) -> None:
        assert await under_trio(client) == expected
        await client._transport.aclose()  # its connections; the client itself goes on

    async def balanced(client: httpx.AsyncClient) -> set[str]:
        try:
            return {(await outcome(client, f"{URL}/"))[2] for _ in range(2)}
        finally:
            await client.aclose()

    expected = trio.run(bare)
    assert expected[2][0] is httpx.ConnectError
    with installed() as mesh:
        mesh.serve([one, two])
        mesh.known()
        for client in (httpx.AsyncClient(), meshlib.wrap(httpx.AsyncClient(), mesh=mesh.mesh)):
            trio.run(through_and_closed, client)
            assert asyncio.run(balanced(client)) == {one.name, two.name}


def test_a_target_under_trio_is_refused_in_words() -> None:
    """There is no bare path for a transport with a target."""
    trio = pytest.importorskip("trio")

    async def main() -> None:
        transport = meshlib.AsyncMeshTransport("static:///127.0.0.2:80")
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(RuntimeError, match="needs asyncio, no loop of it is running"):
                await client.get("http://x/")

    trio.run(main)


def program(tmp_path: Path, text: str, servers: list[Any]) -> subprocess.CompletedProcess[str]:
    (tmp_path / "app.py").write_text(text)
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env=environ(servers),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_uvloop_as_policy(backends: Backends, tmp_path: Path) -> None:
    """uvloop installed for the whole program: it serves the application's requests, meshlib's control thread keeps
    asyncio's own loop, and a forked child that exits does so cleanly."""
    pytest.importorskip("uvloop")
    servers = backends.http(2)
    done = program(
        tmp_path,
        """
import asyncio, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import uvloop
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
import httpx, meshlib
from meshlib.runtime import process
meshlib.install()
client = httpx.AsyncClient()
async def six():
    replies = await asyncio.gather(*(client.get("http://orders.internal/") for _ in range(6)))
    return type(asyncio.get_running_loop()).__module__, len({reply.text for reply in replies})
print(asyncio.run(six()), type(process._runtime.control.loop).__module__, flush=True)
child = os.fork()
if child == 0:
    print(asyncio.run(six()), flush=True)
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), asyncio.run(six()))
""",
        servers,
    )
    assert (done.returncode, done.stderr) == (0, "")
    balanced = "('uvloop', 2)"
    assert done.stdout.split("\n") == [f"{balanced} asyncio.unix_events", balanced, f"3 {balanced}", ""]


def test_gevent(backends: Backends, tmp_path: Path) -> None:
    """Everything patched: greenlets' requests are balanced and run at the same time, and asyncio's loops work beside
    meshlib's, as they do without it."""
    pytest.importorskip("gevent")
    servers = backends.http(2)
    for server in servers:
        server.delay = 0.2
    done = program(
        tmp_path,
        """
from gevent import monkey
monkey.patch_all()
import asyncio, collections, threading
import gevent, httpx, meshlib
meshlib.install()
client = httpx.Client()
url = "http://orders.internal/"
def count(texts):
    return sorted(collections.Counter(texts).values())
jobs = [gevent.spawn(client.get, url) for _ in range(10)]
gevent.joinall(jobs, raise_error=True)
print(count(job.value.text for job in jobs))
try:
    asyncio.get_running_loop()
except RuntimeError as error:
    print(error)
async def four():
    async with httpx.AsyncClient() as client:
        replies = await asyncio.gather(*(client.get(url) for _ in range(4)))
        await asyncio.sleep(0.1)  # long enough for meshlib's loop to wake up beside this one
        return asyncio.get_running_loop() is asyncio.get_event_loop(), count(r.text for r in replies)
print(asyncio.run(four()))
with meshlib.Mesh().target("static:///127.0.0.9:1").pick(timeout=5) as endpoint:
    print(endpoint.address)
""",
        servers,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == ["[5, 5]", "no running event loop", "(True, [2, 2])", "127.0.0.9", ""]
    assert max(server.accepted for server in servers) >= 5
