"""Mesh and Target keep their types through the lazy names of the package."""

from typing import assert_type

import meshlib
from meshlib import Endpoint, Mesh, Target
from meshlib.errors import MeshError, NoEndpoints, TargetError


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
