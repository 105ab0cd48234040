"""Sentry's patching of httpx (it replaces `send` on the clients) and install(), in either order.

In a process of its own: Sentry cannot be taken off again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.components.backends import Backends
from tests.integration.test_run import environ

PROGRAM = """
import asyncio, json, sys
import httpx, meshlib, sentry_sdk
from sentry_sdk.integrations.httpx import HttpxIntegration
from sentry_sdk.transport import Transport

spans = []

class Kept(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            spans.extend(span["description"] for span in item.payload.json.get("spans", []))

def observe():
    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Kept, traces_sample_rate=1.0,
        default_integrations=False, auto_enabling_integrations=False, integrations=[HttpxIntegration()])

for step in (observe, meshlib.install) if sys.argv[1] == "sentry" else (meshlib.install, observe):
    step()

async def later():
    async with httpx.AsyncClient() as client:
        return [(await client.get("http://orders.internal/b")).text for _ in range(2)]

with sentry_sdk.start_transaction(name="test"):
    with httpx.Client() as client:
        names = [client.get("http://orders.internal/a").text for _ in range(2)]
    names += asyncio.run(later())
sentry_sdk.flush()
print(json.dumps([names, spans]))
"""


@pytest.mark.parametrize("first", ["sentry", "meshlib"])
def test_sentry(backends: Backends, tmp_path: Path, first: str) -> None:
    """One span per request with the name that was typed, the trace goes on, and requests are balanced."""
    servers = backends.http(2)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, first],
        env=environ(servers),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    names, spans = json.loads(done.stdout)
    assert set(names) == {server.name for server in servers}
    assert spans == ["GET http://orders.internal/a"] * 2 + ["GET http://orders.internal/b"] * 2
    assert all("sentry-trace" in dict(got.headers) for server in servers for got in server.received)
