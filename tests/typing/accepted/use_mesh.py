"""Mesh and Target keep their types through the lazy names of the package."""

from typing import assert_type

import meshlib
from meshlib import Endpoint, Mesh, Target
from meshlib.errors import MeshError, NoEndpoints, TargetError
from meshlib.testing import ManualResolver


def sync_use() -> str:
    with Mesh(strict=True) as mesh, mesh.target("k8s:///orders.shop:http").pick(timeout=1.0) as endpoint:
        assert_type(mesh, Mesh)
        assert_type(endpoint, Endpoint)
        assert_type(endpoint.port, int)
        return endpoint.authority


async def async_use() -> Endpoint:
    async with Mesh() as mesh:
        await meshlib.ready(["k8s:///orders.shop:http"])
        async with mesh.target(Target.parse("static:///10.0.0.1:80")).pick(hash_key="user-1") as endpoint:
            assert_type(endpoint, Endpoint)
            return endpoint


def errors_are_ordinary() -> tuple[type[Exception], ...]:
    assert issubclass(TargetError, ValueError)
    return (MeshError, NoEndpoints)


def own_discovery() -> str:
    resolver = ManualResolver("k8s")
    resolver.endpoints("shop/orders", ["10.0.0.1:8080"])
    config = meshlib.load_config(
        {"picker": "round_robin", "aliases": {"orders.local": "k8s:///orders.shop:80"}}
    )
    assert_type(config, meshlib.Config)
    with Mesh(config=config, resolvers={"k8s": resolver}) as mesh:
        handle = mesh.target("k8s:///orders.shop:80", authority="orders.example")
        with handle.pick(hash_key=b"user-1") as endpoint:
            return endpoint.address


async def readiness() -> None:
    assert_type(meshlib.default_mesh(), Mesh)
    await meshlib.ready("k8s:///orders.shop:http", timeout=1.0, mesh=meshlib.default_mesh())
