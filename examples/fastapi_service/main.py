"""A FastAPI service that calls another Service through meshlib.

    uvicorn main:app

ORDERS_TARGET says whom it calls: `k8s:///orders.shop:http` in the cluster, `static:///127.0.0.1:9000` on a laptop.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, HTTPException, Response

import meshlib

ORDERS = os.environ.get("ORDERS_TARGET", "k8s:///orders.shop:http")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # The URL's host stays what you write here: it is the Host header and, with https, the verified name.
    app.state.orders = httpx.AsyncClient(
        transport=meshlib.AsyncMeshTransport(ORDERS), base_url="http://orders.shop.svc"
    )
    async with app.state.orders:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/orders/{number}")
async def order(number: int) -> Response:
    try:
        reply = await app.state.orders.get(f"/orders/{number}")
    except httpx.ConnectError as error:
        # error.__cause__ says why: meshlib.errors.NoEndpoints, ServiceNotFound, NotSynced ...
        raise HTTPException(503, f"orders is not available: {error}") from error
    return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))


@app.get("/readyz")
async def ready() -> dict[str, str]:
    """For the readiness probe: discovery has spoken about the Service (an empty one counts)."""
    try:
        await meshlib.ready([ORDERS], timeout=1.0)
    except meshlib.errors.NotSynced as error:
        raise HTTPException(503, str(error)) from error
    return {"status": "ready"}
