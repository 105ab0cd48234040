"""Interceptors of grpc.aio: the same scenarios on a bare channel and on a mesh channel, compared; and once per call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest

import meshlib.grpc.aio
from meshlib.clients.grpc import aio_interceptors
from tests.components.backends import Backends
from tests.components.process import free_port
from tests.integration.grpc_support import SS, SU, TARGET, US, UU, Shop, eventually, shop

#: Intercepted calls of older versions of grpcio complain in __del__ when an interceptor raised, on a bare channel too.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <function InterceptedCall\.__del__:pytest.PytestUnraisableExceptionWarning"
)


class Recorder:
    """Notes what it sees, adds a header, and passes on."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    async def pass_on(self, continuation: Any, details: Any, request: Any) -> Any:
        details.metadata.add("tag", self.name)
        self.log.append(
            (self.name, details.method, details.timeout, details.wait_for_ready, type(details.metadata))
        )
        call = await continuation(details, request)
        self.log.append((self.name, isinstance(call, grpc.aio.Call)))
        return call


def recorder(kind: str, name: str, log: list[Any]) -> Any:
    """An interceptor of that kind alone."""
    base = getattr(grpc.aio, aio_interceptors._class_name(kind) + "ClientInterceptor")

    class One(base):  # type: ignore[misc]
        async def _on(self, continuation: Any, details: Any, request: Any) -> Any:
            return await Recorder(name, log).pass_on(continuation, details, request)

    setattr(One, f"intercept_{kind}", One._on)
    One.__abstractmethods__ = frozenset()
    return One()


KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


async def agen(*items: bytes) -> AsyncIterator[bytes]:
    for item in items:
        yield item


async def outcome(work: Any) -> Any:
    """What a caller can see of it: the value, or the error's kind, code and details."""
    try:
        return await work
    except grpc.aio.AioRpcError as error:
        return "AioRpcError", error.code(), error.details()
    except (Exception, asyncio.CancelledError) as error:
        return type(error).__name__, str(error)


async def all_kinds(make: Callable[..., Any], log: list[Any]) -> Any:
    interceptors = [recorder(kind, name, log) for name in ("outer", "inner") for kind in KINDS]
    async with make(interceptors=interceptors) as channel:
        call = channel.unary_unary(UU)(b"x", timeout=10, metadata=(("mine", "1"),))
        found = [
            await call,
            await call.code(),
            (await call.initial_metadata())["x-got-mine"],
            call.done(),
        ]
        found.append([m async for m in channel.unary_stream(US)(b"x", timeout=10, wait_for_ready=True)])
        found.append(await channel.stream_unary(SU)(agen(b"a", b"b"), timeout=10))
        found.append([m async for m in channel.stream_stream(SS)(agen(b"a", b"b"), timeout=10)])
        written = channel.stream_stream(SS)(timeout=10)
        await written.write(b"a")
        found.append(await written.read())
        await written.done_writing()
        end = await outcome(written.read())  # EOF; a grpcio of another time raises
        found += ["EOF" if end is grpc.aio.EOF else end, await written.code()]
        found.append(await outcome(written.write(b"late")))
        collected = channel.stream_unary(SU)(timeout=10)
        await collected.write(b"c")
        await collected.done_writing()
        found.append(await collected)
        return found


