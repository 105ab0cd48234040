"""What runs inside a Pod: makes calls through meshlib on command, one JSON object per line in and out."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

import grpc
import httpx

import meshlib
from meshlib import grpc as mesh_grpc
from meshlib.runtime.observing import counters, subscribe

logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(message)s")
events: list[Any] = []
subscribe(events.append)


def http(url: str, count: int, target: str | None = None, timeout: float = 10.0) -> list[str]:
    with httpx.Client(transport=meshlib.MeshTransport(target), timeout=timeout) as client:
        return [_outcome(lambda: client.get(url).text) for _ in range(count)]


def wrapped(url: str, count: int) -> list[str]:
    with meshlib.wrap(httpx.Client(timeout=10.0)) as client:
        return [_outcome(lambda: client.get(url).text) for _ in range(count)]


def http_async(url: str, count: int, target: str | None = None) -> list[str]:
    async def calls() -> list[str]:
        found = []
        async with httpx.AsyncClient(transport=meshlib.AsyncMeshTransport(target), timeout=10.0) as client:
            for _ in range(count):
                try:
                    found.append((await client.get(url)).text)
                except Exception as error:  # the outcome is what the test is about
                    found.append(_named(error))
        return found

    return asyncio.run(calls())


def grpc_unary(target: str, method: str, count: int) -> list[str]:
    with mesh_grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(method)
        return [_outcome(lambda: call(b"hello", timeout=10).decode(errors="replace")) for _ in range(count)]


def pick(target: str, count: int) -> list[str]:
    handle = meshlib.default_mesh().target(target)

    def one() -> str:
        with handle.pick(timeout=10) as endpoint:
            return endpoint.authority

    return [_outcome(one) for _ in range(count)]


def status(target: str) -> dict[str, Any]:
    return meshlib.default_mesh().target(target).status()


def happened() -> dict[str, Any]:
    return {
        "counters": counters(),
        "fell_back": [[e.path, e.reason] for e in events if type(e).__name__ == "FellBack"],
    }


def _outcome(call: Any) -> str:
    try:
        return str(call())
    except grpc.RpcError as error:
        return f"{type(error).__name__}: {error.code().name}: {error.details()}"  # type: ignore[attr-defined]
    except Exception as error:  # the outcome is what the test is about
        return _named(error)


def _named(error: Exception) -> str:
    cause = error.__cause__.__cause__ if error.__cause__ is not None else None
    return f"{type(error).__name__}: {type(cause or error.__cause__).__name__}: {error}"


COMMANDS = {
    "http": http,
    "wrapped": wrapped,
    "http_async": http_async,
    "grpc": grpc_unary,
    "pick": pick,
    "status": status,
    "happened": happened,
}

if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        answer = COMMANDS[request.pop("do")](**request)  # type: ignore[operator]
        print(json.dumps({"answer": answer}, default=str), flush=True)
