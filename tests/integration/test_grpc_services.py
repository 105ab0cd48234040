"""The standard services, through their own generated stubs: health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from tests.integration.grpc_support import Shop, shop

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def mesh() -> Iterator[Shop]:
    with shop() as made:
        yield made


@contextmanager
def standard_services() -> Iterator[tuple[str, health.HealthServicer]]:
    """A server with both: its address, and the knob of its health."""
    servicer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(8))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait(10)


def listed(channel: Any) -> list[str]:
    """The names of the services, asked over a stream in both directions."""
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
    ]
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    names, file = list(stub.ServerReflectionInfo(iter(requests), timeout=20))
    assert file.file_descriptor_response.file_descriptor_proto
    return sorted(service.name for service in names.list_services_response.service)


def test_reflection(mesh: Shop) -> None:
    """The same answers as over a bare channel."""
    with standard_services() as (address, _):
        mesh.serve([address])
        with grpc.insecure_channel(address) as bare:
            assert listed(mesh.channel()) == listed(bare) == [health.SERVICE_NAME, reflection.SERVICE_NAME]


def test_health_check_and_watch(mesh: Shop) -> None:
    """A watch tells changes as they come, until it is cancelled; an unknown service is NOT_FOUND."""
    with standard_services() as (address, servicer):
        mesh.serve([address])
        stub = health_pb2_grpc.HealthStub(mesh.channel())
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        servicer.set("", NOT_SERVING)
        assert next(watch).status == NOT_SERVING
        assert watch.cancel()
        assert watch.code() is grpc.StatusCode.CANCELLED


def test_asyncio_health_watch(mesh: Shop) -> None:
    """The same stubs on a grpc.aio channel."""

    async def calls(servicer: health.HealthServicer) -> None:
        channel = mesh.aio_channel()
        watch: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (await watch.read()).status == SERVING
        servicer.set("", NOT_SERVING)
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        assert await watch.code() is grpc.StatusCode.CANCELLED
        await channel.close()

    with standard_services() as (address, servicer):
        mesh.serve([address])
        asyncio.run(calls(servicer))
