"""httpx with meshlib, straight to the endpoints, against plain httpx through HAProxy and nginx on the same machine.

All run in this process in turns against one server process; each round measures every way once, and a ratio is taken
within its round. The sidecar is a process of its own, as it is in a pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple

import httpx

from meshlib.clients.httpx.wrapping import wrap
from tests.bench.bench_http import AIO_ENDPOINTS, HOST, LIMITS, PATH, hosts, mesh_for, sized
from tests.bench.verdict import at_least, both, less_than
from tests.components.fast_http import FastHttp
from tests.components.process import NotAvailable, free_port
from tests.components.sidecars import KINDS, Sidecar

NAME = "HTTP: direct, and through a sidecar"
TARGETS = "meshlib direct: at least 1.5 times the requests per second, and a lower p99"

DIRECT = "meshlib"
FACTOR = 1.5
AT_ONCE = 32


class Took(NamedTuple):
    """Of one way in one round: requests per second, and the 99th percentile of their seconds."""

    rate: float
    p99: float


def took(start: float, times: list[float]) -> Took:
    rate = len(times) / (time.perf_counter() - start)
    return Took(rate, statistics.quantiles(times, n=100, method="inclusive")[98])


def sidecars(port: int) -> Iterator[tuple[str, Sidecar]]:
    """Those that are installed."""
    for kind in KINDS:
        try:
            yield kind, Sidecar(kind, [f"{host}:{port}" for host in hosts(AIO_ENDPOINTS)])
        except NotAvailable as missing:
            print(f"left out: {missing}")


# sync


def in_a_row(client: httpx.Client, url: str, requests: int) -> Took:
    times = []
    start = last = time.perf_counter()
    for _ in range(requests):
        client.get(url)
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return took(start, times)


def sync_ways(urls: dict[str, str], port: int, rounds: int, seconds: float) -> dict[str, list[Took]]:
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(mesh_for("fast", AIO_ENDPOINTS, port))
        direct = wrap(stack.enter_context(httpx.Client(limits=LIMITS)), mesh)
        clients = {DIRECT: (direct, HOST)}
        for kind, url in urls.items():
            clients[kind] = (stack.enter_context(httpx.Client(limits=LIMITS)), url)
        sizes = {}
        for way, (client, url) in clients.items():
            in_a_row(client, url + PATH, 50)
            sizes[way] = max(100, sized(50 / in_a_row(client, url + PATH, 50).rate, 50, seconds))
        found: dict[str, list[Took]] = {way: [] for way in clients}
        for _ in range(rounds):
            for way, (client, url) in clients.items():
                gc.collect()
                found[way].append(in_a_row(client, url + PATH, sizes[way]))
    return found


# asyncio


async def at_once(get: Callable[[], Awaitable[object]], requests: int) -> Took:
    left = itertools.repeat(None, requests)
    times: list[float] = []

    async def work() -> None:
        for _ in left:
            begin = time.perf_counter()
            await get()
            times.append(time.perf_counter() - begin)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return took(start, times)


@contextlib.asynccontextmanager
async def aio_clients(
    urls: dict[str, str], port: int
) -> AsyncIterator[dict[str, Callable[[], Awaitable[object]]]]:
    async with contextlib.AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(mesh_for("fast", AIO_ENDPOINTS, port))
        direct = wrap(await stack.enter_async_context(httpx.AsyncClient(limits=LIMITS)), mesh)
        clients: dict[str, Callable[[], Awaitable[object]]] = {DIRECT: lambda: direct.get(HOST + PATH)}
        for kind, url in urls.items():
            client = await stack.enter_async_context(httpx.AsyncClient(limits=LIMITS))
            clients[kind] = lambda client=client, url=url: client.get(url + PATH)
        yield clients


async def aio_ways(urls: dict[str, str], port: int, rounds: int, seconds: float) -> dict[str, list[Took]]:
    async with aio_clients(urls, port) as clients:
        sizes = {}
        for way, get in clients.items():
            await at_once(get, 100)
            sizes[way] = max(200, sized(200 / (await at_once(get, 200)).rate, 200, seconds))
        found: dict[str, list[Took]] = {way: [] for way in clients}
        for _ in range(rounds):
            for way, get in clients.items():
                gc.collect()
                found[way].append(await at_once(get, sizes[way]))
    return found


# the table


def row(what: str, kind: str, found: dict[str, list[Took]]) -> list[str]:
    ours, theirs = found[DIRECT], found[kind]
    ratios = sorted(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))
    tails = sorted(a.p99 / b.p99 for a, b in zip(ours, theirs, strict=True))
    factor, tail = statistics.median(ratios), statistics.median(tails)
    return [
        f"{what}, {kind}",
        f"{statistics.median(one.rate for one in theirs):.0f}/s",
        f"{statistics.median(one.rate for one in ours):.0f}/s",
        f"{factor:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        f"{statistics.median(one.p99 for one in theirs) * 1000:.2f}",
        f"{statistics.median(one.p99 for one in ours) * 1000:.2f}",
        f"{tail:.2f} ({tails[0]:.2f} to {tails[-1]:.2f})",
        both([at_least(factor, FACTOR), less_than(tail, 1.0, "lower p99")]),
    ]


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """Medians and spread over rounds."""
    rounds, seconds = (3, 0.2) if quick else (9, 0.5)
    most = hosts(AIO_ENDPOINTS)
    port = free_port(*most)
    rows = []
    with FastHttp(most, port), contextlib.ExitStack() as stack:
        urls = {kind: stack.enter_context(sidecar) for kind, sidecar in sidecars(port)}
        sync = sync_ways(urls, port, rounds, seconds)
        rows += [row("sync", kind, sync) for kind in urls]
        aio = asyncio.run(aio_ways(urls, port, rounds, seconds))
        rows += [row(f"asyncio, {AT_ONCE} at a time", kind, aio) for kind in urls]
    header = [
        "httpx",
        "through it",
        "meshlib direct",
        "direct / through it",
        "p99 through it, ms",
        "p99 direct, ms",
        "p99 direct / through it",
        "target",
    ]
    return header, rows
