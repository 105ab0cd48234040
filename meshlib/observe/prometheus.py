"""The Prometheus exporter: a collector that is read when somebody scrapes, or the files of several processes.

With ``PROMETHEUS_MULTIPROC_DIR`` (prometheus_client's way for gunicorn and other preforking servers) a scrape reaches
one worker and has to tell of all, so a collector in that worker would not do: each process then writes its numbers into
prometheus_client's own files every two seconds and when it ends, and ``MultiProcessCollector`` adds them up. Counters
of workers that are gone stay in the sum; those of a killed one lack its last two seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from meshlib.errors import ConfigError
from meshlib.observe.catalogue import CATALOGUE, Kind, Metric, Reading
from meshlib.observe.exporter import Source, Stop

_MODES = {Kind.SUM: "livesum", Kind.MAX: "livemax"}


class MeshCollector(Collector):
    """All metrics as they are at the moment of the scrape. Register it, or have ``PrometheusBuilder`` do so."""

    def __init__(self, source: Source, endpoints: bool = False) -> None:
        self.source = source
        self._endpoints = endpoints

    def describe(self) -> Iterator[Family]:
        """The names, so that registering reads nothing."""
        for metric in CATALOGUE:
            if self._endpoints or not metric.per_endpoint:
                yield _family(metric)

    def collect(self) -> Iterator[Family]:
        reading = self.source.read(endpoints=self._endpoints)
        for metric in CATALOGUE:
            if metric in reading:
                family = _family(metric)
                for labels, value in reading[metric].items():
                    family.add_metric(labels, value)
                yield family


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    return kind(metric.prometheus, metric.help, labels=metric.labels)


class ValueFiles:
    """Writes readings into prometheus_client's files. ``write`` is called by one thread at a time."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._generation = source.generation()
        self._metrics: dict[Metric, Counter | Gauge] = {}
        self._written: dict[Metric, dict[tuple[str, ...], float]] = {}

    def write(self) -> None:
        """Bring the files of this process up to now."""
        if self._generation != self.source.generation():
            # A forked child: it counts from zero, into files of its own (prometheus_client sees to those).
            self._generation, self._written = self.source.generation(), {}
        reading = self.source.read()
        for metric in CATALOGUE:
            if metric in reading or metric in self._written:
                self._write(metric, reading)

    def _write(self, metric: Metric, reading: Reading) -> None:
        values, before = reading.get(metric, {}), self._written.get(metric, {})
        if metric.kind is not Kind.COUNTER:
            values = {**dict.fromkeys(before, 0.0), **values}  # what is no more: a file forgets nothing
        instrument = self._instrument(metric)
        for labels, value in values.items():
            grown = value - before.get(labels, 0.0)
            if labels in before and not grown:
                continue
            child = instrument.labels(*labels) if labels else instrument
            if isinstance(child, Counter):
                child.inc(max(0.0, grown))
            else:
                child.set(value)
        self._written[metric] = {**before, **values}

    def _instrument(self, metric: Metric) -> Counter | Gauge:
        found = self._metrics.get(metric)
        if found is None:
            name, text = metric.prometheus, metric.help
            # In no registry: the files are what is scraped.
            if metric.kind is Kind.COUNTER:
                found = Counter(name, text, metric.labels, registry=None)
            else:
                mode: Any = _MODES[metric.kind]
                found = Gauge(name, text, metric.labels, registry=None, multiprocess_mode=mode)
            self._metrics[metric] = found
        return found


class PrometheusBuilder:
    """``start_exporter("prometheus")``.

    ``registry``: where to register the collector, by default prometheus_client's own; without a meaning for several
    processes. ``endpoints``: also what is told per endpoint, whose labels hold addresses; refused for several
    processes, whose files would keep every address for ever.
    """

    name = "prometheus"

    def __init__(self) -> None:
        self._files: ValueFiles | None = (
            None  #: kept when it is stopped: what it wrote stays in the process's files
        )

    def start(
        self, source: Source, *, registry: CollectorRegistry | None = None, endpoints: bool = False
    ) -> Stop:
        if not values.ValueClass._multiprocess:
            collector, place = MeshCollector(source, endpoints), registry or REGISTRY
            place.register(collector)
            return lambda: place.unregister(collector)
        if endpoints:
            raise ConfigError(
                "exporter 'prometheus'",
                "endpoints=True does not go with PROMETHEUS_MULTIPROC_DIR",
                "leave it out, or let each process be scraped by itself",
            )
        if self._files is None or self._files.source is not source:
            self._files = ValueFiles(source)
        return source.repeat("exporter prometheus", self._files.write)


BUILDER = PrometheusBuilder()
