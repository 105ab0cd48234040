"""Callers that send requests through meshlib without pause and keep the outcome of each one."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import grpc
import httpx

import meshlib
from meshlib import grpc as mesh_grpc
from meshlib.grpc import aio as mesh_grpc_aio
from meshlib.runtime.mesh import Mesh

#: Seconds a single call may take before it counts as failed; far above what loopback needs, below a test's patience.
CALL_TIMEOUT = 15.0
METHOD = "/test.Echo/UnaryUnary"


class Traffic:
    """Sync and asyncio httpx, sync and asyncio grpc, one caller each; names of backends are the answers."""

    def __init__(
        self, mesh: Mesh, http_target: str, grpc_target: str | None = None, pace: float = 0.002
    ) -> None:
        self._mesh, self._http, self._grpc, self._pace = mesh, http_target, grpc_target, pace
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.served: Counter[str] = Counter()
        self.failures: list[str] = []
        callers = [self._http_sync, lambda: asyncio.run(self._http_async())]
        if grpc_target is not None:
            callers += [self._grpc_sync, lambda: asyncio.run(self._grpc_async())]
        self._threads = [threading.Thread(target=self._guarded, args=(caller,)) for caller in callers]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(CALL_TIMEOUT * 2)

    @property
    def total(self) -> int:
        return sum(self.served.values())

    def since(self, before: Counter[str]) -> Counter[str]:
        """What was served after ``before``, a copy of ``served``."""
        with self._lock:
            return self.served - before

    def mark(self) -> Counter[str]:
        with self._lock:
            return Counter(self.served)

    def _http_sync(self) -> None:
        transport = meshlib.MeshTransport(self._http, mesh=self._mesh)
        with httpx.Client(transport=transport, timeout=CALL_TIMEOUT) as client:
            while not self._stop.wait(self._pace):
                self._note(lambda: client.get("http://orders/").text)

    async def _http_async(self) -> None:
        transport = meshlib.AsyncMeshTransport(self._http, mesh=self._mesh)
        async with httpx.AsyncClient(transport=transport, timeout=CALL_TIMEOUT) as client:
            while not self._stop.is_set():
                await asyncio.sleep(self._pace)
                try:
                    answer = (await client.get("http://orders/")).text
                except httpx.HTTPError as error:
                    self._failed(error)
                else:
                    self._served(answer)

    def _grpc_sync(self) -> None:
        assert self._grpc is not None
        with mesh_grpc.insecure_channel(self._grpc, mesh=self._mesh) as channel:
            call = channel.unary_unary(METHOD)
            while not self._stop.wait(self._pace):
                self._note(lambda: call(b"", timeout=CALL_TIMEOUT).decode().removesuffix(":"))

    async def _grpc_async(self) -> None:
        assert self._grpc is not None
        async with mesh_grpc_aio.insecure_channel(self._grpc, mesh=self._mesh) as channel:
            call = channel.unary_unary(METHOD)
            while not self._stop.is_set():
                await asyncio.sleep(self._pace)
                try:
                    answer = (await call(b"", timeout=CALL_TIMEOUT)).decode().removesuffix(":")
                except grpc.RpcError as error:
                    self._failed(error)
                else:
                    self._served(answer)

    def _note(self, call: Callable[[], str]) -> None:
        try:
            answer = call()
        except (httpx.HTTPError, grpc.RpcError) as error:
            self._failed(error)
        else:
            self._served(answer)

    def _served(self, name: str) -> None:
        with self._lock:
            self.served[name] += 1

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self.failures.append(repr(error))

    def _guarded(self, caller: Callable[[], None]) -> None:
        try:
            caller()
        except BaseException as error:  # a caller that dies must fail the test, not end quietly
            self._failed(RuntimeError(f"the caller ended: {error!r}"))
            raise
