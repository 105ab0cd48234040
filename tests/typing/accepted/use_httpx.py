"""wrap() gives back the type it was given; the transports fit where httpx wants one."""

from typing import assert_type

import httpx

import meshlib


def sync_client() -> int:
    client = meshlib.wrap(httpx.Client(base_url="http://orders.shop.svc"))
    assert_type(client, httpx.Client)
    with httpx.Client(transport=meshlib.MeshTransport()) as other:
        return other.get("http://orders.shop.svc/").status_code


class OwnClient(httpx.AsyncClient):
    pass


async def async_client() -> int:
    assert_type(meshlib.wrap(OwnClient()), OwnClient)
    async with httpx.AsyncClient(mounts={"http://": meshlib.AsyncMeshTransport()}) as client:
        return (await client.get("http://orders.shop.svc/")).status_code
