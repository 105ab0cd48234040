"""httpx over meshlib in one file: needs no cluster.

    python examples/httpx_quickstart.py                        three servers of its own, then one of them dies
    python examples/httpx_quickstart.py k8s:///orders.shop:http /healthz     your Service

In an application the whole change is one line:

    client = meshlib.wrap(httpx.Client(base_url="http://orders.shop.svc"))
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

import meshlib


class Orders(BaseHTTPRequestHandler):
    """A backend that says who it is."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet

    def do_GET(self) -> None:
        host, port = self.connection.getsockname()[:2]
        body = f"{host}:{port}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No access log."""


class Server(ThreadingHTTPServer):
    """Can die as a process does: its open connections end with it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Orders)
        self.open: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.append(request)
        super().process_request(request, client_address)

    def die(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in self.open:
            with contextlib.suppress(OSError):  # it ended before us
                connection.shutdown(socket.SHUT_RDWR)


def main() -> None:
    if len(sys.argv) > 1:
        show(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "/")
        return
    servers = [Server() for _ in range(3)]
    target = "static:///" + ",".join(f"127.0.0.1:{server.server_port}" for server in servers)
    with meshlib.Mesh() as mesh:
        with httpx.Client(
            transport=meshlib.MeshTransport(target, mesh=mesh), base_url="http://orders.shop.svc"
        ) as client:
            print(target)
            print("three servers:", shares(client, "/"))
            servers.pop().die()
            print("one of them died, no request failed:", shares(client, "/"))
    for server in servers:
        server.die()


def show(target: str, path: str) -> None:
    with httpx.Client(transport=meshlib.MeshTransport(target), base_url="http://orders.shop.svc") as client:
        for _ in range(10):
            reply = client.get(path)
            stream = reply.extensions["network_stream"]
            print(reply.status_code, "from", stream.get_extra_info("server_addr"))


def shares(client: httpx.Client, path: str) -> dict[str, int]:
    """Requests that each server answered, of 300."""
    counted: Counter[str] = Counter()
    for _ in range(300):
        counted[client.get(path).raise_for_status().text] += 1
    return dict(sorted(counted.items()))


if __name__ == "__main__":
    main()
