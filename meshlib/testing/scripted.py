"""ScriptedEndpoint: one endpoint on loopback that answers HTTP as a script says, and keeps what it was asked."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

#: SO_LINGER on with no time: the connection ends with a reset.
_LINGER = struct.pack("ii", 1, 0)
_STOP_TIMEOUT = 10.0


@dataclass(frozen=True)
class Reply:
    """One answer. ``delay`` in seconds, before it begins. ``fault``: ``reset`` ends the connection without an answer,
    ``hang`` never answers (until the endpoint stops), ``truncate`` ends it in the middle of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    fault: Literal["", "reset", "hang", "truncate"] = ""


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]  #: names in lower case
    body: bytes


class ScriptedEndpoint:
    """``with ScriptedEndpoint(Reply(503), Reply(200, b"ok")) as orders:`` each request gets the next reply, the last
    one serves all further requests; without replies every answer is 200.

    ``address`` is ``127.0.0.1:PORT`` (``host``: another loopback address), ``requests`` what came, in order. Any thread
    may read it, call ``reply`` and ``stop``. HTTP/1.1 with kept connections; bodies by Content-Length.
    """

    def __init__(self, *replies: Reply, host: str = "127.0.0.1") -> None:
        self.requests: list[Asked] = []
        self._lock = threading.Lock()
        self._replies = list(replies) or [Reply()]
        self._stopping = threading.Event()
        self._server = _Server((host, 0), self)
        self.address = f"{host}:{self._server.server_address[1]}"
        # polled that often for the end, seconds: what a test waits for its servers
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="meshlib-test-endpoint", daemon=True
        )
        self._thread.start()

    def reply(self, *replies: Reply) -> None:
        """Another script from the next request on."""
        with self._lock:
            self._replies = list(replies) or [Reply()]

    def stop(self) -> None:
        """Die as a pod does: connections that exist end, new ones are refused. Twice is once."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._server.shutdown()
            self._thread.join(_STOP_TIMEOUT)
            self._server.server_close()
            self._server.end_connections()

    def take(self, asked: Asked) -> Reply:
        """For the server: note a request, and give its reply."""
        with self._lock:
            self.requests.append(asked)
            return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def wait(self, seconds: float | None) -> None:
        """For the server: the delay of a reply, cut short by ``stop``."""
        self._stopping.wait(seconds)

    def __enter__(self) -> ScriptedEndpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<ScriptedEndpoint {self.address}, {len(self.requests)} requests>"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], endpoint: ScriptedEndpoint) -> None:
        self.endpoint = endpoint
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Without the base class's look-up of the host's full name, which asks DNS.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the test's."""

    def end_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it ended by itself meanwhile


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        """In the place of the base class's: one way for every method."""
        try:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            self._serve()
            self.wfile.flush()
        except (ConnectionError, ValueError):  # ValueError: the file of a connection that was reset
            self.close_connection = True

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        endpoint = self.server.endpoint
        reply = endpoint.take(Asked(self.command, self.path, headers, self.rfile.read(length)))
        if reply.delay or reply.fault == "hang":
            endpoint.wait(None if reply.fault == "hang" else reply.delay)
        if reply.fault in ("reset", "hang"):
            self.close_connection = True
            if reply.fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
                os.close(self.connection.detach())  # at once: the server's own way says goodbye first
            return
        self.send_response_only(reply.status)
        given = {name.lower() for name in reply.headers}
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if "content-length" not in given:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        cut = reply.fault == "truncate"
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if cut else reply.body)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: object) -> None:
        """No access log on the tests' stderr."""
