"""Mode observe changes nothing: the scenarios of the differential tests, bare and watched, end alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

import meshlib
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.testing.manual import ManualResolver
from tests.components.backends import Backends
from tests.integration.test_grpc_differential import AIO, SYNC, aoutcome, outcome
from tests.integration.test_grpc_differential import address as address  # a fixture
from tests.integration.test_httpx_scenarios import SCENARIOS, Way, run


@contextmanager
def observing(**settings: Any) -> Iterator[Mesh]:
    """A Mesh that knows orders.shop, with an endpoint that nothing must ever be sent to."""
    resolver = ManualResolver()
    resolver.endpoints("shop/orders", ["192.0.2.1:80"])
    with Mesh(config=load_config({"mode": "observe", **settings}, {}), resolvers={"k8s": resolver}) as mesh:
        yield mesh


def watched(mesh: Mesh) -> int:
    return sum(target.counts().bare_observe for target in mesh.rollout.targets)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_an_httpx_caller_sees_no_difference(backends: Backends, scenario: Any, asynchronous: bool) -> None:
    """What was seen, and what arrived."""
    way = Way("fast")
    bare = run(scenario, httpx, asynchronous, way, "bare", backends)
    with observing() as mesh:
        ours = run(scenario, httpx, asynchronous, way, "fast", backends, mesh)
        assert ours[:2] == bare[:2]
        assert watched(mesh) >= len(ours[1]) - 2  # some scenarios send one or two elsewhere


@contextmanager
def installed(address: str) -> Iterator[Mesh]:
    with observing(aliases={address: "k8s:///orders.shop:80"}) as mesh:
        meshlib.install(mesh=mesh, httpx=False)
        try:
            yield mesh
        finally:
            meshlib.uninstall()


@pytest.mark.parametrize("name", SYNC)
def test_a_grpc_caller_sees_no_difference(name: str, address: str) -> None:
    """Results, errors, metadata, futures, streams, close()."""

    def seen() -> Any:
        channel = grpc.insecure_channel(address)
        try:
            return outcome(lambda: SYNC[name](channel))
        finally:
            channel.close()

    bare = seen()
    with installed(address) as mesh:
        assert seen() == bare
        assert watched(mesh) >= 1


@pytest.mark.parametrize("name", AIO)
def test_a_grpc_aio_caller_sees_no_difference(name: str, address: str) -> None:
    """The same for grpc.aio."""

    async def seen(make: Callable[[], Any]) -> Any:
        channel = make()
        try:
            return await asyncio.wait_for(aoutcome(lambda: AIO[name](channel)), 30)
        finally:
            await channel.close()

    bare = asyncio.run(seen(lambda: grpc.aio.insecure_channel(address)))
    with installed(address) as mesh:
        assert asyncio.run(seen(lambda: grpc.aio.insecure_channel(address))) == bare
        assert watched(mesh) >= 1
