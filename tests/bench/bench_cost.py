"""What ``meshlib cost`` multiplies: watches, memory and threads of one process, on a Service of a realistic cluster.

A full run writes meshlib/cli/cost_figures.json, which the command reads; no figure there comes from anywhere else.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import platform
import statistics
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from meshlib.runtime.config import load_config
from meshlib.runtime.default import ready
from meshlib.runtime.mesh import Mesh
from meshlib.testing import FakeApiServer
from tests.bench import bench_grpc_memory, bench_memory
from tests.bench.bench_http import hosts
from tests.components.fast_http import FastHttp
from tests.components.grpc_fast import serving
from tests.components.http_backend import LoopThread
from tests.components.process import free_port
from tests.soak.gauges import Sample, sample

NAME = "What `meshlib cost` multiplies"
TARGETS = "none: these figures are facts, read by `meshlib cost`"
FIGURES = Path(__file__).parents[2] / "meshlib" / "cli" / "cost_figures.json"

#: Endpoints of the large Service; with fewer, the allocator's steps are as large as what is measured.
ENDPOINTS = 5000
#: As the endpoint slice controller fills them (--max-endpoints-per-slice).
PER_SLICE = 100
CONNECTIONS = 500
PATIENCE = 120


def manifest(service: str, number: int, first: int, count: int) -> dict[str, Any]:
    """A slice as the controller writes it."""
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "namespace": "shop",
            "name": f"{service}-{number:05d}",
            "uid": f"6c1b1f5e-1d0a-4e52-9b7a-{number:012d}",
            "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Service", "name": service, "uid": "9d1b", "controller": True}
            ],
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [f"10.{each >> 16}.{each >> 8 & 255}.{each & 255}"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{each % 500}",
                "zone": f"eu-west-1{'abc'[each % 3]}",
                "targetRef": {
                    "kind": "Pod",
                    "namespace": "shop",
                    "name": f"{service}-7d9c6b5f4-{each:05d}",
                    "uid": f"0f8fad5b-d9cb-469f-a165-{each:012d}",
                },
            }
            for each in range(first, first + count)
        ],
    }


async def cluster(count: int) -> FakeApiServer:
    server = FakeApiServer()
    await server.start()
    for service, members in (("small", 1), ("large", count)):
        server.service("shop", service)
        for number, first in enumerate(range(1, members + 1, PER_SLICE)):
            server.put(manifest(service, number, first, min(PER_SLICE, members + 1 - first)))
    return server


def discover(url: str, ours: Connection) -> None:
    """In a process of its own: what it holds with httpx imported, with a Mesh and one endpoint, with all of them."""
    config = load_config({"discovery": {"k8s": {"api_server": url}}, "short_names": False})
    samples: list[Sample] = []

    def note() -> None:
        gc.collect()
        samples.append(sample())

    httpx.Client().close()
    note()
    with Mesh(config=config) as mesh:
        for service in ("small", "large"):
            asyncio.run(ready(f"k8s:///{service}.shop:http", timeout=60, mesh=mesh))
            note()
        ours.send(samples)
        ours.poll(PATIENCE)  # until the watches have been counted


def discovery(count: int) -> tuple[list[Sample], int]:
    """Samples, and how many watches the API server had."""
    loop = LoopThread()
    server = loop.run(cluster(count))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=discover, args=(server.url, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(PATIENCE):
            raise TimeoutError(f"nothing after {PATIENCE} s")
        samples: list[Sample] = ours.recv()

        async def watching() -> int:
            return server.watching("services") + server.watching("endpointslices")

        watches = loop.run(watching())
        ours.send(None)
        process.join(PATIENCE)
        return samples, watches
    finally:
        process.kill()
        process.join()
        loop.run(server.close())
        loop.close()


def per_connection_http(name: str, count: int) -> float:
    """Bytes that a connection takes, beside the endpoint that was known before it."""
    most = hosts(count)
    port = free_port(*most[:3])
    with FastHttp(most, port):
        _, knowing, connected = bench_memory.apart(name, count, port)
    return (connected.memory - knowing.memory) / count


def per_connection_grpc(name: str, count: int) -> float:
    """Bytes that an endpoint with its channel takes."""
    with serving(count) as addresses:
        before, after = bench_grpc_memory.apart(name, addresses)
    return (after.memory - before.memory) / count


def figures(quick: bool) -> dict[str, Any]:
    count, connections, turns = (500, 50, 1) if quick else (ENDPOINTS, CONNECTIONS, 3)
    runs = [discovery(count) for _ in range(turns)]

    def median(what: Callable[[Sample, Sample, Sample], float]) -> float:
        return statistics.median(what(*samples) for samples, _ in runs)

    def middle(measured: Callable[[str, int], float], name: str) -> float:
        return round(statistics.median(measured(name, connections) for _ in range(turns)) / 1024, 1)

    return {
        "watches_per_namespace": int(statistics.median(watches for _, watches in runs)),
        "threads": int(median(lambda bare, small, _: small.threads - bare.threads)),
        "descriptors": int(median(lambda bare, small, _: small.descriptors - bare.descriptors)),
        "process_mib": round(median(lambda bare, small, _: small.memory - bare.memory) / 1024**2, 1),
        "endpoint_kib": round(
            median(lambda _, small, large: large.memory - small.memory) / 1024 / (count - 1), 2
        ),
        "endpoint_bytes_sent": round(len(json.dumps(manifest("large", 1, 1, PER_SLICE))) / PER_SLICE),
        "connection_kib": {
            "httpx": middle(per_connection_http, "sync, meshlib"),
            "httpx-async": middle(per_connection_http, "asyncio, meshlib"),
            "grpc": middle(per_connection_grpc, "sync, meshlib"),
            "grpc-aio": middle(per_connection_grpc, "asyncio, meshlib"),
        },
        "python": platform.python_version(),
    }


HOW = {
    "watches_per_namespace": "counted at the API server, with two Services of one namespace",
    "threads": "beside the program's own",
    "descriptors": "the control thread's and the watches'",
    "process_mib": "the first Mesh with its first Service, beside a program that has imported httpx",
    "endpoint_kib": f"one of {ENDPOINTS:,} known endpoints, in slices as the controller writes them",
    "endpoint_bytes_sent": f"JSON of an endpoint in a slice of {PER_SLICE}",
    "connection_kib": f"one of {CONNECTIONS} connections, each to an endpoint of its own",
    "python": "",
}


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """One row per figure."""
    rows = []
    for name, value in found.items():
        each = value.items() if isinstance(value, dict) else [("", value)]
        rows += [[f"{name} {kind}".strip(), str(number), HOW[name]] for kind, number in each]
    return rows


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    found = figures(quick)
    if not quick:
        FIGURES.write_text(json.dumps(found, indent=2) + "\n")
    return ["figure", "measured", "how"], rows_of(found)
