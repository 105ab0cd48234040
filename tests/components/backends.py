"""Real servers for a test's traffic, several addresses with one port, as pods of one Service have.

with Backends() as backends:
    one, two, three = backends.http(3)           # 127.0.0.2, 127.0.0.3, 127.0.0.4
    secure = backends.http(2, tls="orders.shop.svc")
    calls = backends.grpc(3)
"""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Sequence
from functools import cached_property

import grpc
import trustme

from tests.components.grpc_backend import GrpcBackend
from tests.components.http_backend import HttpBackend, LoopThread
from tests.components.process import free_port

__all__ = ["Backends", "GrpcBackend", "HttpBackend"]


class Backends:
    """Starts backends and stops them all at the end."""

    def __init__(self) -> None:
        self._loop: LoopThread | None = None
        self._started: list[HttpBackend | GrpcBackend] = []
        self._numbers = itertools.count(2)

    def __enter__(self) -> Backends:
        return self

    def __exit__(self, *_: object) -> None:
        for backend in self._started:
            backend.stop()
        if self._loop is not None:
            self._loop.close()

    def http(self, count: int = 1, *, tls: str | None = None, port: int | None = None) -> list[HttpBackend]:
        """`tls` is the name in their certificate. Both HTTP/1.1 and HTTP/2 are spoken. `port` adds to others."""
        loop = self._loop = self._loop or LoopThread()
        context = self._server_context(tls) if tls else None
        hosts, port = self._addresses(count, port)
        made = [HttpBackend(loop, f"http-{host}", host, port, context) for host in hosts]
        self._start(made)
        return made

    def grpc(self, count: int = 1, *, tls: str | None = None, port: int | None = None) -> list[GrpcBackend]:
        credentials = None
        if tls:
            leaf = self.authority.issue_cert(tls)
            chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
            credentials = grpc.ssl_server_credentials([(leaf.private_key_pem.bytes(), chain)])
        hosts, port = self._addresses(count, port)
        made = [GrpcBackend(f"grpc-{host}", host, port, credentials) for host in hosts]
        self._start(made)
        return made

    # certificates

    @cached_property
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @property
    def ca_pem(self) -> bytes:
        """For grpc.ssl_channel_credentials(root_certificates=...)."""
        return self.authority.cert_pem.bytes()

    def client_context(self) -> ssl.SSLContext:
        """For httpx's verify=: trusts these backends' authority and nobody else."""
        return ssl.create_default_context(cadata=self.ca_pem.decode())

    def _server_context(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(name).configure_cert(context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    # inside

    def _addresses(self, count: int, port: int | None) -> tuple[list[str], int]:
        hosts = [f"127.0.{number // 256}.{number % 256}" for number in itertools.islice(self._numbers, count)]
        return hosts, port or free_port(*hosts)

    def _start(self, made: Sequence[HttpBackend | GrpcBackend]) -> None:
        for backend in made:
            backend.start()
            self._started.append(backend)
