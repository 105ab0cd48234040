"""install and uninstall, and httpx2 clients."""

from typing import assert_type

import httpx2

import meshlib
import meshlib.httpx2


def install() -> None:
    meshlib.install()
    meshlib.install(mesh=meshlib.Mesh(), httpx=True, grpc=False)
    meshlib.uninstall()


def wrapped() -> int:
    client = meshlib.httpx2.wrap(httpx2.Client(base_url="http://orders.shop.svc"))
    assert_type(client, httpx2.Client)
    assert_type(meshlib.httpx2.unwrap(client), httpx2.Client)
    with httpx2.Client(transport=meshlib.httpx2.MeshTransport("k8s:///orders.shop:http")) as other:
        return other.get("http://orders.shop.svc/").status_code


async def async_client() -> int:
    async with httpx2.AsyncClient(transport=meshlib.httpx2.AsyncMeshTransport()) as client:
        return (await client.get("http://orders.shop.svc/")).status_code
