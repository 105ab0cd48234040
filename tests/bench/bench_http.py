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

from meshlib.clients.httpx.cookies import shorten
from meshlib.clients.httpx.flavour import load
from meshlib.clients.httpx.wrapping import wrap
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.bench.plots import plot
from tests.bench.verdict import at_least, both
from tests.components.fast_http import FastHttp, allow_descriptors
from tests.components.process import free_port

NAME = "HTTP through httpx"
TARGETS = (
    "sync, 1 / 10 / 100 / 500 endpoints: at least 1.3 / 1.5 / 10 / 200 times plain httpx on the same URLs; "
    "asyncio with 5 endpoints, 1 / 8 / 32 / 128 at a time: at least 2 / 4 / 8 / 15 times; "
    "against aiohttp at 32 and 128: at least 0.45. (httpx with a transport that answers from memory is what no "
    "transport can be faster than.)"
)

#: Endpoints -> how many times plain httpx is aimed at.
SYNC_ENDPOINTS = {1: 1.3, 10: 1.5, 100: 10.0, 500: 200.0}
#: Requests at a time -> the same, by peer.
CONCURRENCY = {
    1: {"httpx": 2.0},
    8: {"httpx": 4.0},
    32: {"httpx": 8.0, "aiohttp": 0.45},
    128: {"httpx": 15.0, "aiohttp": 0.45},
}
AIO_ENDPOINTS = 5
#: No limit of the peers' pools may hide what they cost: room for every endpoint and every task, for all alike.
LIMITS = httpx.Limits(max_connections=2000, max_keepalive_connections=2000, keepalive_expiry=60.0)
WIRES = ("fast", "httpcore")
PATH = "/orders/42"
#: Of the server's reply.
HEADERS = [
    (b"Server", b"bench"),
    (b"Content-Type", b"application/json"),
    (b"Content-Length", b"16"),
    (b"Date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
]


def hosts(count: int) -> list[str]:
    return [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(count)]


#: A name of ours, as an application would write it.
HOST = "http://orders.internal"
URL = f"{HOST}{PATH}"


def target(count: int, port: int) -> str:
    return "static:///" + ",".join(f"{host}:{port}" for host in hosts(count))


def mesh_for(wire: str, count: int, port: int) -> Mesh:
    aliases = {"orders.internal": target(count, port)}
    return Mesh(config=load_config({"wire": wire, "picker": "round_robin", "aliases": aliases}))


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
            mesh = stack.enter_context(mesh_for(wire, endpoints, port))
            client = wrap(stack.enter_context(httpx.Client(limits=LIMITS)), mesh)
            runs[wire] = plain_sync(client, [URL])
        for run in runs.values():
            run(endpoints)
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


class Nothing(httpx.AsyncBaseTransport):
    """Answers at once, without a connection: what is left is httpx's client, the ceiling of every transport."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=HEADERS, stream=httpx.ByteStream(b'{"hello":"mesh"}'))


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
            mesh = await stack.enter_async_context(mesh_for(wire, AIO_ENDPOINTS, port))
            client = wrap(await stack.enter_async_context(httpx.AsyncClient(limits=LIMITS)), mesh)
            runs[wire] = in_tasks(lambda _, client=client: client.get(URL))
        nothing = await stack.enter_async_context(httpx.AsyncClient(transport=Nothing()))
        shorten(nothing, load())
        runs["nothing"] = in_tasks(lambda _: nothing.get(URL))
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


def median_ratio(rates: dict[str, list[float]], theirs: str) -> float:
    return statistics.median(a / b for a, b in zip(rates["fast"], rates[theirs], strict=True))


def row(what: str, rates: dict[str, list[float]], targets: dict[str, float]) -> list[str]:
    """``targets``: by peer."""
    return [
        what,
        f"{statistics.median(rates['httpx']):.0f}/s",
        f"{statistics.median(rates['fast']):.0f}/s",
        ratio(rates, "fast", "httpx"),
        ratio(rates, "httpcore", "httpx"),
        ratio(rates, "fast", "aiohttp"),
        ratio(rates, "nothing", "aiohttp"),
        both([f"{peer} {at_least(median_ratio(rates, peer), target)}" for peer, target in targets.items()]),
    ]


#: What a line of the pictures is called.
NAMES = {"fast": "meshlib", "httpcore": "meshlib, wire = httpcore", "httpx": "httpx", "aiohttp": "aiohttp"}


def lines(measured: dict[int, dict[str, list[float]]]) -> dict[str, list[tuple[float, ...]]]:
    """Of a picture: for each client a point (x, median, lowest, highest) per measurement."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for x, rates in measured.items():
        for name in (one for one in NAMES if one in rates):
            values = rates[name]
            point = (x, statistics.median(values), min(values), max(values))
            found.setdefault(NAMES[name], []).append(point)
    return found


def run(quick: bool) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """Medians and spread over rounds."""
    rounds, seconds = (3, 0.2) if quick else (7, 0.5)
    most = hosts(max(SYNC_ENDPOINTS))
    port = free_port(*most[:3])
    sync: dict[int, dict[str, list[float]]] = {}
    aio: dict[int, dict[str, list[float]]] = {}
    allow_descriptors()
    with FastHttp(most, port):
        for endpoints in SYNC_ENDPOINTS:
            sync[endpoints] = sync_rates(endpoints, port, rounds, seconds)
        for at_once in CONCURRENCY:
            aio[at_once] = asyncio.run(aio_rates(at_once, port, rounds, seconds))
    rows = [
        row(f"sync, {count} endpoint{'s' * (count > 1)}", rates, {"httpx": SYNC_ENDPOINTS[count]})
        for count, rates in sync.items()
    ]
    rows += [
        row(f"asyncio, {count} at a time, {AIO_ENDPOINTS} endpoints", rates, CONCURRENCY[count])
        for count, rates in aio.items()
    ]
    pictures = [
        plot(
            "http-endpoints",
            "HTTP throughput of one thread, by number of endpoints",
            "endpoints",
            "requests per second",
            lines(sync),
        ),
        plot(
            "http-concurrency",
            f"HTTP throughput of one event loop with {AIO_ENDPOINTS} endpoints, by concurrency",
            "requests at a time",
            "requests per second",
            lines(aio),
        ),
    ]
    header = [
        "",
        "httpx",
        "wire = fast",
        "fast / httpx",
        "wire = httpcore / httpx",
        "fast / aiohttp",
        "httpx without a transport / aiohttp",
        "target",
    ]
    return header, rows, pictures
