"""A real HTTP server that counts: HTTP/1.1 (h11) and HTTP/2 (h2; by ALPN, or at once on a plain connection).

    GET /anything          200, the body is the backend's name
    POST /echo             200, the body is the request's body
    GET /stream/N/SECONDS  N chunks of one line each, SECONDS apart

Every answer tells what arrived: x-backend, x-host, x-method, x-path, x-version, x-connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]

HTTP2_PREFACE = b"PRI * HTTP/2.0"


class LoopThread:
    """An event loop in a thread, for the servers of one test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-backends", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 10.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@dataclass(frozen=True)
class Received:
    """One request, as a backend saw it."""

    method: str
    path: str
    host: str
    version: str
    connection: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class HttpBackend:
    """One listening address. The knobs may be turned at any time, from any thread."""

    def __init__(self, loop: LoopThread, name: str, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.name, self.host, self.port = name, host, port
        self._loop, self._tls = loop, tls
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

        # knobs
        self.delay = 0.0
        """Seconds between the request and the answer's first byte; float("inf") never answers."""
        self.status = 200
        self.fault: Literal["", "close", "truncate"] = ""
        """close: hang up instead of answering; truncate: hang up in the middle of the body."""
        self.headers: dict[str, str] = {}
        """Further headers for every answer."""

        # counters
        self.requests = 0
        self.in_flight = 0
        self.accepted = 0
        self.peers: list[str] = []  #: names in the certificates of clients, per connection
        self.received: list[Received] = []
        self.paths: Counter[str] = Counter()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    # life

    def start(self) -> None:
        """Listens; also again, on the same port, after stop()."""
        self._server = self._loop.run(
            asyncio.start_server(self._serve, self.host, self.port, ssl=self._tls, backlog=512)
        )

    def stop_listening(self) -> None:
        """New connections are refused; those that exist live on."""
        if self._server is not None:
            # close() alone: wait_closed() would wait for the open connections (Python 3.12 and later)
            self._loop.loop.call_soon_threadsafe(self._server.close)
            self._loop.run(asyncio.sleep(0))
            self._server = None

    def stop(self) -> None:
        """Dies: refuses new connections and resets the open ones."""
        self.stop_listening()
        self._loop.run(self._abort())

    async def _abort(self) -> None:
        tasks = list(self._connections)
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # serving

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        self.accepted += 1
        number = self.accepted
        try:
            first = await reader.read(65536)
            secure = writer.get_extra_info("ssl_object")
            if secure and (certificate := secure.getpeercert()):
                self.peers.append(certificate["subjectAltName"][0][1])
            if first.startswith(HTTP2_PREFACE) or (secure and secure.selected_alpn_protocol() == "h2"):
                await _Http2(self, number, reader, writer).run(first)
            else:
                await self._http11(number, reader, writer, first)
        except (OSError, asyncio.CancelledError, h11.ProtocolError, h2.exceptions.ProtocolError):
            pass  # the peer left, or the test stopped us
        finally:
            del self._connections[task]
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _http11(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes
    ) -> None:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(data)
        request: h11.Request | None = None
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])))
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers]
                host = dict(headers).get("host", "")
                got = Received(
                    request.method.decode(),
                    request.target.decode(),
                    host,
                    f"HTTP/{request.http_version.decode()}",
                    number,
                    tuple(headers),
                    body,
                )
                with self._counted(got):
                    await self._wait(reader)
                    if self.fault == "close":
                        return
                    # no length: h11 frames the body as chunks, so that a truncated one is visible
                    writer.write(
                        connection.send(h11.Response(status_code=self.status, headers=self._head(got)))
                    )
                    async for chunk in self._body(got):
                        writer.write(connection.send(h11.Data(data=chunk)))
                        await writer.drain()
                        if self.fault == "truncate":
                            return
                    writer.write(connection.send(h11.EndOfMessage()))
                    await writer.drain()
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
            else:  # ConnectionClosed, PAUSED
                return

    # what an answer is made of

    @contextlib.contextmanager
    def _counted(self, got: Received) -> Any:
        self.requests += 1
        self.in_flight += 1
        self.received.append(got)
        self.paths[got.path] += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def _wait(self, reader: asyncio.StreamReader) -> None:
        """For `delay`, or until the peer hangs up; turning the knob back releases those who wait."""
        begun = self._loop.loop.time()
        while (left := begun + self.delay - self._loop.loop.time()) > 0:
            if reader.at_eof():
                raise ConnectionResetError
            await asyncio.sleep(min(left, 0.01))

    def _head(self, got: Received) -> Headers:
        told = {
            "content-type": "text/plain",
            "x-backend": self.name,
            "x-host": got.host,
            "x-method": got.method,
            "x-path": got.path,
            "x-version": got.version,
            "x-connection": str(got.connection),
            **self.headers,
        }
        return [(k.encode(), v.encode()) for k, v in told.items()]

    async def _body(self, got: Received) -> AsyncIterator[bytes]:
        if got.method == "HEAD":
            return
        if got.path.startswith("/stream/"):
            _, _, count, pause = got.path.split("/")
            for line in range(int(count)):
                yield f"{self.name} {line}\n".encode()
                await asyncio.sleep(float(pause))
        elif got.path == "/echo":
            yield got.body
        else:
            yield self.name.encode()


