"""The OpenTelemetry exporter: observable instruments on the application's MeterProvider, read when it collects.

Only the API is needed; where the numbers go is the application's. Each process exports its own, as OpenTelemetry has
it: workers differ by their resource, and the backend adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter_provider

from meshlib.observe.catalogue import CATALOGUE, LABELS, Kind, Metric, Reading
from meshlib.observe.exporter import Source, Stop

if TYPE_CHECKING:
    from threading import Lock

_Callback = Callable[[CallbackOptions], Iterable[Observation]]

#: One collection asks every instrument in turn; what was read this many seconds ago is still the same reading. Below
#: any interval of collections.
FRESH = 0.5


class _Shared:
    """One reading for all instruments of a collection. From any thread."""

    def __init__(self, source: Source, endpoints: bool) -> None:
        self._source = source
        self._endpoints = endpoints
        self._begin()
        self.over = False

    def _begin(self) -> None:
        self._generation = self._source.generation()
        self._lock: Lock = self._source.new_lock()
        self._read_at = float("-inf")
        self._reading: Reading = {}

    def reading(self) -> Reading:
        if self._generation != self._source.generation():
            self._begin()  # a forked child: the lock may be held by a thread that is not here
        with self._lock:
            now = self._source.now()
            if now - self._read_at > FRESH:
                self._reading = self._source.read(endpoints=self._endpoints)
                self._read_at = now
            return self._reading


class OpenTelemetryBuilder:
    """``start_exporter("opentelemetry")``.

    ``meter_provider``: by default the global one, also one that is set later. ``endpoints``: also what is told per
    endpoint, whose attributes hold addresses.
    """

    name = "opentelemetry"

    def start(
        self, source: Source, *, meter_provider: MeterProvider | None = None, endpoints: bool = False
    ) -> Stop:
        from meshlib import __version__

        meter = (meter_provider or get_meter_provider()).get_meter("meshlib", __version__)
        shared = _Shared(source, endpoints)
        for metric in CATALOGUE:
            if endpoints or not metric.per_endpoint:
                _create(meter, metric, _callback(metric, shared))

        def stop() -> None:
            shared.over = True  # instruments cannot be taken back; they say nothing any more

        return stop


def _create(meter: Meter, metric: Metric, callback: _Callback) -> None:
    create = {
        Kind.COUNTER: meter.create_observable_counter,
        Kind.SUM: meter.create_observable_up_down_counter,
        Kind.MAX: meter.create_observable_gauge,
    }[metric.kind]
    create(metric.opentelemetry, [callback], unit=metric.unit or "1", description=metric.help)


def _callback(metric: Metric, shared: _Shared) -> _Callback:
    names = [LABELS[label].attribute for label in metric.labels]

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        if shared.over:
            return ()
        return [
            Observation(value, dict(zip(names, labels, strict=True)))
            for labels, value in shared.reading().get(metric, {}).items()
        ]

    return observe


BUILDER = OpenTelemetryBuilder()
