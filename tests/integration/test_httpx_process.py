"""Process models: fork with both sides continuing, and running out of descriptors. Each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.components.backends import Backends

pytestmark = pytest.mark.usefixtures("wire")

ROOT = Path(__file__).resolve().parents[2]

#: Parent and child echo distinct bodies over clients that were used before the fork.
FORK = """
import asyncio, json, os, ssl, sys, threading
import httpx
from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport
from meshlib.runtime.mesh import Mesh

target, url, ca = sys.argv[1:]
verify = ssl.create_default_context(cadata=ca) if ca else False
mesh = Mesh()
client = httpx.Client(transport=MeshTransport(target, mesh=mesh, verify=verify, http2=bool(ca)))
aclient = httpx.AsyncClient(transport=AsyncMeshTransport(target, mesh=mesh, verify=verify))

def sync(who, count):
    wrong = 0
    for number in range(count):
        body = f"{who}/{number}".encode()
        wrong += client.post(url + "/echo", content=body).content != body
    return wrong

async def several(who, count):
    async def one(number):
        body = f"{who}/async/{number}".encode()
        return (await aclient.post(url + "/echo", content=body)).content != body
    wrong = 0
    for start in range(0, count, 10):
        wrong += sum(await asyncio.gather(*(one(n) for n in range(start, start + 10))))
    return wrong

def both(who):
    return sync(who, 100) + asyncio.run(several(who, 50))

loop = asyncio.new_event_loop()
assert sync("before", 10) == 0
assert loop.run_until_complete(several("before", 10)) == 0
read, write = os.pipe()
child = os.fork()
if child == 0:
    try:
        result = {"wrong": both("child")}
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(both("grandchild"))
        client.close()
        asyncio.run(aclient.aclose())
        result["grandchild"] = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
    except BaseException as error:
        result = {"error": repr(error)}
    os.write(write, json.dumps(result).encode())
    os._exit(0)
os.close(write)
mine = {"wrong": sync("parent", 100) + loop.run_until_complete(several("parent", 50))}
with os.fdopen(read) as pipe:
    theirs = json.loads(pipe.read())
os.waitpid(child, 0)
mine["afterwards"] = sync("later", 10) + loop.run_until_complete(several("later", 10))
loop.run_until_complete(aclient.aclose())
client.close()
mesh.close()
print(json.dumps({"parent": mine, "child": theirs}))
"""

#: Takes every descriptor there is, then asks for a new connection.
EXHAUST = """
import asyncio, json, os, resource, sys
import httpx
from meshlib.clients.httpx import AsyncMeshTransport, MeshTransport
from meshlib.runtime.mesh import Mesh

target, url = sys.argv[1:]
mesh = Mesh()
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
client = httpx.Client(transport=MeshTransport(target, mesh=mesh))
assert client.get(url, headers={"connection": "close"}).status_code == 200

def exhausted(call):
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        call()
    except httpx.ConnectError as error:
        return type(error).__name__
    finally:
        for number in taken:
            os.close(number)

said = [exhausted(lambda: client.get(url))]
loop = asyncio.new_event_loop()
aclient = httpx.AsyncClient(transport=AsyncMeshTransport(target, mesh=mesh))
loop.run_until_complete(aclient.get(url, headers={"connection": "close"}))
said.append(exhausted(lambda: loop.run_until_complete(aclient.get(url))))
after = client.get(url).status_code
endpoints = mesh.handles[0].status()["endpoints"]
loop.run_until_complete(aclient.aclose())
loop.close()
client.close()
mesh.close()
print(json.dumps({
    "said": said, "after": after,
    "failures": sum(e["failures"] for e in endpoints), "inflight": sum(e["inflight"] for e in endpoints),
}))
"""


def run(script: str, *arguments: str) -> Any:
    # Python 3.12 and later warn about fork with threads; that it works all the same is what is shown here
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_fork_after_use_mixes_nothing_up(backends: Backends, tls: bool) -> None:
    """Parent, child and grandchild go on with used clients; a child closes its own: no wrong body, no error."""
    servers = backends.http(3, tls="orders.shop.svc" if tls else None)
    target = "static:///" + ",".join(server.address for server in servers)
    ca = backends.ca_pem.decode() if tls else ""
    result = run(FORK, target, f"{'https' if tls else 'http'}://orders.shop.svc", ca)
    assert result == {"parent": {"wrong": 0, "afterwards": 0}, "child": {"wrong": 0, "grandchild": 0}}
    bodies = [got.body for server in servers for got in server.received]
    assert len(bodies) == len(set(bodies)) == 20 + 3 * 150 + 20


def test_out_of_descriptors_blames_nobody(backends: Backends) -> None:
    """EMFILE: a clear ConnectError in both colours, no failure counted against the endpoint, and life goes on."""
    (server,) = backends.http(1)
    result = run(EXHAUST, f"static:///{server.address}", "http://orders.shop.svc")
    assert result == {"said": ["ConnectError", "ConnectError"], "after": 200, "failures": 0, "inflight": 0}
