"""What the gRPC tests share: a Mesh whose set is published by hand, and a way to wait for facts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

import meshlib.grpc
import meshlib.grpc.aio
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.testing.manual import ManualResolver

TARGET = "k8s:///echo.shop:80"
SERVICE = "shop/echo"
UU, US, SU, SS = (
    f"/test.Echo/{name}" for name in ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")
)


class Shop:
    """A Mesh in which ``k8s:///echo.shop:80`` has exactly the endpoints that a test says."""

    def __init__(self, mesh: Mesh, resolver: ManualResolver) -> None:
        self.mesh = mesh
        self.resolver = resolver
        self._channels: list[Any] = []

    def serve(self, backends: Sequence[Any], **fields: Any) -> None:
        """Publish the endpoints (backends, or ``ip:port``)."""
        self.resolver.endpoints(SERVICE, [getattr(b, "address", b) for b in backends], **fields)

    def known(self) -> None:
        """Wait until the set is known, so that the next call does not have to."""
        handle = self.mesh.target(TARGET)
        eventually(lambda: handle.state.settled)

    def channel(self, **options: Any) -> Any:
        channel = meshlib.grpc.insecure_channel(TARGET, mesh=self.mesh, **options)
        self._channels.append(channel)
        return channel

    def aio_channel(self, **options: Any) -> Any:
        """The test closes it, on its loop."""
        return meshlib.grpc.aio.insecure_channel(TARGET, mesh=self.mesh, **options)

    @property
    def addresses(self) -> list[str]:
        """What is known now."""
        endpoints = self.mesh.target(TARGET).status()["endpoints"]
        return [f"{e['address']}:{e['port']}" for e in endpoints]

    @property
    def inflight(self) -> int:
        return sum(e["inflight"] for e in self.mesh.target(TARGET).status()["endpoints"])

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self.mesh.close()


@contextmanager
def shop(**settings: Any) -> Iterator[Shop]:
    """round_robin, so that a few calls are enough to reach every endpoint; ``settings`` as in meshlib.toml."""
    resolver = ManualResolver()
    config = load_config({"picker": "round_robin", **settings})
    made = Shop(Mesh(resolvers={"k8s": resolver}, config=config), resolver)
    try:
        yield made
    finally:
        made.close()


def ending(error: Any) -> grpc.StatusCode:
    """Its code. A server that goes away ends calls that reach it at that moment in two ways, of bare channels too: both
    are CANCELLED here.
    """
    code: grpc.StatusCode = error.code()
    farewell = code is grpc.StatusCode.UNAVAILABLE and error.details() == "Cancelling all calls"
    return grpc.StatusCode.CANCELLED if farewell else code


def eventually(fact: Callable[[], Any], timeout: float = 10.0) -> None:
    """Wait until ``fact()`` holds; the bound only ends a broken test."""
    end = time.monotonic() + timeout
    while not fact():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
