"""gRPC over a mesh target: ``python examples/grpc_quickstart.py``.

Starts three small gRPC servers on loopback and calls them through one channel, blocking and with asyncio. In a cluster
only the target changes: ``k8s:///orders.shop:grpc``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc

import meshlib.grpc
import meshlib.grpc.aio

METHOD = "/demo.Greeter/Greet"


def start_server(name: str) -> tuple[grpc.Server, int]:
    """A server whose one method answers with its name. A real one would register generated code instead."""

    def greet(request: bytes, context: grpc.ServicerContext) -> bytes:
        return name.encode()

    handlers = {"Greet": grpc.unary_unary_rpc_method_handler(greet)}
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("demo.Greeter", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def call_blocking(target: str) -> Counter[bytes]:
    """A channel like any other: generated stubs, interceptors, deadlines and metadata work unchanged."""
    with meshlib.grpc.insecure_channel(target) as channel:
        greet = channel.unary_unary(METHOD)  # with generated code: GreeterStub(channel).Greet
        return Counter(greet(b"hello", timeout=5) for _ in range(300))


async def call_asyncio(target: str) -> Counter[bytes]:
    """The same for asyncio."""
    async with meshlib.grpc.aio.insecure_channel(target) as channel:
        greet = channel.unary_unary(METHOD)
        return Counter(await asyncio.gather(*(greet(b"hello", timeout=5) for _ in range(300))))


def main() -> None:
    servers = [start_server(name) for name in ("one", "two", "three")]
    target = "static:///" + ",".join(f"127.0.0.1:{port}" for _, port in servers)
    print("target  ", target)
    print("blocking", dict(call_blocking(target)))
    print("asyncio ", dict(asyncio.run(call_asyncio(target))))

    servers[0][0].stop(None).wait()  # one endpoint dies: no call fails
    print("one down", dict(call_blocking(target)))
    for server, _ in servers:
        server.stop(None).wait()


if __name__ == "__main__":
    main()
