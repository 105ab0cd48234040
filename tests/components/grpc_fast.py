"""A gRPC server in a process of its own that answers as fast as Python can, for measurements.

/bench.Echo/UnaryUnary    request → the same
/bench.Echo/UnaryStream   a number → so many messages
/bench.Echo/StreamUnary   requests → how many
/bench.Echo/StreamStream  each request → the same
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

METHODS = {
    kind: "/bench.Echo/" + "".join(part.capitalize() for part in kind.split("_"))
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
}


@contextmanager
def serving(count: int) -> Iterator[list[str]]:
    """``count`` addresses of one server."""
    command = [sys.executable, "-m", "tests.components.grpc_fast", str(count)]
    root = Path(__file__).parent.parent.parent
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        addresses = child.stdout.readline().split()
        if len(addresses) != count:
            raise RuntimeError(f"the server is not up: exit code {child.wait(10)}")
        yield addresses
    finally:
        child.stdin.close()  # it ends with its input, so also when this process dies
        child.wait(20)
        child.stdout.close()


async def _unary_unary(request: bytes, context: Any) -> bytes:
    return request


async def _unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield b"x"


async def _stream_unary(requests: Any, context: Any) -> bytes:
    return b"%d" % len([None async for _ in requests])


async def _stream_stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def _serve(count: int) -> None:
    handlers = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(_unary_unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(_unary_stream),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(_stream_unary),
        "StreamStream": grpc.stream_stream_rpc_method_handler(_stream_stream),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    hosts = [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(count)]
    addresses = [f"{host}:{server.add_insecure_port(f'{host}:0')}" for host in hosts]
    await server.start()
    print(*addresses, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
