"""An HTTP/2 server that does what a test says, GOAWAY and resets included, and keeps count.

A test gives ``answer``, which is called with each request that has come in whole, on the thread of its connection:

    def answer(stream):
        stream.reply(b"ok")
        stream.connection.goaway(stream.id)

Frames that h2 does not send in the middle of a connection (a GOAWAY that lets streams finish) are written as they are.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
from hyperframe.frame import GoAwayFrame, PingFrame

_WAIT = 10.0


@dataclass
class Stream:
    """One request, and how it is answered."""

    connection: Connection
    id: int
    method: str
    path: str
    authority: str
    body: bytes = b""

    def begin(self, status: int = 200) -> None:
        self.connection.protocol.send_headers(self.id, [(":status", str(status))])

    def send(self, data: bytes, end: bool = False) -> None:
        self.connection.protocol.send_data(self.id, data, end_stream=end)

    def reply(self, body: bytes = b"ok", status: int = 200) -> None:
        self.begin(status)
        self.send(body, end=True)

    def reset(self, code: int = h2.errors.ErrorCodes.REFUSED_STREAM) -> None:
        self.connection.protocol.reset_stream(self.id, code)


@dataclass
class Connection:
    """One connection; ``streams``: its requests in the order in which they came in whole."""

    number: int
    protocol: Any
    sock: Any
    streams: list[Stream] = field(default_factory=list)
    closing: str = ""
    told: threading.Event = field(default_factory=threading.Event)  #: for the test
    over: threading.Event = field(default_factory=threading.Event)  #: the socket is closed
    last: int | None = None  #: requests above this are ignored, as GOAWAY promises

    def goaway(self, last: int, code: int = 0) -> None:
        """What was answered so far goes first."""
        self.last = last
        self._flush()
        self.sock.sendall(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    def ping(self) -> None:
        self._flush()
        self.sock.sendall(PingFrame(0, opaque_data=b"12345678").serialize())

    def close(self) -> None:
        """An orderly end, after what was answered."""
        self.closing = "close"

    def abort(self) -> None:
        """A reset."""
        self.closing = "abort"

    def _flush(self) -> None:
        if data := self.protocol.data_to_send():
            self.sock.sendall(data)


class Http2Server:
    """``connections``: all that were made; ``requests``: (connection, method, path, body) of all that came in whole."""

    def __init__(
        self,
        answer: Callable[[Stream], None],
        *,
        tls: ssl.SSLContext | None = None,
        max_streams: int = 100,
        host: str = "127.0.0.1",
    ) -> None:
        self._answer, self._tls, self._max_streams = answer, tls, max_streams
        self._listener = socket.create_server((host, 0))
        self.host, self.port = host, self._listener.getsockname()[1]
        self.connections: list[Connection] = []
        self.requests: list[tuple[int, str, str, bytes]] = []
        self.resumed: list[bool] = []  #: of each TLS handshake
        self.most_streams = 0  #: that were open at a time
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Http2Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_WAIT)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self.resumed.append(bool(sock.session_reused))
        except OSError:
            sock.close()
            return
        connection = self._new(sock)
        try:
            with sock, contextlib.suppress(OSError, h2.exceptions.ProtocolError):
                self._speak(connection)
        finally:
            connection.over.set()

    def _new(self, sock: Any) -> Connection:
        configuration = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        protocol = h2.connection.H2Connection(configuration)
        protocol.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self._max_streams}
        )
        connection = Connection(len(self.connections), protocol, sock)
        self.connections.append(connection)
        return connection

    def _speak(self, connection: Connection) -> None:
        protocol, sock = connection.protocol, connection.sock
        protocol.initiate_connection()
        coming: dict[int, Stream] = {}
        while True:
            connection._flush()
            if connection.closing == "abort":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            if connection.closing:
                return
            if not (data := sock.recv(65536)):
                return
            for event in protocol.receive_data(data):
                self._react(connection, coming, event)

    def _react(self, connection: Connection, coming: dict[int, Stream], event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            coming[event.stream_id] = Stream(
                connection, event.stream_id, headers[":method"], headers[":path"], headers[":authority"]
            )
            self.most_streams = max(self.most_streams, connection.protocol.open_inbound_streams)
        elif isinstance(event, h2.events.DataReceived):
            coming[event.stream_id].body += event.data
            connection.protocol.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            stream = coming.pop(event.stream_id)
            if connection.last is not None and stream.id > connection.last:
                return
            connection.streams.append(stream)
            self.requests.append((connection.number, stream.method, stream.path, stream.body))
            self._answer(stream)
