"""The service ``orders``, as small as it gets: answers every GET with its name.

    python orders.py [PORT]

BIND is the address to listen on (default: all of them).
"""

from __future__ import annotations

import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = f"{socket.gethostname()}/{os.environ.get('BIND', '')}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"{NAME} for {self.headers['host']}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    ThreadingHTTPServer((os.environ.get("BIND", ""), port), Handler).serve_forever()
