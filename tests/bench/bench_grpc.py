"""gRPC calls per second: a mesh channel, and grpcio's own round_robin over the same addresses.

Both run in this process in turns, against servers in processes of their own; each round measures each once, in
alternating order, and a ratio is taken within its round, so that what else the machine does falls on both. The second
ratio is of the processor time that the client's process took, which neighbours disturb less.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grpc

import meshlib.grpc.aio
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from tests.components.grpc_fast import METHODS, serving

NAME = "gRPC calls"
TARGETS = (
    "at least 0.97 times grpcio's own round_robin on the same addresses, sync and asyncio, every kind of call"
)

ENDPOINTS = (3, 100)
#: Messages of one stream, in each direction that streams.
MESSAGES = 50
CONCURRENT = 16
#: round_robin is what grpcio can be compared in; peak_ewma is what users get.
PICKERS = ("round_robin", "peak_ewma")
PEER = "grpcio"


class Took(NamedTuple):
    """Seconds of one measurement: on the wall, and of this process's processor time."""

    wall: float
    cpu: float


def peer_target(addresses: Sequence[str]) -> tuple[str, list[tuple[str, Any]]]:
    """Its ``:authority`` would be the whole list, a header of kilobytes, which nobody wants to measure."""
    return "ipv4:" + ",".join(addresses), [
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.default_authority", "bench"),
    ]


def requests() -> Iterator[bytes]:
    return iter([b"x"] * MESSAGES)


# sync

Call = Callable[[], object]


def sync_call(channel: Any, kind: str) -> Call:
    method = getattr(channel, kind)(METHODS[kind])
    return {
        "unary_unary": lambda: method(b"x"),
        "unary_stream": lambda: [None for _ in method(b"%d" % MESSAGES)],
        "stream_unary": lambda: method(requests()),
        "stream_stream": lambda: [None for _ in method(requests())],
    }[kind]


@contextlib.contextmanager
def sync_calls(addresses: Sequence[str], kind: str) -> Iterator[dict[str, Call]]:
    with contextlib.ExitStack() as stack:
        target, options = peer_target(addresses)
        channels: dict[str, Any] = {PEER: stack.enter_context(grpc.insecure_channel(target, options=options))}
        for picker in PICKERS:
            mesh = stack.enter_context(Mesh(config=load_config({"picker": picker})))
            channel = meshlib.grpc.insecure_channel("static:///" + ",".join(addresses), mesh=mesh)
            channels[picker] = stack.enter_context(channel)
        yield {name: sync_call(channel, kind) for name, channel in channels.items()}


def sync_rounds(addresses: Sequence[str], kind: str, rounds: int, seconds: float) -> dict[str, list[Took]]:
    """What so many calls took, for each channel in each round."""
    with sync_calls(addresses, kind) as calls:

        def run(name: str, times: int) -> Took:
            call = calls[name]
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(times):
                call()
            return Took(time.perf_counter() - wall, time.process_time() - cpu)

        for name in calls:
            run(name, 4 * len(addresses))  # by chance, too, every endpoint is connected then
        times = sized(run(PEER, 50).wall / 50, seconds)
        took: dict[str, list[Took]] = {name: [] for name in calls}
        for number in range(rounds):
            for name in in_turn(list(calls), number):
                took[name].append(run(name, times))
    return took


# asyncio

AioCall = Callable[[], Any]


def aio_call(channel: Any, kind: str) -> AioCall:
    method = getattr(channel, kind)(METHODS[kind])

    async def read(call: Any) -> None:
        async for _ in call:
            pass

    return {
        "unary_unary": lambda: method(b"x"),
        "unary_stream": lambda: read(method(b"%d" % MESSAGES)),
        "stream_unary": lambda: method(requests()),
        "stream_stream": lambda: read(method(requests())),
    }[kind]


@contextlib.asynccontextmanager
async def aio_calls(addresses: Sequence[str], kind: str) -> AsyncIterator[dict[str, AioCall]]:
    async with contextlib.AsyncExitStack() as stack:
        target, options = peer_target(addresses)
        bare = grpc.aio.insecure_channel(target, options=options)
        channels: dict[str, Any] = {PEER: await stack.enter_async_context(bare)}
        for picker in PICKERS:
            mesh = stack.enter_context(Mesh(config=load_config({"picker": picker})))
            channel = meshlib.grpc.aio.insecure_channel("static:///" + ",".join(addresses), mesh=mesh)
            channels[picker] = await stack.enter_async_context(channel)
        yield {name: aio_call(channel, kind) for name, channel in channels.items()}


async def aio_rounds(
    addresses: Sequence[str], kind: str, at_once: int, rounds: int, seconds: float
) -> dict[str, list[Took]]:
    async with aio_calls(addresses, kind) as calls:

        async def run(name: str, times: int) -> Took:
            call, left = calls[name], iter(range(times))

            async def work() -> None:
                for _ in left:
                    await call()

            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            await asyncio.gather(*(work() for _ in range(at_once)))
            return Took(time.perf_counter() - wall, time.process_time() - cpu)

        for name in calls:
            await run(name, 4 * len(addresses))
        times = sized((await run(PEER, 50)).wall / 50, seconds)
        took: dict[str, list[Took]] = {name: [] for name in calls}
        for number in range(rounds):
            for name in in_turn(list(calls), number):
                took[name].append(await run(name, times))
    return took


# the table


def sized(each: float, seconds: float) -> int:
    return max(10, int(seconds / each))


def in_turn(names: list[str], number: int) -> list[str]:
    """Who goes first changes from round to round."""
    first = number % len(names)
    return names[first:] + names[:first]


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Median and quartiles of the ratios of each round; above 1: we are faster."""
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def row(what: str, endpoints: int, took: dict[str, list[Took]]) -> list[str]:
    peer = took[PEER]
    cells = [what, str(endpoints)]
    for picker in PICKERS:
        ours = took[picker]
        cells.append(ratio([t.wall for t in peer], [t.wall for t in ours]))
        cells.append(ratio([t.cpu for t in peer], [t.cpu for t in ours]))
    return cells


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """Medians over rounds, with the middle half of the rounds."""
    rounds, seconds = (5, 0.1) if quick else (21, 0.15)
    rows = []
    for endpoints in ENDPOINTS:
        with serving(endpoints) as addresses:
            for kind in METHODS:
                took = sync_rounds(addresses, kind, rounds, seconds)
                rows.append(row(f"sync {kind}", endpoints, took))
            for kind in METHODS:
                took = asyncio.run(aio_rounds(addresses, kind, 1, rounds, seconds))
                rows.append(row(f"asyncio {kind}", endpoints, took))
            took = asyncio.run(aio_rounds(addresses, "unary_unary", CONCURRENT, rounds, seconds))
            rows.append(row(f"asyncio unary_unary, {CONCURRENT} at a time", endpoints, took))
    header = ["calls", "endpoints"]
    for picker in PICKERS:
        header += [f"{picker} / grpcio", "by client CPU"]
    return header, rows
