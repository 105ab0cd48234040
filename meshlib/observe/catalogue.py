"""The catalogue: every metric that meshlib has. Exporters, the reference page and the board's test are fed from it.

What a request costs or how long it takes is not here: instrumentations of httpx and grpc measure that, and would be
counted twice. What is here is what only a balancer knows. No label names an address, except in the two metrics that
are per endpoint, which are exported only on request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a metric's values are, and what several processes of one service make of them together."""

    #: Only grows while the process lives; the processes are added up.
    COUNTER = "counter"
    #: Goes up and down; the processes are added up.
    SUM = "sum"
    #: Goes up and down, and each process has its own view of the same thing; the highest counts.
    MAX = "max"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric. ``path``: its name in parts, without the prefix. ``unit``: UCUM, empty for plain counts."""

    path: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    unit: str = ""
    per_endpoint: bool = False

    @property
    def opentelemetry(self) -> str:
        """OpenTelemetry's name: dots, no unit, no suffix."""
        return f"meshlib.{self.path}"

    @property
    def prometheus(self) -> str:
        """Prometheus' name: underscores, the unit in words, ``_total`` for counters."""
        unit = "_seconds" if self.unit == "s" else ""
        suffix = "_total" if self.kind is Kind.COUNTER else ""
        return f"meshlib_{self.path.replace('.', '_')}{unit}{suffix}"


@dataclass(frozen=True, slots=True)
class Label:
    """A label: its OpenTelemetry attribute, and what its values are."""

    attribute: str
    help: str


#: Metric -> label values, in the order of ``Metric.labels`` -> value.
Reading = Mapping[Metric, Mapping[tuple[str, ...], float]]

LABELS: Mapping[str, Label] = {
    "endpoint": Label("meshlib.endpoint", "`ip:port`"),
    "kind": Label("meshlib.kind", "`reopened`, or `relisted`: the watch had to begin with a list again"),
    "mode": Label("meshlib.mode", "the roll-out's: `off`, `observe`, `on`"),
    "op": Label("meshlib.op", "`added`, `removed`"),
    "outcome": Label("meshlib.outcome", "see the metric"),
    "path": Label("meshlib.path", "`service-address`, `dns`"),
    "protocol": Label(
        "network.protocol.name", "`http`; `grpc`, where one channel to an endpoint counts as one"
    ),
    "resolver": Label("meshlib.resolver", "`k8s`, `dns`, `file`, `static` or a plugin's scheme; `other`"),
    "state": Label("meshlib.state", "see the metric"),
    "target": Label("meshlib.target", "the target as it is written; a static list only by its length"),
    "type": Label("error.type", "see the metric"),
    "version": Label("meshlib.version", "meshlib's"),
    "way": Label("meshlib.way", "see the metric"),
    "where": Label("meshlib.where", "see the metric"),
}

BUILD_INFO = Metric("build.info", Kind.MAX, ("version",), "Always 1; the version is a label.")
PROCESSES = Metric("processes", Kind.SUM, (), "Processes that report: the workers of the service.")

TARGETS = Metric(
    "targets",
    Kind.SUM,
    ("target", "way"),
    "Processes whose calls to the target now go this way (and would, in mode observe): pods, service-address, dns, "
    "error (they fail), unknown.",
)
ENDPOINTS = Metric(
    "endpoints",
    Kind.MAX,
    ("target", "state"),
    "Endpoints as discovery lists them: eligible (may get requests), unready, terminating, elsewhere (ready, but not "
    "for callers here: topology, traffic policy, the other address family), and draining (gone, with requests in "
    "flight).",
)
ENDPOINT_UPDATES = Metric(
    "endpoint.updates", Kind.COUNTER, ("target", "op"), "Endpoints that joined or left the set of a target."
)
ENDPOINT_LATENCY = Metric(
    "endpoint.latency",
    Kind.MAX,
    ("target",),
    "The slowest endpoint's latency estimate, as the picker sees it: the last peak, fading to 1/e in 10 s.",
    unit="s",
)

PICKS = Metric(
    "picks",
    Kind.COUNTER,
    ("target", "outcome"),
    "Picks of an endpoint, one for each try of a request: picked, failed (there was nothing to pick).",
)
PICKS_QUEUED = Metric(
    "picks.queued", Kind.COUNTER, ("target",), "Picks that waited for the first knowledge of the target."
)
ATTEMPTS = Metric(
    "attempts",
    Kind.COUNTER,
    ("target", "outcome"),
    "Tries that ended, the body included: failed (no connection, a broken one, 5xx, a gRPC status of that kind), ok "
    "(nothing that counts against the endpoint).",
)
ERRORS = Metric(
    "errors",
    Kind.COUNTER,
    ("target", "type"),
    "What failed, one by one. Nothing to pick: no_endpoints, no_local_endpoints, not_synced, service_not_found, "
    "unknown_port, pick_timeout. The endpoint: unreached, slow_to_connect, reset, broken, http_5xx, grpc_unavailable "
    "and the other gRPC statuses that count against it.",
)
INFLIGHT = Metric("inflight.requests", Kind.SUM, ("target",), "Requests that an endpoint has not finished.")