async def short_circuit(make: Callable[..., Any], log: list[Any]) -> Any:
    class Answers(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return b"made up"

    async with make(interceptors=[Answers()]) as channel:
        call = channel.unary_unary(UU)(b"x")
        return await call, await call.code(), call.done()


async def raising(make: Callable[..., Any], log: list[Any]) -> Any:
    class Raises(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            raise ValueError("mine")

    async with make(interceptors=[Raises()]) as channel:
        return await outcome(channel.unary_unary(UU)(b"x"))


async def other_method(make: Callable[..., Any], log: list[Any]) -> Any:
    class Redirects(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            changed = grpc.aio.ClientCallDetails(
                UU.encode(), details.timeout, details.metadata, details.credentials, details.wait_for_ready
            )
            return await continuation(changed, request + b"!")

    async with make(interceptors=[Redirects()]) as channel:
        return await channel.unary_unary("/test.Echo/Nothing")(b"x", timeout=10)


async def twice(make: Callable[..., Any], log: list[Any]) -> Any:
    class Repeats(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            await (await continuation(details, b"first"))
            return await continuation(details, b"second")

    async with make(interceptors=[Repeats()]) as channel:
        return await channel.unary_unary(UU)(b"x", timeout=10)


async def errors(make: Callable[..., Any], log: list[Any]) -> Any:
    async with make(interceptors=[recorder("unary_unary", "one", log)]) as channel:
        unknown = await outcome(channel.unary_unary("/test.Echo/Nothing")(b"x", timeout=10))
        call = channel.unary_unary(UU)(b"x", timeout=10)
        cancelled = (call.cancel(), await outcome(call), call.cancelled(), await call.code())
        return unknown, cancelled


async def not_an_interceptor(make: Callable[..., Any], log: list[Any]) -> Any:
    try:
        make(interceptors=[object()])
    except ValueError as error:
        return "ValueError", "ClientInterceptor" in str(error)
    return "accepted"


SCENARIOS = [all_kinds, short_circuit, raising, other_method, twice, errors, not_an_interceptor]


@pytest.fixture
def mesh() -> Iterator[Shop]:
    with shop() as made:
        yield made


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_equal_to_a_bare_channel(mesh: Shop, backends: Backends, scenario: Any) -> None:
    """What the caller and what the interceptors see is the same; nothing stays in flight."""
    (server,) = backends.grpc(1)
    mesh.serve([server])
    mesh.known()
    seen = []
    for make in (
        lambda **options: grpc.aio.insecure_channel(server.address, **options),
        lambda **options: meshlib.grpc.aio.insecure_channel(TARGET, mesh=mesh.mesh, **options),
    ):
        log: list[Any] = []
        seen.append((asyncio.run(scenario(make, log)), log))
    assert seen[1] == seen[0]
    eventually(lambda: mesh.inflight == 0)


def test_once_per_call_however_many_endpoints_are_tried(mesh: Shop, backends: Backends) -> None:
    """Two of three endpoints refuse: one interception per call, so one span per call."""
    (server,) = backends.grpc(1)
    mesh.serve([server, *(f"127.0.0.20{n}:{free_port(f'127.0.0.20{n}')}" for n in (0, 1))])
    log: list[Any] = []

    async def main() -> None:
        interceptors = [recorder(kind, "one", log) for kind in KINDS]
        async with meshlib.grpc.aio.insecure_channel(
            TARGET, mesh=mesh.mesh, interceptors=interceptors
        ) as channel:
            for _ in range(6):
                assert await channel.unary_unary(UU)(b"x", timeout=10)
                assert len([m async for m in channel.stream_stream(SS)(agen(b"a", b"b"), timeout=10)]) == 2

    asyncio.run(main())
    assert len(log) == 2 * 12
    assert server.requests == 12
    eventually(lambda: mesh.inflight == 0)


def test_several_event_loops(mesh: Shop, backends: Backends) -> None:
    """One channel, used from one loop after the other."""
    mesh.serve(backends.grpc(2))
    log: list[Any] = []
    channel = meshlib.grpc.aio.insecure_channel(
        TARGET, mesh=mesh.mesh, interceptors=[recorder("unary_unary", "one", log)]
    )
    call = channel.unary_unary(UU)

    async def main(last: bool) -> None:
        assert await call(b"x", timeout=10)
        if last:
            await channel.close()

    asyncio.run(main(False))
    asyncio.run(main(True))
    assert len(log) == 4


def test_an_unknown_grpcio_gets_them_per_attempt(
    mesh: Shop, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decision D18: they run all the same, at the endpoints' channels, whose calls tell their end otherwise."""
    monkeypatch.setattr(aio_interceptors, "SUPPORTED", False)
    (server,) = backends.grpc(1)
    mesh.serve([server])
    log: list[Any] = []

    async def main() -> None:
        interceptors = [recorder("unary_unary", "one", log)]
        async with meshlib.grpc.aio.insecure_channel(
            TARGET, mesh=mesh.mesh, interceptors=interceptors
        ) as channel:
            assert type(channel).__name__ == "AioMeshChannel"
            for _ in range(3):
                assert await channel.unary_unary(UU)(b"x", timeout=10)
            assert (await outcome(channel.unary_unary("/test.Echo/Nothing")(b"x", timeout=10)))[
                0
            ] == "AioRpcError"

    asyncio.run(main())
    assert len(log) == 8
    eventually(lambda: mesh.inflight == 0)
    (endpoint,) = mesh.mesh.target(TARGET).status()["endpoints"]
    assert (endpoint["requests"], endpoint["failures"]) == (4, 0)
    assert endpoint["latency"] is not None


def test_the_installed_grpcio_is_known() -> None:
    """The versions that the dependencies allow."""
    assert aio_interceptors.SUPPORTED
