"""The OpenTelemetry exporter, collected by the real SDK."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, Sum

from meshlib.observe.catalogue import CATALOGUE, DATA_AGE, ENDPOINT_REQUESTS, ERRORS, INFLIGHT, Reading
from meshlib.observe.exporter import Source
from meshlib.observe.opentelemetry import BUILDER, FRESH


class Scripted:
    """A source whose clock and reading the test sets."""

    def __init__(self) -> None:
        self.time = 100.0
        self.reads = 0
        self.generation = 0
        self.reading: Reading = {
            ERRORS: {("orders", "reset"): 3},
            INFLIGHT: {("orders",): 2},
            DATA_AGE: {("orders", "k8s"): 1.5},
            ENDPOINT_REQUESTS: {("orders", "10.0.0.1:80", "ok"): 7},
        }

    def read(self, *, endpoints: bool = False) -> Reading:
        self.reads += 1
        return self.reading

    @property
    def source(self) -> Source:
        return Source(
            self.read,
            lambda name, work: lambda: None,
            lambda: self.time,
            lambda: self.generation,
            threading.Lock,
        )


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    made = InMemoryMetricReader()
    yield made
    made.shutdown()


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    return {
        metric.name: metric.data
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_a_collection_is_one_reading(reader: InMemoryMetricReader) -> None:
    """Sums and gauges of the right kind under semantic attributes; all instruments share one look; no address."""
    scripted = Scripted()
    stop = BUILDER.start(scripted.source, meter_provider=MeterProvider([reader]))
    found = collected(reader)
    assert scripted.reads == 1
    errors, inflight, age = (
        found["meshlib.errors"],
        found["meshlib.inflight.requests"],
        found["meshlib.resolver.data.age"],
    )
    assert isinstance(errors, Sum)
    assert errors.is_monotonic
    assert isinstance(inflight, Sum)
    assert not inflight.is_monotonic
    assert isinstance(age, Gauge)
    assert [(point.value, dict(point.attributes or {})) for point in errors.data_points] == [
        (3, {"meshlib.target": "orders", "error.type": "reset"})
    ]
    assert "meshlib.endpoint.requests" not in found
    scripted.time += 2 * FRESH
    scripted.reading = {ERRORS: {("orders", "reset"): 4}}
    assert collected(reader)["meshlib.errors"].data_points[0].value == 4
    assert scripted.reads == 2
    stop()
    assert collected(reader) == {}


def test_a_forked_child_reads_anew(reader: InMemoryMetricReader) -> None:
    """The parent's reading, and its lock, are not the child's."""
    scripted = Scripted()
    BUILDER.start(scripted.source, meter_provider=MeterProvider([reader]))
    collected(reader)
    scripted.generation = 1
    collected(reader)
    assert scripted.reads == 2


def test_endpoints_are_named_only_on_request(reader: InMemoryMetricReader) -> None:
    """With ``endpoints=True`` every metric of the catalogue has its instrument."""
    scripted = Scripted()
    scripted.reading = {metric: {("x",) * len(metric.labels): 1} for metric in CATALOGUE}
    BUILDER.start(scripted.source, meter_provider=MeterProvider([reader]), endpoints=True)
    assert set(collected(reader)) == {metric.opentelemetry for metric in CATALOGUE}
