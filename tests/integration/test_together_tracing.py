"""install() together with OpenTelemetry's httpx and grpc instrumentation, in either order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import httpx
import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import meshlib
import meshlib.grpc.aio
from tests.components.backends import Backends
from tests.integration.grpc_support import US, UU, eventually
from tests.integration.install_support import URL, Installed, mesh_for_tests

ORDERS = ["tracing first", "mesh first"]
TARGETS = ["k8s:///orders.shop:80", "orders.shop.svc:80"]


def exporting() -> InMemorySpanExporter:
    """What spans end in. The instrumentation of grpc's channels knows only the process's own provider."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """A Mesh that is not installed yet."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http/dup")  # both generations of attribute names
    monkeypatch.setattr(_OpenTelemetrySemanticConventionStability, "_initialized", False)
    with mesh_for_tests() as made:
        yield made
    monkeypatch.setattr(_OpenTelemetrySemanticConventionStability, "_initialized", False)


@contextmanager
def traced(mesh: Installed, order: str, *instrumentors: Any) -> Iterator[InMemorySpanExporter]:
    """Both, in that order; taken off in the reverse order."""
    exporter = exporting()

    def observe(stack: ExitStack) -> None:
        for kind in instrumentors:
            kind().instrument()
            stack.callback(kind().uninstrument)

    def balance(stack: ExitStack) -> None:
        meshlib.install(mesh=mesh.mesh)
        stack.callback(meshlib.uninstall)

    steps: list[Callable[[ExitStack], None]] = [observe, balance]
    with ExitStack() as stack:
        for step in steps if order == "tracing first" else reversed(steps):
            step(stack)
        yield exporter


def no_address_in(span: Any, backends: list[Any]) -> bool:
    text = repr((span.name, dict(span.attributes), [dict(event.attributes) for event in span.events]))
    return not any(backend.host in text for backend in backends)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "library, instrumentor",
    [(httpx, HTTPXClientInstrumentor), (httpx2, HTTPX2ClientInstrumentor)],
    ids=["httpx", "httpx2"],
)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_httpx(
    mesh: Installed, backends: Backends, order: str, library: Any, instrumentor: Any, colour: str
) -> None:
    """One span per request, also when an endpoint refused; the logical name, no pod address; the trace goes on."""
    servers = backends.http(2)
    servers[0].stop()
    mesh.serve(servers)
    mesh.known()

    async def ask() -> None:
        async with library.AsyncClient() as client:
            for _ in range(3):
                assert (await client.get(f"{URL}/a")).status_code == 200

    with traced(mesh, order, instrumentor) as exporter:
        if colour == "async":
            asyncio.run(ask())
        else:
            with library.Client() as client:
                for _ in range(3):
                    assert client.get(f"{URL}/a").status_code == 200
        spans = exporter.get_finished_spans()
    assert len(spans) == 3
    for span in spans:
        assert span.attributes["server.address"] == "orders.shop.svc"
        assert span.attributes["url.full"] == span.attributes["http.url"] == f"{URL}/a"
        assert no_address_in(span, servers)
    ids = {f"{span.context.trace_id:032x}" for span in spans}
    assert {dict(got.headers)["traceparent"].split("-")[1] for got in servers[1].received} == ids
    assert "_pool" not in vars(library.HTTPTransport)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", TARGETS)
def test_grpc(mesh: Installed, backends: Backends, order: str, target: str) -> None:
    """One span per call, unary and streaming, also when an endpoint refused; metadata carries the trace."""
    servers = backends.grpc(2)
    servers[0].stop()
    mesh.serve(servers)
    mesh.known()
    original = grpc.insecure_channel
    with traced(mesh, order, GrpcInstrumentorClient) as exporter:
        with grpc.insecure_channel(target) as channel:
            call = channel.unary_unary(UU)
            for _ in range(3):
                assert call(b"x", timeout=10).startswith(servers[1].name.encode())
            assert call.future(b"x", timeout=10).result(10)
            assert len(list(channel.unary_stream(US)(b"x", timeout=10))) == 5
            with_call = call.with_call(b"x", timeout=10)[1]
            assert "x-got-traceparent" in dict(with_call.initial_metadata())
        eventually(lambda: len(exporter.get_finished_spans()) == 6)
        spans = exporter.get_finished_spans()
    assert [span.name for span in spans].count(UU) == 5
    assert all(no_address_in(span, servers) for span in spans)
    assert grpc.insecure_channel is original


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", TARGETS)
def test_grpc_aio(mesh: Installed, backends: Backends, order: str, target: str) -> None:
    """The same for grpc.aio."""
    servers = backends.grpc(2)
    servers[0].stop()
    mesh.serve(servers)
    mesh.known()
    original = grpc.aio.insecure_channel

    async def ask() -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            call = channel.unary_unary(UU)
            for _ in range(4):
                assert await call(b"x", timeout=10)
            assert len([m async for m in channel.unary_stream(US)(b"x", timeout=10)]) == 5

    with traced(mesh, order, GrpcAioInstrumentorClient) as exporter:
        asyncio.run(ask())
        spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [UU] * 4 + [US]
    assert all(no_address_in(span, servers) for span in spans)
    assert servers[1].requests == 5
    assert grpc.aio.insecure_channel is original


def test_explicit_channels(mesh: Installed, backends: Backends) -> None:
    """meshlib.grpc's own functions are traced as grpc's are: once per call, endpoints that refuse included."""
    servers = backends.grpc(2)
    servers[0].stop()
    mesh.serve(servers)
    mesh.known()
    with traced(mesh, "tracing first", GrpcInstrumentorClient, GrpcAioInstrumentorClient) as exporter:
        with meshlib.grpc.insecure_channel(TARGETS[0], mesh=mesh.mesh) as channel:
            for _ in range(3):
                assert channel.unary_unary(UU)(b"x", timeout=10)
            assert channel.unary_unary(UU).future(b"x", timeout=10).result(10)
            assert len(list(channel.unary_stream(US)(b"x", timeout=10))) == 5
        eventually(lambda: len(exporter.get_finished_spans()) == 5)

        async def ask() -> None:
            async with meshlib.grpc.aio.insecure_channel(TARGETS[0], mesh=mesh.mesh) as channel:
                for _ in range(3):
                    assert await channel.unary_unary(UU)(b"x", timeout=10)

        asyncio.run(ask())
        assert len(exporter.get_finished_spans()) == 8
        assert all(no_address_in(span, servers) for span in exporter.get_finished_spans())


def test_taking_off_crosswise(mesh: Installed, backends: Backends) -> None:
    """Whichever goes first, the other one stays in force: the two do not hold on to each other."""
    (server,) = backends.grpc(1)
    mesh.serve([server])
    mesh.known()

    def spans_of_a_call() -> int:
        exporter.clear()
        with grpc.insecure_channel(TARGETS[0]) as channel:
            assert channel.unary_unary(UU)(b"x", timeout=10)
        return len(exporter.get_finished_spans())

    exporter = exporting()
    tracing = GrpcInstrumentorClient()
    tracing.instrument()
    meshlib.install(mesh=mesh.mesh)
    try:
        assert spans_of_a_call() == 1
        tracing.uninstrument()
        assert spans_of_a_call() == 0
        tracing.instrument()
        assert spans_of_a_call() == 1
        meshlib.uninstall()
        with grpc.insecure_channel(server.address) as channel:
            assert channel.unary_unary(UU)(b"x", timeout=10)
        assert len(exporter.get_finished_spans()) == 2
    finally:
        meshlib.uninstall()
        tracing.uninstrument()
