"""The application: threads and event loops that use httpx and gRPC clients in every way at once, and count."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx

import meshlib
import meshlib.grpc.aio
from meshlib.runtime.mesh import Mesh
from tests.soak.pods import METHOD_STREAM, METHOD_UNARY

URL = "http://orders.shop.svc"
QUOTES = "k8s:///quotes.shop:http"
#: Seconds between two requests of one worker: the cluster's process needs its share of the machine.
PAUSE = 0.008
#: Every so many requests one is cancelled, abandoned half-way, or its client thrown away.
UNKIND = 23
#: How long a loop lives that is replaced again and again, seconds.
LOOP_LIFE = 2.0
TIMEOUT = 5.0


class Tally:
    """What came of the requests. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.fine: Counter[str] = Counter()  #: by kind of client
        self.errors: Counter[str] = Counter()  #: by kind of client and error
        self.wrong: list[str] = []  #: answers to somebody else's question
        self.broken: list[BaseException] = []  #: workers that ended

    def answered(self, kind: str, asked: str, said: str) -> None:
        with self._lock:
            if said == asked:
                self.fine[kind] += 1
            else:
                self.wrong.append(f"{kind}: asked {asked!r}, got {said!r}")

    def failed(self, kind: str, error: BaseException) -> None:
        name = error.code().name if isinstance(error, grpc.RpcError) else type(error).__name__
        with self._lock:
            self.errors[f"{kind} {name}"] += 1


class Traffic:
    """``with Traffic(mesh)``: runs until the end of the block; then everything it opened is closed."""

    def __init__(self, mesh: Mesh) -> None:
        self.tally = Tally()
        self._mesh = mesh
        self._stopped = threading.Event()
        self._numbers = itertools.count()
        workers = [self._sync_http, self._sync_http, self._sync_http_own, self._sync_grpc, self._sync_grpc]
        workers += [self._loop, self._loop, self._short_loops]
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"soak-{work.__name__}", daemon=True)
            for work in workers
        ]

    def __enter__(self) -> Traffic:
        self._client = meshlib.wrap(httpx.Client(timeout=TIMEOUT), mesh=self._mesh)
        self._async_client = meshlib.wrap(httpx.AsyncClient(timeout=TIMEOUT), mesh=self._mesh)
        self._channel = meshlib.grpc.insecure_channel(QUOTES, mesh=self._mesh)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)
            if thread.is_alive():
                self.tally.broken.append(TimeoutError(f"{thread.name} did not end"))
        self._client.close()
        self._channel.close()
        asyncio.run(self._async_client.aclose())

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.tally.broken.append(error)

    def _rounds(self) -> Iterator[int]:
        while not self._stopped.wait(PAUSE):
            yield next(self._numbers)

    # threads

    def _get(self, client: httpx.Client, number: int, kind: str) -> None:
        asked = f"q{number}"
        try:
            if number % UNKIND == 0:
                with client.stream("GET", f"{URL}/{asked}"):
                    return  # unread
            reply = client.get(f"{URL}/{asked}")
            self.tally.answered(kind, asked, reply.text)
        except httpx.HTTPError as error:
            self.tally.failed(kind, error)

    def _sync_http(self) -> None:
        for number in self._rounds():
            self._get(self._client, number, "httpx")

    def _sync_http_own(self) -> None:
        """Clients that live for a few requests; every second one is not closed."""
        while not self._stopped.is_set():
            client = meshlib.wrap(httpx.Client(timeout=TIMEOUT, verify=False), mesh=self._mesh)
            number = 0
            for number in itertools.islice(self._rounds(), 50):
                self._get(client, number, "httpx, own client")
            if number % 2:
                client.close()

    def _sync_grpc(self) -> None:
        unary = self._channel.unary_unary(METHOD_UNARY)
        stream = self._channel.unary_stream(METHOD_STREAM)
        for number in self._rounds():
            asked = f"q{number}"
            try:
                if number % UNKIND == 0:
                    call = stream(asked.encode(), timeout=TIMEOUT)
                    next(call)
                    call.cancel()
                elif number % 5 == 0:
                    said = {bytes(message).decode() for message in stream(asked.encode(), timeout=TIMEOUT)}
                    self.tally.answered("grpc stream", asked, "".join(said))
                else:
                    said_once = unary(asked.encode(), timeout=TIMEOUT)
                    self.tally.answered("grpc", asked, bytes(said_once).decode())
            except grpc.RpcError as error:
                self.tally.failed("grpc", error)

    # loops

    def _loop(self) -> None:
        asyncio.run(self._on_loop(self._stopped.is_set))

    def _short_loops(self) -> None:
        """Loops that end without closing their part of the client."""
        while not self._stopped.is_set():

            async def main() -> None:
                loop = asyncio.get_running_loop()
                end = loop.time() + LOOP_LIFE
                await self._on_loop(lambda: self._stopped.is_set() or loop.time() > end)

            asyncio.run(main())

    async def _on_loop(self, is_over: Callable[[], bool]) -> None:
        async with meshlib.grpc.aio.insecure_channel(QUOTES, mesh=self._mesh) as channel:
            unary = channel.unary_unary(METHOD_UNARY)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(2):
                    tasks.create_task(self._async_http(is_over))
                tasks.create_task(self._async_grpc(unary, is_over))

    async def _async_http(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            await asyncio.sleep(PAUSE)
            number = next(self._numbers)
            asked = f"q{number}"
            try:
                if number % UNKIND == 0:
                    await self._cancelled(self._async_client.get(f"{URL}/{asked}"))
                    continue
                reply = await self._async_client.get(f"{URL}/{asked}")
                self.tally.answered("httpx async", asked, reply.text)
            except httpx.HTTPError as error:
                self.tally.failed("httpx async", error)

    async def _async_grpc(self, unary: Any, is_over: Callable[[], bool]) -> None:
        while not is_over():
            await asyncio.sleep(PAUSE)
            number = next(self._numbers)
            asked = f"q{number}"
            try:
                said = await unary(asked.encode(), timeout=TIMEOUT)
                self.tally.answered("grpc async", asked, bytes(said).decode())
            except grpc.RpcError as error:
                self.tally.failed("grpc async", error)

    async def _cancelled(self, request: Any) -> None:
        """After a turn or two of the loop, so that it is somewhere in the middle."""
        task = asyncio.ensure_future(request)
        for _ in range(next(self._numbers) % 4):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
            await task
