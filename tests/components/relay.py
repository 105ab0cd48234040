"""A TCP relay in front of a server: it can be slow to let the server's first bytes through, and can go dark."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Relay:
    """``address`` is where clients connect; ``delay`` seconds pass before a connection's first answer.

    While ``dark`` is set nothing passes in either direction, and connections stay open: what a network looks like that
    drops packets. ``connections`` counts those that were opened.
    """

    def __init__(self, target: str, delay: float = 0.0) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._delay = delay
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()
        self._passing = threading.Event()
        self._passing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.connections = 0
        self._run(self._accept)

    def go_dark(self) -> None:
        self._passing.clear()

    def close(self) -> None:
        self._over.set()
        self._passing.set()
        for one in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _run(self, work: object, *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()  # type: ignore[arg-type]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                self._run(self._pump, near, far, 0.0)
                self._run(self._pump, far, near, self._delay)

    def _pump(self, source: socket.socket, sink: socket.socket, delay: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._over.wait(delay)
                delay = 0.0
                self._passing.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(target: str, delay: float = 0.0) -> Iterator[Relay]:
    made = Relay(target, delay)
    try:
        yield made
    finally:
        made.close()