class _Http2:
    """One HTTP/2 connection of a backend; every stream is answered by a task of its own."""

    def __init__(
        self, backend: HttpBackend, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._backend, self._number = backend, number
        self._reader, self._writer = reader, writer
        self._connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._window = asyncio.Condition()

    async def run(self, data: bytes) -> None:
        self._connection.initiate_connection()
        try:
            while data:
                for event in self._connection.receive_data(data):
                    await self._handle(event)
                await self._flush()
                data = await self._reader.read(65536)
        finally:
            for task in self._answers.values():
                task.cancel()
            await asyncio.gather(*self._answers.values(), return_exceptions=True)

    async def _flush(self) -> None:
        self._writer.write(self._connection.data_to_send())
        await self._writer.drain()

    async def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._requests[event.stream_id] = (dict(event.headers), bytearray())
        elif isinstance(event, h2.events.DataReceived):
            self._requests[event.stream_id][1].extend(event.data)
            self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            headers, body = self._requests.pop(event.stream_id)
            task = asyncio.ensure_future(self._answer(event.stream_id, headers, bytes(body)))
            self._answers[event.stream_id] = task
            task.add_done_callback(lambda _, stream=event.stream_id: self._answers.pop(stream, None))
        elif isinstance(event, h2.events.StreamReset):
            self._requests.pop(event.stream_id, None)
            if task := self._answers.get(event.stream_id):
                task.cancel()
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            async with self._window:
                self._window.notify_all()

    async def _answer(self, stream: int, headers: dict[str, str], body: bytes) -> None:
        backend, connection = self._backend, self._connection
        got = Received(
            headers[":method"],
            headers[":path"],
            headers.get(":authority", ""),
            "HTTP/2",
            self._number,
            tuple(headers.items()),
            body,
        )
        with backend._counted(got), contextlib.suppress(h2.exceptions.ProtocolError, OSError):
            await backend._wait(self._reader)
            if backend.fault == "close":
                self._writer.transport.abort()
                return
            connection.send_headers(stream, [(b":status", str(backend.status).encode()), *backend._head(got)])
            await self._flush()
            async for chunk in backend._body(got):
                await self._send(stream, chunk)
                if backend.fault == "truncate":
                    connection.reset_stream(stream)
                    await self._flush()
                    return
            connection.end_stream(stream)
            await self._flush()

    async def _send(self, stream: int, data: bytes) -> None:
        while data:
            async with self._window:
                while (room := self._connection.local_flow_control_window(stream)) <= 0:
                    await self._window.wait()
            part = data[: min(room, self._connection.max_outbound_frame_size)]
            self._connection.send_data(stream, part)
            data = data[len(part) :]
            await self._flush()
