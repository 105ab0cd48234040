"""A process that is out of descriptors: the error says so, no endpoint pays for it, and life goes on afterwards.

In a child process with a small limit, all of whose descriptors are taken. ``test_httpx_process`` has the plain case.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.components.backends import Backends

ROOT = Path(__file__).resolve().parents[2]

COMMON = """
import asyncio, json, os, resource, sys
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh

mesh = Mesh(config=load_config({"picker": "round_robin"}))
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

class Exhausted:
    def __enter__(self):
        self.taken = []
        try:
            while True:
                self.taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
    def __exit__(self, *_):
        for number in self.taken:
            os.close(number)

def counted():
    endpoints = mesh.handles[0].status()["endpoints"]
    return [sum(e[key] for e in endpoints) for key in ("failures", "inflight")] + [mesh.handles[0].status()["way"]]
"""

HTTP = (
    COMMON
    + """
import httpx, ssl
from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport

target, url, ca, http2 = sys.argv[1:]
options = {"mesh": mesh, "http2": bool(http2), "verify": ssl.create_default_context(cadata=ca) if ca else False}
close = {} if http2 else {"connection": "close"}
said, after = [], []

def client():
    return httpx.Client(transport=MeshTransport(target, **options))

def aio_client():
    return httpx.AsyncClient(transport=AsyncMeshTransport(target, **options))

with client() as first:  # modules, the control thread
    first.get(url)
with client() as client:
    with Exhausted():
        for _ in range(3):
            try:
                client.get(url, headers=close)
            except httpx.ConnectError as error:
                said.append(str(error))
    after += [client.get(url, headers=close).status_code for _ in range(4)]

async def main():
    async with aio_client() as first:
        await first.get(url)
    async with aio_client() as client:
        with Exhausted():
            calls = [client.get(url, headers=close) for _ in range(3)]
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, httpx.ConnectError), error
                chain = []
                while error is not None:
                    chain.append(str(error))
                    error = error.__cause__ or error.__context__
                said.append(" ".join(chain))
        after.extend([(await client.get(url, headers=close)).status_code for _ in range(4)])
asyncio.run(main())
print(json.dumps([["Too many open files" in one for one in said], after, counted()]))
mesh.close()
"""
)

GRPC = (
    COMMON
    + """
import grpc
import meshlib.grpc, meshlib.grpc.aio

METHOD, said, after = "/test.Echo/UnaryUnary", [], []
used = meshlib.grpc.insecure_channel(sys.argv[1], mesh=mesh)
used.unary_unary(METHOD)(b"x", timeout=10)  # grpc has what it needs for itself
channel = meshlib.grpc.insecure_channel(sys.argv[1], mesh=mesh)
with Exhausted():
    try:
        channel.unary_unary(METHOD)(b"x", timeout=5)
    except grpc.RpcError as error:
        said.append(error.details())
    said.append(channel.unary_unary(METHOD).future(b"x", timeout=5).exception(10).details())
after.append(channel.unary_unary(METHOD)(b"x", timeout=10).endswith(b":x"))

async def main():
    async with meshlib.grpc.aio.insecure_channel(sys.argv[1], mesh=mesh) as used:
        await used.unary_unary(METHOD)(b"x", timeout=10)
        async with meshlib.grpc.aio.insecure_channel(sys.argv[1], mesh=mesh, options=[("grpc.other", 1)]) as channel:
            with Exhausted():
                try:
                    await channel.unary_unary(METHOD)(b"x", timeout=5)
                except grpc.RpcError as error:
                    said.append(error.details())
            after.append((await channel.unary_unary(METHOD)(b"x", timeout=10)).endswith(b":x"))
asyncio.run(main())
print(json.dumps([["Too many open files" in one for one in said], after, counted()]))
used.close(), channel.close(), mesh.close()
"""
)

FIRST = (
    COMMON
    + """
import grpc, httpx
import meshlib.grpc
from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport

kind, target = sys.argv[1:]
loop = asyncio.new_event_loop()
if kind == "aio":
    client = httpx.AsyncClient(transport=AsyncMeshTransport(target, mesh=mesh))
elif kind == "sync":
    client = httpx.Client(transport=MeshTransport(target, mesh=mesh))
else:
    channel = meshlib.grpc.insecure_channel(target, mesh=mesh)

def get():
    if kind == "grpc":
        return channel.unary_unary("/test.Echo/UnaryUnary")(b"x", timeout=10) and 200
    if kind == "aio":
        return loop.run_until_complete(client.get("http://orders.shop.svc")).status_code
    return client.get("http://orders.shop.svc").status_code

said = ""
with Exhausted():
    try:
        get()
    except (httpx.ConnectError, grpc.RpcError) as error:
        said = str(error)
print(json.dumps(["open files" in said, get()]))
sys.stdout.flush()
os._exit(0)
"""
)


def run(script: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["http", "https", "h2"])
def test_httpx(backends: Backends, wire: str, kind: str) -> None:
    """Sync and asyncio, several endpoints and requests: ConnectError naming the reason, no failure, no fall-back."""
    tls = kind != "http"
    servers = backends.http(3, tls="orders.shop.svc" if tls else None)
    target = "static:///" + ",".join(server.address for server in servers)
    url = f"http{'s' if tls else ''}://orders.shop.svc"
    said, after, counted = run(
        HTTP, target, url, backends.ca_pem.decode() if tls else "", "yes" if kind == "h2" else ""
    )
    assert (said, after, counted) == ([True] * 6, [200] * 8, [0, 0, "pods"])


def test_grpc(backends: Backends) -> None:
    """The same for grpc, as far as its core tells: the details name the reason."""
    servers = backends.grpc(3)
    said, after, counted = run(GRPC, "static:///" + ",".join(server.address for server in servers))
    assert (said, after, counted) == ([True] * 3, [True] * 2, [0, 0, "pods"])


@pytest.mark.parametrize("kind", ["sync", "aio", "grpc"])
def test_a_first_call(backends: Backends, kind: str) -> None:
    """The control thread needs descriptors as well: the same error, and the next call starts it."""
    (server,) = backends.grpc(1) if kind == "grpc" else backends.http(1)
    assert run(FIRST, kind, f"static:///{server.address}") == [True, 200]
