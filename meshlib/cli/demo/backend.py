"""One backend of the demo: a process that serves HTTP and gRPC on two ports of 127.0.0.1 and answers with its name.

It prints its ports as one JSON line, then obeys lines on its standard input: ``delay SECONDS`` and ``stop`` (finish
what is under way, close the ports, exit). When the standard input ends, its parent is gone and it exits at once.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

import grpc

from meshlib.cli.demo.story import BASE_DELAY

METHOD = "/demo.Echo/Say"
#: After ``stop``, how long a kept-alive connection may still bring a request, seconds; it is answered with
#: ``Connection: close``, so that no client finds its connection closed under it.
LINGER = 0.5


class Backend:
    """Both servers of one process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.delay = BASE_DELAY
        self._stopping = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._random = random.Random(name)

    async def work(self) -> None:
        """The time an answer takes, a quarter of it at random."""
        await asyncio.sleep(self.delay * self._random.uniform(0.75, 1.25))

    async def run(self) -> None:
        http = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        rpc = grpc.aio.server()
        rpc.add_generic_rpc_handlers((_Handler(self),))
        rpc_port = rpc.add_insecure_port("127.0.0.1:0")
        await rpc.start()
        ports = {"http": http.sockets[0].getsockname()[1], "grpc": rpc_port}
        try:
            print(json.dumps(ports), flush=True)
            orderly = await self._obey()
        except BrokenPipeError:
            orderly = False  # the parent was gone before it could read them
        self._stopping.set()
        http.close()
        finishing = self._connections if orderly else ()
        await asyncio.gather(rpc.stop(LINGER if orderly else None), *finishing, return_exceptions=True)

    async def _obey(self) -> bool:
        """Follow orders until ``stop`` (True) or the end of the input (False)."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            order, _, value = line.decode().strip().partition(" ")
            if order == "stop":
                return True
            self.delay = float(value)
        return False

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        try:
            while await self._request_arrived(reader):
                await self.work()
                body = self.name.encode()
                last = b"Connection: close\r\n" if self._stopping.is_set() else b""
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n%s\r\n" % (
                    len(body),
                    last,
                )
                writer.write(head + body)
                await writer.drain()
                if last:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, which is its right
        finally:
            writer.close()

    async def _request_arrived(self, reader: asyncio.StreamReader) -> bool:
        """Wait for the next request's head; False when none will come any more."""
        arrival = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((arrival, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not arrival.done():
                await asyncio.wait((arrival,), timeout=LINGER)
            return arrival.done() and bool(arrival.result())
        finally:
            arrival.cancel()
            stopping.cancel()


class _Handler(grpc.GenericRpcHandler):
    """Serves METHOD with plain bytes: the demo needs no generated code."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(self._say)

    async def _say(self, request: bytes, context: object) -> bytes:
        await self._backend.work()
        return self._backend.name.encode()


if __name__ == "__main__":
    asyncio.run(Backend(sys.argv[1]).run())
    sys.stdout = None  # it may be a pipe that nobody reads any more; flushing it at exit would complain
