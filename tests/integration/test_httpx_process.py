"""Running out of descriptors, in a process of its own. Fork: test_httpx_fork.py."""

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


def test_out_of_descriptors_blames_nobody(backends: Backends) -> None:
    """EMFILE: a clear ConnectError in both colours, no failure counted against the endpoint, and life goes on."""
    (server,) = backends.http(1)
    result = run(EXHAUST, f"static:///{server.address}", "http://orders.shop.svc")
    assert result == {"said": ["ConnectError", "ConnectError"], "after": 200, "failures": 0, "inflight": 0}
