"""What the tests of transparent use share: a Mesh whose sets are published by hand, installed for one test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import meshlib
from meshlib.model.target import TargetDefaults
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.names import UrlTable
from meshlib.testing.manual import ManualResolver
from tests.integration.grpc_support import eventually

SERVICE = "shop/orders"
URL = "http://orders.shop.svc"
#: As a pod of namespace shop has it.
POD = TargetDefaults(
    namespace="shop",
    cluster_domain="cluster.local",
    search=("shop.svc.cluster.local", "svc.cluster.local", "cluster.local"),
    ndots=5,
)


class Installed:
    """``serve`` publishes the endpoints of orders.shop; requests to them are counted where they arrive."""

    def __init__(self, mesh: Mesh, resolver: ManualResolver) -> None:
        self.mesh = mesh
        self.resolver = resolver

    def serve(self, backends: Sequence[Any], service: str = SERVICE, **fields: Any) -> None:
        self.resolver.endpoints(service, [getattr(b, "address", b) for b in backends], **fields)

    def known(self, target: str = "orders.shop.svc:80") -> None:
        """Wait until the set is known, so that the next request does not have to."""
        handle = self.mesh.target(target)
        handle.try_start()
        eventually(lambda: handle.state.settled)


@contextmanager
def mesh_for_tests(**settings: Any) -> Iterator[Installed]:
    resolver = ManualResolver()
    mesh = Mesh(resolvers={"k8s": resolver}, config=load_config({"picker": "round_robin", **settings}))
    mesh.defaults = POD
    mesh._urls = UrlTable(mesh)
    try:
        yield Installed(mesh, resolver)
    finally:
        mesh.close()


@contextmanager
def installed(*, httpx: bool = True, grpc: bool = True, **settings: Any) -> Iterator[Installed]:
    with mesh_for_tests(**settings) as made:
        meshlib.install(mesh=made.mesh, httpx=httpx, grpc=grpc)
        try:
            yield made
        finally:
            meshlib.uninstall()
