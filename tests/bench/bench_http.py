"""Requests per second through httpx: meshlib's wires, plain httpx on the same addresses, and aiohttp.

All clients run in this process in turns, against one server process; each round measures every client once, and a
ratio is taken within its round, so that what else the machine does falls on both.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import httpx

from meshlib.clients.httpx.transport import AsyncMeshTransport, MeshTransport
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.components.fast_http import FastHttp
from tests.components.process import free_port

NAME = "HTTP through httpx"
TARGETS = (
    "sync, 1 / 10 / 100 / 500 endpoints: at least 1.3 / 1.5 / 10 / 200 times plain httpx on the same URLs; "
    "asyncio with 5 endpoints, 1 / 8 / 32 / 128 at a time: at least 2 / 4 / 8 / 15 times; "
    "against aiohttp at 32 and 128: at least 0.45"
)

SYNC_ENDPOINTS = (1, 10, 100, 500)
CONCURRENCY = (1, 8, 32, 128)
AIO_ENDPOINTS = 5
#: No limit of the peers' pools may hide what they cost: room for every endpoint and every task, for all alike.
LIMITS = httpx.Limits(max_connections=2000, max_keepalive_connections=2000, keepalive_expiry=60.0)
WIRES = ("fast", "httpcore")
PATH = "/orders/42"


def hosts(count: int) -> list[str]:
    return [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(count)]


def mesh_for(wire: str) -> Mesh:
    return Mesh(config=load_config({"wire": wire, "picker": "round_robin"}))


def target(count: int, port: int) -> str:
    return "static:///" + ",".join(f"{host}:{port}" for host in hosts(count))


# sync

Run = Callable[[int], float]


def plain_sync(client: httpx.Client, urls: list[str]) -> Run:
    def run(requests: int) -> float:
        start = time.perf_counter()
        for number in range(requests):
            client.get(urls[number % len(urls)])
        return time.perf_counter() - start

    return run


@contextlib.contextmanager
def sync_clients(endpoints: int, port: int) -> Iterator[dict[str, Run]]:
    """By name; warm: every connection is open."""
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(httpx.Client(limits=LIMITS))
        runs = {"httpx": plain_sync(bare, [f"http://{host}:{port}{PATH}" for host in hosts(endpoints)])}
        for wire in WIRES:
            mesh = stack.enter_context(mesh_for(wire))
            transport = MeshTransport(target(endpoints, port), mesh=mesh, limits=LIMITS)
            client = stack.enter_context(httpx.Client(transport=transport))
            runs[wire] = plain_sync(client, [f"http://orders.shop.svc{PATH}"])
        for run in runs.values():
            run(2 * endpoints)
        yield runs


def sync_rates(endpoints: int, port: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Requests per second of each client in each round."""
    with sync_clients(endpoints, port) as runs:
        sizes = {
            name: sized(run(max(20, endpoints // 5)), max(20, endpoints // 5), seconds)
            for name, run in runs.items()
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                gc.collect()
                rates[name].append(sizes[name] / run(sizes[name]))
    return rates


def sized(took: float, requests: int, seconds: float) -> int:
    """How many requests take about so long; bounded below, as one connection per endpoint needs a few."""
    return max(20, int(requests / took * seconds))


# asyncio

AioRun = Callable[[int, int], Any]


def in_tasks(get: Callable[[int], Any]) -> AioRun:
    async def run(requests: int, at_once: int) -> float:
        numbers = iter(range(requests))

        async def work() -> None:
            for number in numbers:
                await get(number)

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(at_once)))
        return time.perf_counter() - start

    return run


@contextlib.asynccontextmanager
async def aio_clients(port: int) -> AsyncIterator[dict[str, AioRun]]:
    async with contextlib.AsyncExitStack() as stack:
        urls = [f"http://{host}:{port}{PATH}" for host in hosts(AIO_ENDPOINTS)]
        bare = await stack.enter_async_context(httpx.AsyncClient(limits=LIMITS))
        runs = {"httpx": in_tasks(lambda number: bare.get(urls[number % AIO_ENDPOINTS]))}
        for wire in WIRES:
            mesh = await stack.enter_async_context(mesh_for(wire))
            transport = AsyncMeshTransport(target(AIO_ENDPOINTS, port), mesh=mesh, limits=LIMITS)
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport))
            runs[wire] = in_tasks(lambda _, client=client: client.get(f"http://orders.shop.svc{PATH}"))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, use_dns_cache=False))
        )

        async def get(number: int) -> None:
            async with session.get(urls[number % AIO_ENDPOINTS]) as reply:
                await reply.read()

        runs["aiohttp"] = in_tasks(get)
        yield runs


async def aio_rates(at_once: int, port: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    async with aio_clients(port) as runs:
        sizes = {}
        for name, run in runs.items():
            await run(2 * at_once, at_once)
            sizes[name] = max(2 * at_once, sized(await run(4 * at_once, at_once), 4 * at_once, seconds))
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                gc.collect()
                rates[name].append(sizes[name] / await run(sizes[name], at_once))
    return rates


# the table


def ratio(rates: dict[str, list[float]], ours: str, theirs: str) -> str:
    """Median and spread of the ratios of each round."""
    if theirs not in rates:
        return ""
    found = sorted(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def row(what: str, rates: dict[str, list[float]]) -> list[str]:
    return [
        what,
        f"{statistics.median(rates['httpx']):.0f}/s",
        f"{statistics.median(rates['fast']):.0f}/s",
        ratio(rates, "fast", "httpx"),
        ratio(rates, "httpcore", "httpx"),
        ratio(rates, "fast", "aiohttp"),
    ]


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """Medians and spread over rounds."""
    rounds, seconds = (3, 0.2) if quick else (9, 0.7)
    most = hosts(max(SYNC_ENDPOINTS))
    port = free_port(*most[:3])
    rows = []
    with FastHttp(most, port):
        for endpoints in SYNC_ENDPOINTS:
            rows.append(row(f"sync, {endpoints} endpoints", sync_rates(endpoints, port, rounds, seconds)))
        for at_once in CONCURRENCY:
            rates = asyncio.run(aio_rates(at_once, port, rounds, seconds))
            rows.append(row(f"asyncio, {at_once} at a time, {AIO_ENDPOINTS} endpoints", rates))
    return ["", "httpx", "wire = fast", "fast / httpx", "wire = httpcore / httpx", "fast / aiohttp"], rows
