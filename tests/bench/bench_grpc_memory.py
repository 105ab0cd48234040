"""What a thousand endpoints cost a process through gRPC channels: memory, threads, descriptors.

Each channel lives in a process of its own, which says what it holds when it is used for one endpoint and when it is
connected to all. Both are called until every endpoint has a connection.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import grpc

import meshlib.grpc.aio
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.bench.bench_grpc import peer_target
from tests.components.grpc_fast import METHODS, serving
from tests.soak.gauges import MIB, Sample, sample

NAME = "Memory and threads for 1,000 endpoints, gRPC"
TARGETS = "no thread per endpoint"

#: The second figure shows what one more endpoint costs apart from what the first hundred do.
ENDPOINTS = (100, 1000)
METHOD = METHODS["unary_unary"]
#: When a process does not come to an end, seconds.
PATIENCE = 240
Note = Callable[[], None]


def _mesh() -> Mesh:
    return Mesh(config=load_config({"picker": "round_robin"}))


def ours_sync(addresses: Sequence[str], note: Note) -> None:
    with _mesh() as mesh:
        _call(meshlib.grpc.insecure_channel("static:///" + ",".join(addresses), mesh=mesh), addresses, note)


def ours_aio(addresses: Sequence[str], note: Note) -> None:
    async def main() -> None:
        with _mesh() as mesh:
            channel = meshlib.grpc.aio.insecure_channel("static:///" + ",".join(addresses), mesh=mesh)
            await _aio_call(channel, addresses, note)

    asyncio.run(main())


def peer_sync(addresses: Sequence[str], note: Note) -> None:
    target, options = peer_target(addresses)
    _call(grpc.insecure_channel(target, options=options), addresses, note)


def peer_aio(addresses: Sequence[str], note: Note) -> None:
    async def main() -> None:
        target, options = peer_target(addresses)
        await _aio_call(grpc.aio.insecure_channel(target, options=options), addresses, note)

    asyncio.run(main())


def _call(channel: Any, addresses: Sequence[str], note: Note) -> None:
    method = channel.unary_unary(METHOD)
    for _ in range(2 * len(addresses)):
        method(b"x", timeout=60)
    note()
    channel.close()


async def _aio_call(channel: Any, addresses: Sequence[str], note: Note) -> None:
    method = channel.unary_unary(METHOD)
    for _ in range(2 * len(addresses)):
        await method(b"x", timeout=60)
    note()
    await channel.close()


CHANNELS: dict[str, Callable[[Sequence[str], Note], None]] = {
    "sync, meshlib": ours_sync,
    "sync, grpcio round_robin": peer_sync,
    "asyncio, meshlib": ours_aio,
    "asyncio, grpcio round_robin": peer_aio,
}


def apart(name: str, addresses: Sequence[str]) -> list[Sample]:
    """In a process of its own: connected to one endpoint, and to all."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(name, addresses, theirs), daemon=True)
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


def _measure(name: str, addresses: Sequence[str], ours: Connection) -> None:
    samples: list[Sample] = []

    def note() -> None:
        gc.collect()
        samples.append(sample())

    CHANNELS[name](addresses[:1], note)
    CHANNELS[name](addresses, note)
    ours.send(samples)


def row(name: str, count: int, before: Sample, after: Sample) -> list[str]:
    grown = after.memory - before.memory
    return [
        name,
        f"{count:,}",
        f"{grown / MIB:.1f}",
        f"{grown / count / 1024:.0f}",
        str(after.threads - before.threads),
        str(after.descriptors - before.descriptors),
    ]


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """One process per row; what it grew by."""
    rows = []
    for count in ENDPOINTS[:1] if quick else ENDPOINTS:
        with serving(count) as addresses:
            for name in CHANNELS:
                before, after = apart(name, addresses)
                rows.append(row(name, count, before, after))
    return ["channel", "endpoints", "MiB more", "KiB per endpoint", "threads more", "descriptors more"], rows
