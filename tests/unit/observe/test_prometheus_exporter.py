"""The Prometheus exporter: a collector for one process, value files for several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from meshlib.observe.catalogue import CONNECTIONS, ENDPOINT_REQUESTS, ERRORS, PROCESSES, Reading
from meshlib.observe.exporter import Source
from meshlib.observe.prometheus import BUILDER

READING: Reading = {
    PROCESSES: {(): 1},
    ERRORS: {("orders", "reset"): 3},
    CONNECTIONS: {("http",): 5},
}


def source(reads: list[bool]) -> Source:
    def read(*, endpoints: bool = False) -> Reading:
        reads.append(endpoints)
        extra: Reading = {ENDPOINT_REQUESTS: {("orders", "10.0.0.1:80", "ok"): 7}} if endpoints else {}
        return {**READING, **extra}

    return Source(read, lambda name, work: lambda: None, lambda: 0.0, lambda: 0, threading.Lock)


def test_a_scrape_reads_what_is_now_and_nothing_else_does() -> None:
    """Registering reads nothing, each scrape once; counters, gauges and labels are in Prometheus' form."""
    registry, reads = CollectorRegistry(), list[bool]()
    stop = BUILDER.start(source(reads), registry=registry)
    assert reads == []
    page = generate_latest(registry).decode()
    assert reads == [False]
    assert 'meshlib_errors_total{target="orders",type="reset"} 3.0' in page
    assert "# TYPE meshlib_errors_total counter" in page
    assert "# TYPE meshlib_connections gauge" in page
    assert "meshlib_processes 1.0" in page
    assert "10.0.0.1" not in page
    stop()
    assert generate_latest(registry) == b""


def test_endpoints_are_named_only_on_request() -> None:
    """With ``endpoints=True`` there is a series for each."""
    registry, reads = CollectorRegistry(), list[bool]()
    BUILDER.start(source(reads), registry=registry, endpoints=True)
    page = generate_latest(registry).decode()
    assert 'endpoint="10.0.0.1:80",outcome="ok",target="orders"} 7.0' in page
    assert reads == [True]


#: Several processes over one directory, with readings from a list, as the control thread would write them.
PROGRAM = """
import json, os, signal, sys
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from meshlib.errors import ConfigError
from meshlib.observe.catalogue import DATA_AGE, ERRORS, INFLIGHT
from meshlib.observe.exporter import Source
from meshlib.observe.prometheus import BUILDER

reading, generation, works = {}, 0, []
source = Source(lambda *, endpoints=False: reading, lambda name, work: works.append(work) or (lambda: None),
                lambda: 0.0, lambda: generation, None)
BUILDER.start(source)
(write,) = works
found = {}

def say(name):
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    samples = [sample for family in registry.collect() for sample in family.samples]
    found[name] = {sample.name: sample.value for sample in samples}
    found[name + " labels"] = sorted({label for sample in samples for label in sample.labels})

def at(errors, inflight, age):
    counts = {ERRORS: {("orders", "reset"): errors}, INFLIGHT: {("orders",): inflight}}
    return {**counts, DATA_AGE: {("orders", "k8s"): age}}

reading = at(5, 1, 3.0)
write(); write()
say("one")
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    generation, reading = 1, at(2, 4, 9.0)
    write()
    os.write(ready[1], b"x")
    signal.pause()
os.read(ready[0], 1)
say("two")
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
mark_process_dead(child)
reading = at(6, 0, 4.0)
write()
say("one is dead")
reading = {ERRORS: {("orders", "reset"): 6}}
write()
say("the target is gone")
BUILDER.start(source)
works[-1]()
say("started again")
try:
    BUILDER.start(source, endpoints=True)
except ConfigError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


def test_several_processes_are_one_page(tmp_path: Path) -> None:
    """Counters of the dead stay, nothing is counted twice; gauges are added up, or the highest counts; no label pid."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = ("meshlib_errors_total", "meshlib_inflight_requests", "meshlib_resolver_data_age_seconds")

    def values(when: str) -> list[float]:
        return [found[when][name] for name in names]

    assert values("one") == [5, 1, 3]
    assert values("two") == [7, 5, 9]
    assert values("one is dead") == [8, 0, 4]
    assert values("the target is gone") == [8, 0, 0]
    assert values("started again") == [8, 0, 0]
    assert found["two labels"] == ["resolver", "target", "type"]
    assert "PROMETHEUS_MULTIPROC_DIR" in found["refused"]


def test_the_name_is_the_one_of_the_registry() -> None:
    """The builder is found by it."""
    from meshlib.runtime.registry import EXPORTERS, exporter_builder

    for name in EXPORTERS:
        assert exporter_builder(name).name == name
    with pytest.raises(Exception, match="known: opentelemetry, prometheus"):
        exporter_builder("prometeus")
