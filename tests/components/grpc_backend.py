"""A real gRPC server that counts. Messages are plain bytes, so no generated code is needed:

    /test.Echo/UnaryUnary    request → b"NAME:request"
    /test.Echo/UnaryStream   request → five times b"NAME:request:INDEX"
    /test.Echo/StreamUnary   requests → b"NAME:" and the requests joined by commas
    /test.Echo/StreamStream  each request → b"NAME:request"

The standard health service answers too (generated stubs: grpc_health.v1). Every call's initial metadata carries
x-backend, and x-got-KEY for every key that arrived.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

SERVICE = "test.Echo"
STREAM_LENGTH = 5


class GrpcBackend:
    """One listening address. The knobs may be turned at any time, from any thread."""

    def __init__(self, name: str, host: str, port: int, credentials: grpc.ServerCredentials | None) -> None:
        self.name, self.host, self.port = name, host, port
        self._credentials = credentials
        self._server: grpc.Server | None = None
        self._lock = threading.Lock()
        self._released = threading.Event()

        # knobs
        self.delay = 0.0
        """Seconds before the answer's first message; between the messages of a stream as well."""
        self.status = grpc.StatusCode.OK
        """Anything else is what every call ends with, at once."""

        # counters
        self.requests = 0
        self.in_flight = 0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Listens; also again, on the same port, after stop()."""
        self._released.clear()
        # one listener per port, else a second backend would silently share the connections
        server = grpc.server(ThreadPoolExecutor(32, self.name), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
        if self._credentials is None:
            server.add_insecure_port(self.address)
        else:
            server.add_secure_port(self.address, self._credentials)
        server.start()
        self._server = server

    def stop(self, grace: float | None = None) -> None:
        """Without grace, open calls end with CANCELLED or UNAVAILABLE at once; with it, GOAWAY comes first."""
        if self._server is not None:
            done = self._server.stop(grace)
            if grace is None:
                self._released.set()
            done.wait(10)
            self._released.set()
            self._server = None

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        return {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(self._counted(self._unary_unary)),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(self._counted_stream(self._unary_stream)),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(self._counted(self._stream_unary)),
            "StreamStream": grpc.stream_stream_rpc_method_handler(self._counted_stream(self._stream_stream)),
        }

    def _unary_unary(self, request: bytes) -> bytes:
        return self._reply(request)

    def _unary_stream(self, request: bytes) -> Iterator[bytes]:
        for index in range(STREAM_LENGTH):
            if index:
                self._pause()
            yield self._reply(request) + f":{index}".encode()

    def _stream_unary(self, requests: Iterator[bytes]) -> bytes:
        return self._reply(b",".join(requests))

    def _stream_stream(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        for request in requests:
            yield self._reply(request)

    def _reply(self, request: bytes) -> bytes:
        return self.name.encode() + b":" + request

    def _pause(self) -> None:
        if self.delay:
            self._released.wait(self.delay)

    def _begin(self, context: grpc.ServicerContext) -> None:
        arrived = ((f"x-got-{key}", value) for key, value in context.invocation_metadata() or ())
        context.send_initial_metadata((("x-backend", self.name), *arrived))
        self._pause()
        if self.status is not grpc.StatusCode.OK:
            context.abort(self.status, f"{self.name} was told to fail")

    def _count(self, step: int) -> None:
        with self._lock:
            self.in_flight += step
            self.requests += step > 0

    def _counted(self, answer: Callable[[Any], bytes]) -> Callable[[Any, grpc.ServicerContext], bytes]:
        def handler(request: Any, context: grpc.ServicerContext) -> bytes:
            self._count(+1)
            try:
                self._begin(context)
                return answer(request)
            finally:
                self._count(-1)

        return handler

    def _counted_stream(
        self, answer: Callable[[Any], Iterator[bytes]]
    ) -> Callable[[Any, grpc.ServicerContext], Iterator[bytes]]:
        def handler(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            self._count(+1)
            try:
                self._begin(context)
                yield from answer(request)
            finally:
                self._count(-1)

        return handler
