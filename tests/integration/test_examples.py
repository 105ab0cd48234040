"""What users copy works as it is written."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.components.backends import Backends

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_httpx_quickstart() -> None:
    """It ends by itself, all requests are answered, and after a death by the two that live."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "httpx_quickstart.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()[1:]
    for line, servers in ((before, 3), (after, 2)):
        counts = [int(count) for count in re.findall(r": (\d+)[,}]", line)]
        assert sum(counts) == 300
        assert len(counts) <= servers


def test_grpc_quickstart() -> None:
    """All calls are answered, blocking and with asyncio, by more than one; after a death by those that live."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "grpc_quickstart.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    answered = {line[:8].strip(): ast.literal_eval(line[9:]) for line in done.stdout.splitlines()[1:]}
    assert answered.keys() == {"blocking", "asyncio", "one down"}
    assert {sum(counts.values()) for counts in answered.values()} == {300}
    # By load, so nobody is promised a share in so short a time; but one alone would be no balancing.
    for way in ("blocking", "asyncio"):
        assert answered[way].keys() <= {b"one", b"two", b"three"}
        assert len(answered[way]) >= 2
    assert answered["one down"].keys() <= {b"two", b"three"}


def test_fastapi_service(backends: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is ready, answers with what the backend said, and says 503 when nobody listens."""
    servers = backends.http(2)
    monkeypatch.setenv("ORDERS_TARGET", "static:///" + ",".join(server.address for server in servers))
    spec = importlib.util.spec_from_file_location(
        "fastapi_service_main", EXAMPLES / "fastapi_service/main.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # FastAPI looks annotations up there
    spec.loader.exec_module(module)

    async def main() -> None:
        async with module.app.router.lifespan_context(module.app):
            transport = httpx.ASGITransport(module.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://web") as client:
                assert (await client.get("/readyz")).json() == {"status": "ready"}
                assert (await client.get("/orders/7")).text in {server.name for server in servers}
                for server in servers:
                    await asyncio.to_thread(server.stop)
                assert (await client.get("/orders/8")).status_code == 503

    asyncio.run(main())
    assert sum(server.paths["/orders/7"] for server in servers) == 1
    module.meshlib.default_mesh().close()
