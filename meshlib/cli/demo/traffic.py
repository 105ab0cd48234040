"""The traffic: a few threads of ordinary httpx calls and a few of ordinary gRPC calls, through meshlib."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
import httpx

import meshlib
import meshlib.grpc
from meshlib.cli.demo.backend import METHOD
from meshlib.cli.demo.board import Board, Sample

#: The host name of the demo's URLs, an alias of the registry's Service.
HOST = "orders.demo"
#: Threads of each kind, and a thread's pause between two calls, seconds: about 250 calls per second in all, which one
#: laptop core serves with room to spare, so that the figures show the balancing and not a full machine.
THREADS = 4
PAUSE = 0.025
#: A call may take this long, seconds, before it counts as failed.
TIMEOUT = 5.0


class Traffic:
    """Runs until ``stop``. Samples go to the board with times relative to ``started``."""

    def __init__(self, mesh: meshlib.Mesh, grpc_target: str, board: Board) -> None:
        self._board = board
        self._stopped = threading.Event()
        # trust_env: a proxy that is set on this machine has no way to the demo's servers.
        self._client = meshlib.wrap(httpx.Client(timeout=TIMEOUT, trust_env=False), mesh)
        self._channel = meshlib.grpc.insecure_channel(grpc_target, mesh=mesh)
        self._say: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(METHOD)
        self.started = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, args=(kind, call), name=f"demo-{kind}-{number}")
            for kind, call in (("http", self._http), ("grpc", self._grpc))
            for number in range(THREADS)
        ]

    def start(self) -> None:
        self.started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the calls under way finish, then close the clients."""
        self._stopped.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._client.close()
        self._channel.close()

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def _run(self, kind: str, call: Callable[[], str]) -> None:
        while not self._stopped.is_set():
            begin = self.elapsed()
            backend, error, cancelled = "", "", False
            try:
                backend = call()
            except (httpx.HTTPError, grpc.RpcError) as failure:
                error = f"{kind}: {type(failure).__name__}: {str(failure)[:200]}"
                cancelled = isinstance(failure, grpc.Call) and failure.code() is grpc.StatusCode.CANCELLED
            end = self.elapsed()
            self._board.add(Sample(end, kind, backend, end - begin, error, cancelled))
            self._stopped.wait(PAUSE)

    def _http(self) -> str:
        return self._client.get(f"http://{HOST}/").raise_for_status().text

    def _grpc(self) -> str:
        answer: bytes = self._say(b"hello", timeout=TIMEOUT)
        return answer.decode()
