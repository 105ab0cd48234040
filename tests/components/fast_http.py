"""A quick HTTP/1.1 server in a process of its own, for benches: keep-alive, a fixed answer, on several addresses.

It parses nothing but the end of a head, so that the client is what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import resource
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType

REPLY = (
    b"HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/json\r\n"
    b'Content-Length: 16\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n{"hello":"mesh"}'
)


class _Serve(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while True:
            _, end, rest = self.data.partition(b"\r\n\r\n")
            if not end:
                return
            self.data = rest
            self.transport.write(REPLY)


def allow_descriptors() -> None:
    """As many as the administrator lets this process have: a thousand listeners and their connections."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = 65536 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _run(hosts: Sequence[str], port: int, ready: Connection) -> None:
    allow_descriptors()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for host in hosts:
            await loop.create_server(_Serve, host, port, backlog=1024)
        ready.send(None)
        await asyncio.to_thread(ready.recv)  # until told to stop, or left

    with contextlib.suppress(EOFError):
        asyncio.run(main())


class FastHttp:
    """``with FastHttp(hosts, port)``: listens on every host until the end of the block."""

    def __init__(self, hosts: Sequence[str], port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(list(hosts), port, theirs), daemon=True)
        self._process.start()
        theirs.close()  # else nobody would notice the end of the child
        self._ours.recv()

    def __enter__(self) -> FastHttp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
