"""A relay: what connects to it in one namespace reaches a port of another one. The API server's way into the lab."""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.kernel.lab.net import inside


class Relay:
    """Listens on ``addresses`` at ``port`` in a namespace; connects to 127.0.0.1 at ``port`` where the test runs."""

    def __init__(self, space: str, port: int, *addresses: str) -> None:
        self._port = port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        with inside(space):
            self._servers = [self._listen(address) for address in addresses]

    def _listen(self, address: str) -> socket.socket:
        return socket.create_server((address, self._port))

    def __enter__(self) -> Relay:
        for server in self._servers:
            threading.Thread(target=self._accept, args=(server,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for each in (*self._servers, *self._open):
                # Closing alone does not wake the thread that waits in it.
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, far}
            for left, right in ((client, far), (far, client)):
                threading.Thread(target=self._copy, args=(left, right), daemon=True).start()

    def _copy(self, left: socket.socket, right: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := left.recv(1 << 16):
                right.sendall(data)
        for each in (left, right):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            for each in (left, right):
                each.close()
                self._open.discard(each)
