"""``meshlib cost``: what a roll-out will cost the API server, the pods and the processes, before it happens.

Every figure that it multiplies was measured (``python -m tests.bench cost`` writes cost_figures.json), or is a constant
of discovery's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import click

from meshlib.cli.output import output_option, print_json, print_table

#: Endpoints of a full slice: what the endpoint slice controller makes (--max-endpoints-per-slice), and what is sent
#: again, whole, when one of them changes.
PER_SLICE = 100
CLIENTS = ("httpx", "httpx-async", "grpc", "grpc-aio")


@dataclass(frozen=True, slots=True)
class Plan:
    """``endpoints``: of all Services called, together. ``connections``: of one process, to each endpoint."""

    pods: int
    workers: int
    namespaces: int
    endpoints: int
    connections: int
    client: str


@dataclass(frozen=True, slots=True)
class Line:
    """One row; None where the number means nothing there."""

    what: str
    worker: float | None
    pod: float | None
    everything: float | None


@lru_cache(maxsize=1)
def figures() -> dict[str, Any]:
    """What was measured."""
    found: dict[str, Any] = json.loads(files("meshlib.cli").joinpath("cost_figures.json").read_text())
    return found


def estimate(plan: Plan, measured: dict[str, Any]) -> list[Line]:
    """The rows, in the order of the table."""
    from meshlib.discovery.kubernetes.reflector import SAFETY_RELIST, WATCH_SECONDS

    watches = measured["watches_per_namespace"] * plan.namespaces
    slice_size = min(PER_SLICE, plan.endpoints) * measured["endpoint_bytes_sent"] / 1024
    connections = plan.endpoints * plan.connections
    memory = measured["process_mib"] + plan.endpoints * measured["endpoint_kib"] / 1024
    held = connections * measured["connection_kib"][plan.client] / 1024

    def each(what: str, worker: float) -> Line:
        return Line(what, worker, worker * plan.workers, worker * plan.workers * plan.pods)

    return [
        each("watches at the API server", watches),
        # each ends after 1 to 2 times WATCH_SECONDS
        each("watches opened again, per minute", watches * 60 / (1.5 * WATCH_SECONDS)),
        each("lists for safety, per minute", watches * 60 / SAFETY_RELIST),
        each("first lists, MiB", plan.endpoints * measured["endpoint_bytes_sent"] / 1024**2),
        each("one endpoint changes: sent, KiB", slice_size),
        each("connections to endpoints", connections),
        Line(
            "connections at each endpoint",
            plan.connections,
            plan.connections * plan.workers,
            plan.connections * plan.workers * plan.pods,
        ),
        each("descriptors", connections + measured["descriptors"]),
        each("threads", measured["threads"]),
        each("memory: endpoints known, MiB", memory),
        each("memory: connections, MiB", held),
    ]


@click.command("cost", epilog="Exit codes: 0 printed; 2 wrong usage.")
@click.option("--pods", type=click.IntRange(1, 1_000_000), required=True, help="Pods that will use meshlib.")
@click.option(
    "--workers", type=click.IntRange(1, 1000), default=1, show_default=True, help="Processes in each pod."
)
@click.option(
    "--namespaces",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="Namespaces of the Services that they call.",
)
@click.option(
    "--endpoints",
    type=click.IntRange(0, 1_000_000),
    required=True,
    help="Ready pods of those Services, all together.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="Connections of one process to one endpoint (about its requests in flight, over the endpoints; gRPC: 1).",
)
@click.option(
    "--client", type=click.Choice(CLIENTS), default="httpx", show_default=True, help="Whose connections."
)
@output_option
def command(
    pods: int, workers: int, namespaces: int, endpoints: int, connections: int, client: str, output: str
) -> None:
    """Say what a roll-out costs: watches at the API server (pods x workers x namespaces), connections (x endpoints),
    memory and descriptors. Asks nobody; the figures that it multiplies were measured.

    \b
    Examples:
      meshlib cost --pods 200 --workers 4 --endpoints 50
      meshlib cost --pods 20 --workers 2 --namespaces 3 --endpoints 500 --client grpc-aio
    """
    measured = figures()
    lines = estimate(Plan(pods, workers, namespaces, endpoints, connections, client), measured)
    if output == "json":
        rows = [
            {"what": one.what, "worker": one.worker, "pod": one.pod, "all": one.everything} for one in lines
        ]
        print_json({"rows": rows, "measured": measured})
        return
    print_table(
        f"{pods} pods x {workers} workers, {endpoints} endpoints in {namespaces} namespaces, {client}",
        ("", "each worker", "each pod", "all"),
        [(one.what, *(_shown(each) for each in (one.worker, one.pod, one.everything))) for one in lines],
    )


def _shown(value: float | None) -> str:
    """Three figures that count; thousands apart."""
    if value is None:
        return ""
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.3g}"