REQUESTS = Metric(
    "requests",
    Kind.COUNTER,
    ("target", "way"),
    "Requests by what the roll-out decided: mesh, bare_off, bare_observe, bare_percent.",
)
MODE = Metric("mode", Kind.SUM, ("target", "mode"), "Processes in which the target is in this mode.")
MODE_PERCENT = Metric(
    "mode.percent",
    Kind.MAX,
    ("target",),
    "Of a target in mode on: how many of a hundred requests are to go through the mesh.",
)
OBSERVED = Metric(
    "observed",
    Kind.COUNTER,
    ("target", "outcome"),
    "What would have come of requests that were only observed: picked, or why not (denied, no_endpoints, "
    "no_local_endpoints, not_synced, service_address, service_not_found, unknown_port, failed).",
)
OBSERVED_REACHED = Metric(
    "observed.reached",
    Kind.COUNTER,
    ("target", "where"),
    "Where the bare way of observed requests led, as far as the client can tell: endpoint (one of the set), service "
    "(its own address), elsewhere.",
)

FALLBACKS = Metric(
    "fallbacks",
    Kind.COUNTER,
    ("target", "path"),
    "How often calls began to go to the Service's address, or to what DNS says, instead of to the pods.",
)
RESOLVER_FAILING = Metric(
    "resolver.failing",
    Kind.SUM,
    ("target", "resolver"),
    "Processes whose source fails for the target; the last good data stays in use.",
)
DATA_AGE = Metric(
    "resolver.data.age",
    Kind.MAX,
    ("target", "resolver"),
    "Seconds since the source last told something about the target. A quiet Service's data is old and right.",
    unit="s",
)
SOURCE_FAILURES = Metric(
    "resolver.failures", Kind.COUNTER, ("resolver", "type"), "Questions to a source that failed, by error."
)
WATCH_RESTARTS = Metric("watch.restarts", Kind.COUNTER, ("resolver", "kind"), "Watches that began again.")
SKIPPED = Metric(
    "entries.skipped",
    Kind.COUNTER,
    ("resolver",),
    "Pieces of data or settings that were refused or unreadable; the rest of them is used.",
)

CONNECTIONS = Metric("connections", Kind.SUM, ("protocol",), "Connections to endpoints that are open now.")
OPENED = Metric(
    "connections.opened",
    Kind.COUNTER,
    ("protocol",),
    "Connections that were begun, those that failed included.",
)
CLOSED = Metric(
    "connections.closed", Kind.COUNTER, ("protocol",), "Connections that ended or never came about."
)
REFUSED = Metric(
    "connections.refused",
    Kind.COUNTER,
    ("protocol",),
    "Requests that failed because the client had all the connections it may have (`total_connections`).",
)

ENDPOINT_REQUESTS = Metric(
    "endpoint.requests",
    Kind.COUNTER,
    ("target", "endpoint", "outcome"),
    "Tries that ended at one endpoint: ok, failed.",
    per_endpoint=True,
)
ENDPOINT_INFLIGHT = Metric(
    "endpoint.inflight.requests",
    Kind.SUM,
    ("target", "endpoint"),
    "Requests that one endpoint has not finished.",
    per_endpoint=True,
)

CATALOGUE: tuple[Metric, ...] = (
    BUILD_INFO,
    PROCESSES,
    TARGETS,
    ENDPOINTS,
    ENDPOINT_UPDATES,
    ENDPOINT_LATENCY,
    PICKS,
    PICKS_QUEUED,
    ATTEMPTS,
    ERRORS,
    INFLIGHT,
    REQUESTS,
    MODE,
    MODE_PERCENT,
    OBSERVED,
    OBSERVED_REACHED,
    FALLBACKS,
    RESOLVER_FAILING,
    DATA_AGE,
    SOURCE_FAILURES,
    WATCH_RESTARTS,
    SKIPPED,
    CONNECTIONS,
    OPENED,
    CLOSED,
    REFUSED,
    ENDPOINT_REQUESTS,
    ENDPOINT_INFLIGHT,
)


_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")


def error_type(error: BaseException) -> str:
    """The ``type`` label of an exception: its class (``NoEndpoints`` -> ``no_endpoints``)."""
    return _WORD_START.sub("_", type(error).__name__).lower()


def target_label(target: str) -> str:
    """The label of a target's text. A static list is told by its length: its addresses are often those of pods."""
    prefix = "static:///"
    if not target.startswith(prefix):
        return target
    count = target.count(",") + 1
    return f"{prefix}({count} address{'es' if count > 1 else ''})"
