"""Interpreter exit with a request pending: through meshlib as with the bare library, the same code, words and haste."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.components.backends import Backends
from tests.components.process import wait_for

ROOT = Path(__file__).resolve().parents[2]

#: Waits for a line before it exits, which the test sends when the request has arrived.
BEGIN = """
import asyncio, sys, threading
import httpx
how, url, target = sys.argv[1:]

def transport(kind):
    if how == "bare":
        return getattr(httpx, kind.replace("Mesh", "HTTP"))()
    import meshlib
    return getattr(meshlib, kind)(target)
"""
PENDING = {
    "sync-daemon-thread": """
client = httpx.Client(transport=transport("MeshTransport"), timeout=None)
threading.Thread(target=client.get, args=(url,), daemon=True).start()
sys.stdin.readline()
sys.exit(7)
""",
    "asyncio-daemon-thread": """
async def main():
    async with httpx.AsyncClient(transport=transport("AsyncMeshTransport"), timeout=None) as client:
        await client.get(url)
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
sys.stdin.readline()
sys.exit(7)
""",
    "asyncio-task": """
async def main():
    client = httpx.AsyncClient(transport=transport("AsyncMeshTransport"), timeout=None)
    task = asyncio.create_task(client.get(url))
    await asyncio.to_thread(sys.stdin.readline)
    sys.exit(7)
asyncio.run(main())
""",
    "asyncio-loop-left-open": """
loop = asyncio.new_event_loop()
client = httpx.AsyncClient(transport=transport("AsyncMeshTransport"), timeout=None)
task = loop.create_task(client.get(url))
loop.run_until_complete(asyncio.sleep(0))
loop.run_until_complete(loop.run_in_executor(None, sys.stdin.readline))
sys.exit(7)
""",
    "response-half-read": """
client = httpx.Client(transport=transport("MeshTransport"), timeout=None)
stream = client.stream("GET", url + "/stream/100000/0.02")
reply = stream.__enter__()
print(next(reply.iter_raw()), flush=True)
sys.stdin.readline()
sys.exit(7)
""",
    "error-in-main": """
client = httpx.Client(transport=transport("MeshTransport"), timeout=None)
threading.Thread(target=client.get, args=(url,), daemon=True).start()
sys.stdin.readline()
raise SystemExit("over")
""",
}


#: What the bare library did, by name.
BARE: dict[str, tuple[int, str, float]] = {}
#: Seconds: far more than a busy machine takes for what the control thread does at the end, less than any timeout.
LATER = 15


def end(script: str, server: Any, how: str) -> tuple[int, str, float]:
    """Exit code, stderr, and how long the exit took, seconds."""
    url = server.url if how == "bare" else "http://orders.shop.svc"
    program = subprocess.Popen(
        [sys.executable, "-c", script, how, url, f"static:///{server.address}"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: server.in_flight == 1 or program.poll() is not None, timeout=60)
        begun = time.monotonic()
        _, errors = program.communicate("\n", timeout=60)
        took = time.monotonic() - begun
    finally:
        program.kill()
        program.wait()
    wait_for(lambda: server.in_flight == 0, timeout=30, what="the connection's end")
    return program.returncode, _without_notice(errors), took


def _without_notice(errors: str) -> str:
    """Asyncio's word about a task that is collected while it waits. The bare library's tasks never are: anyio keeps
    every task that is inside a cancel scope alive in a table of its module."""
    lines = errors.splitlines(keepends=True)
    if len(lines) > 1 and lines[0].startswith("Task was destroyed but it is pending!"):
        del lines[:2]
    return "".join(lines)


@pytest.mark.parametrize("name", list(PENDING))
def test_exit_is_that_of_the_bare_library(backends: Backends, wire: str, name: str) -> None:
    """Same exit code, same stderr, and nothing waits for the request, which is never answered, nor for long."""
    (server,) = backends.http(1)
    server.delay = 0.0 if name == "response-half-read" else float("inf")
    bare = BARE.get(name) or end(BEGIN + PENDING[name], server, "bare")
    BARE[name] = bare  # it has no wires
    assert bare[0] == (1 if name == "error-in-main" else 7)
    ours = end(BEGIN + PENDING[name], server, "mesh")
    assert ours[:2] == bare[:2]
    assert ours[2] < bare[2] + LATER
