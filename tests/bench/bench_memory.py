"""What a thousand endpoints cost a process through HTTP clients: memory, threads, descriptors.

Each client runs in a process of its own, which says what it held before, when the client knew its endpoints, and
when it had a connection to each.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import aiohttp
import httpx

from meshlib.clients.httpx.transport import AsyncMeshTransport, MeshTransport
from tests.bench.bench_http import LIMITS, PATH, hosts, mesh_for, target
from tests.bench.verdict import both
from tests.components.fast_http import FastHttp, allow_descriptors
from tests.components.process import free_port
from tests.soak.gauges import MIB, Sample, sample

NAME = "Memory and threads for 1,000 endpoints, HTTP"
TARGETS = "no thread per endpoint"

ENDPOINTS = 1000
#: Plain httpx looks at every connection for every request: a thousand would take it minutes, and the first would
#: expire meanwhile.
PLAIN_SHARE = 4
URL = f"http://orders.shop.svc{PATH}"
#: Threads of our own: the control thread and what it looks things up with. Far from one per endpoint.
THREADS = 8
#: When a client does not come to an end, seconds.
PATIENCE = 240
Note = Callable[[], None]


def mesh_sync(wire: str, count: int, port: int, note: Note) -> None:
    with mesh_for(wire, count, port) as mesh:
        with httpx.Client(transport=MeshTransport(target(count, port), mesh=mesh, limits=LIMITS)) as client:
            mesh.handles[0].acquire(10).done()
            note()
            for _ in range(count):
                client.get(URL)
            note()


def mesh_aio(wire: str, count: int, port: int, note: Note) -> None:
    async def main() -> None:
        async with mesh_for(wire, count, port) as mesh:
            transport = AsyncMeshTransport(target(count, port), mesh=mesh, limits=LIMITS)
            async with httpx.AsyncClient(transport=transport) as client:
                (await mesh.handles[0].acquire_async(10)).done()
                note()
                for _ in range(count):
                    await client.get(URL)
                note()

    asyncio.run(main())


def plain_sync(wire: str, count: int, port: int, note: Note) -> None:
    """To a part of the endpoints."""
    with httpx.Client(limits=LIMITS) as client:
        note()
        for host in hosts(count):
            client.get(f"http://{host}:{port}{PATH}")
        note()


def plain_aiohttp(wire: str, count: int, port: int, note: Note) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            note()
            for host in hosts(count):
                async with session.get(f"http://{host}:{port}{PATH}") as reply:
                    await reply.read()
            note()

    asyncio.run(main())


#: name: (what to run, wire, whether it is ours)
CLIENTS: dict[str, tuple[Callable[[str, int, int, Note], None], str, bool]] = {
    "sync, meshlib": (mesh_sync, "fast", True),
    "sync, meshlib, wire = httpcore": (mesh_sync, "httpcore", True),
    "sync, httpx": (plain_sync, "", False),
    "asyncio, meshlib": (mesh_aio, "fast", True),
    "asyncio, meshlib, wire = httpcore": (mesh_aio, "httpcore", True),
    "asyncio, aiohttp": (plain_aiohttp, "", False),
}


def apart(name: str, count: int, port: int) -> list[Sample]:
    """In a process of its own: what it held before, knowing the endpoints, and connected to each."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(name, count, port, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE):
            raise TimeoutError(f"{name}: nothing after {PATIENCE} s")
        found: list[Sample] = ours.recv()
    finally:
        process.kill()
        process.join()
        ours.close()
    return found


def _measure(name: str, count: int, port: int, ours: Connection) -> None:
    allow_descriptors()
    run, wire, _ = CLIENTS[name]
    samples: list[Sample] = []

    def note() -> None:
        gc.collect()
        samples.append(sample())

    warm_up(port)
    note()
    run(wire, count, port, note)
    ours.send(samples)


def warm_up(port: int) -> None:
    """Load and use what every client needs once (parsers, encodings, TLS), which is not the endpoints' part."""
    for run, wire in ((mesh_sync, "fast"), (mesh_sync, "httpcore"), (mesh_aio, "fast"), (plain_aiohttp, "")):
        run(wire, 1, port, lambda: None)


def row(name: str, count: int, samples: Sequence[Sample]) -> list[str]:
    before, knowing, connected = samples
    threads = connected.threads - before.threads
    opened = connected.descriptors - before.descriptors
    verdicts = []
    if CLIENTS[name][2]:
        verdicts = [f"no thread per endpoint: {'met' if threads <= THREADS else 'MISSED'}"]
    return [
        name,
        f"{count:,}",
        f"{(knowing.memory - before.memory) / MIB:.1f}",
        f"{(connected.memory - before.memory) / MIB:.1f}",
        f"{(connected.memory - before.memory) / 1024 / count:.1f}",
        str(threads),
        str(opened),
        both(verdicts),
    ]


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """One run of each: memory is not a matter of luck."""
    count = 200 if quick else ENDPOINTS
    most = hosts(count)
    port = free_port(*most[:3])
    with FastHttp(most, port):
        rows = []
        for name, (client, _, _) in CLIENTS.items():
            some = count // PLAIN_SHARE if client is plain_sync else count
            rows.append(row(name, some, apart(name, some, port)))
    header = [
        "",
        "endpoints",
        "known, MiB more",
        "connected, MiB more",
        "KiB per endpoint",
        "threads more",
        "descriptors more",
        "target",
    ]
    return header, rows
