"""Servers that tell who they are and from where they were asked: all of a lab in one thread."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from typing import Any

from tests.kernel.lab.net import inside

_FREEBIND = 78
#: Type and protocol of sockets. A kernel without SCTP refuses to make its.
KINDS = {"TCP": (socket.SOCK_STREAM, 0), "UDP": (socket.SOCK_DGRAM, 0), "SCTP": (socket.SOCK_STREAM, 132)}


class Servers:
    """Answers every chunk and datagram with ``ADDRESS PORT SOURCE SOURCE-PORT``."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._wake, self._woken = os.pipe()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._closing = False

    def __enter__(self) -> Servers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        os.write(self._woken, b"x")
        self._thread.join(10)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        os.close(self._wake)
        os.close(self._woken)

    def listen(self, space: str, protocol: str, address: str, port: int) -> socket.socket:
        """A server on one address of a namespace; close what is returned to stop it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(space):
            server = socket.socket(family, *KINDS[protocol])
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # An address that only a route makes local may be bound, in IPv4 without asking.
                server.setsockopt(socket.IPPROTO_IPV6, _FREEBIND, 1)
            server.bind((address, port))
            if protocol != "UDP":
                server.listen(64)
        except BaseException:
            server.close()
            raise
        server.setblocking(False)
        self._add(server, (protocol, address, port))
        return server

    def stop(self, server: socket.socket) -> None:
        """Close a server; connections that it accepted stay."""
        with self._lock:
            self._selector.unregister(server)
        server.close()

    def _add(self, each: socket.socket, data: Any) -> None:
        with self._lock:
            self._selector.register(each, selectors.EVENT_READ, data)
        os.write(self._woken, b"x")

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    os.read(self._wake, 4096)
                    continue
                with contextlib.suppress(OSError, KeyError, ValueError):
                    self._serve(key.fileobj, *key.data)

    def _serve(self, each: Any, protocol: str, address: str, port: int) -> None:
        if protocol == "UDP":
            _, source = each.recvfrom(2048)
            each.sendto(_told(address, port, source), source)
        elif protocol in ("TCP", "SCTP"):
            flow, source = each.accept()
            flow.setblocking(False)
            self._add(flow, (_told(address, port, source).decode(), address, port))
        elif each.recv(2048):
            each.send(protocol.encode())
        else:
            with self._lock:
                self._selector.unregister(each)
            each.close()


def _told(address: str, port: int, source: Any) -> bytes:
    return f"{address} {port} {source[0]} {source[1]}\n".encode()
