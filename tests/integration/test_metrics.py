"""What is read as metrics is what real servers saw; and no request writes a line into the log."""

from __future__ import annotations

import asyncio
import logging
import os
import runpy
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

import meshlib
from meshlib.errors import NoEndpoints
from meshlib.httpx import AsyncMeshTransport, MeshTransport
from meshlib.observe import catalogue
from meshlib.observe.catalogue import Kind, Metric
from meshlib.runtime.reading import read
from meshlib.runtime.totals import BOOK
from tests.components.backends import Backends
from tests.components.process import free_port
from tests.integration.grpc_support import TARGET, US, UU, Shop, eventually, shop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mesh() -> Iterator[Shop]:
    with shop(sync_timeout=60) as made:
        yield made


def client_of(mesh: Shop) -> httpx.Client:
    """With all the time that a busy machine may need."""
    return httpx.Client(transport=MeshTransport(target=TARGET, mesh=mesh.mesh), timeout=60)


class Since:
    """What happened since it was made: other tests of this process count, too."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> Counter[tuple[str, tuple[str, ...]]]:
        return Counter(
            {
                (metric.path, labels): value
                for metric, values in read().items()
                if metric.kind is Kind.COUNTER
                for labels, value in values.items()
            }
        )

    def of(self, metric: Metric, *labels: str) -> float:
        key = (metric.path, labels)
        return self._now()[key] - self._before[key]

    def errors(self) -> dict[str, float]:
        grown = self._now() - self._before
        return {labels[1]: count for (path, labels), count in grown.items() if path == catalogue.ERRORS.path}


def gauge(metric: Metric, *labels: str) -> float:
    return read()[metric][labels]


def test_http_requests_are_counted_once(mesh: Shop, backends: Backends) -> None:
    """Picks, attempts, failures by type, flight, connections agree with the servers; endpoints that left count on."""
    servers = backends.http(3)
    mesh.serve(servers)
    mesh.known()
    since = Since()
    with client_of(mesh) as client:
        for _ in range(12):
            assert client.get("http://echo.shop/").status_code == 200
        assert gauge(catalogue.CONNECTIONS, "http") >= 3
        servers[0].status = 503
        while not servers[0].requests > 4:
            client.get("http://echo.shop/")
        servers[1].fault = "truncate"
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - one of three is that server's
            for _ in range(3):
                client.get("http://echo.shop/")
        with client.stream("GET", "http://echo.shop/stream/2/0") as stream:
            assert gauge(catalogue.INFLIGHT, TARGET) == 1
            mesh.serve(servers[:0])  # all leave, one of them with a request in flight
            eventually(lambda: gauge(catalogue.ENDPOINTS, TARGET, "draining") == 1)
            assert gauge(catalogue.ENDPOINTS, TARGET, "eligible") == 0
            stream.read()
        assert gauge(catalogue.INFLIGHT, TARGET) == 0
    total = sum(server.requests for server in servers)
    assert since.of(catalogue.PICKS, TARGET, "picked") == total
    failed = since.of(catalogue.ATTEMPTS, TARGET, "failed")
    assert since.of(catalogue.ATTEMPTS, TARGET, "ok") == total - failed
    errors = since.errors()
    assert errors.keys() <= {"http_5xx", "reset", "broken"}
    assert errors["http_5xx"] >= 1
    assert errors.get("reset", 0) + errors.get("broken", 0) == 1
    assert sum(errors.values()) == failed
    assert since.of(catalogue.OPENED, "http") == sum(server.accepted for server in servers)
    assert since.of(catalogue.ENDPOINT_UPDATES, TARGET, "removed") == 3


def test_nobody_to_pick_and_nobody_there(mesh: Shop, backends: Backends) -> None:
    """An empty set is a failed pick; refused connections are failed attempts, one for each endpoint."""
    mesh.serve(())
    mesh.known()
    since = Since()
    handle = mesh.mesh.target(TARGET)
    with pytest.raises(NoEndpoints):
        handle.try_acquire()
    assert since.of(catalogue.PICKS, TARGET, "failed") == 1
    assert since.errors() == {"no_endpoints": 1}
    assert gauge(catalogue.TARGETS, TARGET, "error") == 1
    port = free_port("127.0.0.2", "127.0.0.3")
    mesh.serve([f"127.0.0.2:{port}", f"127.0.0.3:{port}"])
    eventually(lambda: gauge(catalogue.TARGETS, TARGET, "pods") == 1)
    with client_of(mesh) as client:
        with pytest.raises(httpx.ConnectError):
            client.get("http://echo.shop/")
    assert since.of(catalogue.ATTEMPTS, TARGET, "failed") == 2
    assert since.errors() == {"no_endpoints": 1, "unreached": 2}


def test_grpc_calls_are_counted_once(mesh: Shop, backends: Backends) -> None:
    """Threads and asyncio, unary and streams; a status that counts against the server is a type of its own."""
    servers = backends.grpc(2)
    mesh.serve(servers)
    mesh.known()
    since = Since()
    channel = mesh.channel()
    call = channel.unary_unary(UU)
    for _ in range(6):
        call(b"x")
    assert len(list(channel.unary_stream(US)(b"x"))) == 5
    servers[0].status = servers[1].status = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError):
        call(b"x")
    servers[0].status = servers[1].status = grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError):
        call(b"x")

    async def aio() -> None:
        servers[0].status = servers[1].status = grpc.StatusCode.OK
        async with mesh.aio_channel() as one:
            for _ in range(4):
                await one.unary_unary(UU)(b"x")
            servers[0].status = servers[1].status = grpc.StatusCode.INTERNAL
            with pytest.raises(grpc.RpcError):
                await one.unary_unary(UU)(b"x")
            assert gauge(catalogue.CONNECTIONS, "grpc") >= 3

    asyncio.run(aio())
    eventually(lambda: gauge(catalogue.INFLIGHT, TARGET) == 0)
    assert sum(server.requests for server in servers) == 14
    assert (
        since.of(catalogue.PICKS, TARGET, "picked") >= 14
    )  # a call may leave an endpoint that is slow to connect
    errors = since.errors()
    assert since.of(catalogue.ATTEMPTS, TARGET, "failed") == sum(errors.values())
    errors.pop("unreached", None)
    assert errors == {"grpc_unavailable": 1, "grpc_internal": 1}
    assert since.of(catalogue.OPENED, "grpc") == 4
    channel.close()
    eventually(lambda: since.of(catalogue.CLOSED, "grpc") == 4)


def test_a_closed_mesh_leaves_its_counts_and_nothing_else(backends: Backends) -> None:
    """Counters of a target go on when another Mesh uses it; what is now, is gone with the Mesh."""
    servers = backends.http(1)
    since = Since()
    for round_ in (1, 2):
        with shop(sync_timeout=60) as made:
            made.serve(servers)
            with client_of(made) as client:
                for _ in range(3):
                    client.get("http://echo.shop/")
            assert since.of(catalogue.ATTEMPTS, TARGET, "ok") == 3 * round_
        eventually(lambda: (TARGET, "pods") not in read().get(catalogue.TARGETS, {}))
        assert BOOK.target(TARGET).each() == []
        assert since.of(catalogue.ATTEMPTS, TARGET, "ok") == 3 * round_


def test_no_log_line_per_request(mesh: Shop, backends: Backends, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG: a change of the set is one line, two hundred requests of every kind are none, failed ones included."""
    caplog.set_level(logging.DEBUG, "meshlib")
    web, calls = backends.http(2), backends.grpc(2)

    def lines() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name.startswith("meshlib")]

    def changes() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name == "meshlib.balancer"]

    async def aio_http() -> None:
        transport = AsyncMeshTransport(target=TARGET, mesh=mesh.mesh)
        async with httpx.AsyncClient(transport=transport, timeout=60) as client:
            for _ in range(50):
                await client.get("http://echo.shop/")

    mesh.serve(web)
    mesh.known()
    assert len(changes()) == 1
    before = len(lines())
    with client_of(mesh) as client:
        for _ in range(50):
            client.get("http://echo.shop/")
        web[0].status = 500
        for _ in range(20):
            client.get("http://echo.shop/")
    asyncio.run(aio_http())
    assert lines()[before:] == []
    mesh.serve(calls)
    eventually(lambda: len(changes()) == 2)
    before = len(lines())

    async def aio_grpc() -> None:
        async with mesh.aio_channel() as channel:
            for _ in range(40):
                await channel.unary_unary(UU)(b"x")

    call = mesh.channel().unary_unary(UU)
    for _ in range(40):
        call(b"x")
    asyncio.run(aio_grpc())
    assert lines()[before:] == []


def test_reading_from_many_threads_while_traffic_flows(mesh: Shop, backends: Backends) -> None:
    """Every thread sees counters that never fall, and the last reading is exact."""
    servers = backends.http(2)
    mesh.serve(servers)
    mesh.known()
    since, stop, fallen = Since(), threading.Event(), list[Any]()

    def watch() -> None:
        before = since._now()
        while not stop.is_set():
            now = since._now()
            fallen.extend(key for key in before if now[key] < before[key])
            before = now

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    with client_of(mesh) as client:
        for number in range(60):
            client.get("http://echo.shop/")
            if number % 20 == 10:
                mesh.serve(servers[: 1 + number // 20 % 2])
    stop.set()
    for watcher in watchers:
        watcher.join()
    assert fallen == []
    assert since.of(catalogue.ATTEMPTS, TARGET, "ok") == 60 == sum(server.requests for server in servers)


#: Uses a target at once, and in a child; both end as programs do.
PROGRAM = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import meshlib
mesh = meshlib.Mesh()
target = mesh.target("static:///10.0.0.1:80,10.0.0.2:80")
def use(times):
    for _ in range(times):
        with target.pick(timeout=120):
            pass
use(3)
child = os.fork()
use(4 if child == 0 else 2)
if child:
    import multiprocessing  # its children end without atexit
    other = multiprocessing.get_context("fork").Process(target=use, args=(5,))
    other.start()
    other.join()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or other.exitcode)
"""


def test_what_processes_did_is_in_their_files_when_they_have_ended(tmp_path: Path) -> None:
    """The variable alone starts it; neither a fork nor an end that comes at once loses a request or counts it twice."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MESHLIB_SYNC_TIMEOUT": "60",
            "MESHLIB_EXPORTERS": "prometheus",
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        },
    )
    assert done.returncode == 0, done.stderr
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    labels = {"target": "static:///(2 addresses)", "outcome": "ok"}
    assert registry.get_sample_value("meshlib_attempts_total", labels) == 3 + 4 + 2 + 5


def test_opentelemetry_collects_what_happened(mesh: Shop, backends: Backends) -> None:
    """One line on the application's provider: requests under the logical name, no address anywhere."""
    (server,) = backends.http(1)
    mesh.serve([server])
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stop = meshlib.start_exporter("opentelemetry", meter_provider=provider)
    try:
        with client_of(mesh) as client:
            client.get("http://echo.shop/")
        text = reader.get_metrics_data().to_json()  # type: ignore[union-attr]
    finally:
        stop()
        provider.shutdown()
    assert f'"meshlib.target": "{TARGET}"' in text
    assert '"meshlib.picks"' in text
    assert server.host not in text


def test_an_exporter_from_another_package(tmp_path: Path) -> None:
    """An entry point is enough: in code and in the configuration; it gets everything."""
    (tmp_path / "shouting.py").write_text(
        "class Shout:\n"
        "    name = 'shout'\n"
        "    def start(self, source, *, word='hello'):\n"
        "        [(version,)] = [labels for metric, values in source.read().items()\n"
        "                        if metric.path == 'build.info' for labels in values]\n"
        "        print(word, version)\n"
        "        return lambda: print('bye')\n"
        "BUILDER = Shout()\n"
    )
    info = tmp_path / "shouting-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[meshlib.exporters]\nshout = shouting:BUILDER\n")
    program = (
        "import meshlib\nstop = meshlib.start_exporter('shout', word='hi')\nstop()\n"
        "meshlib.Mesh(config=meshlib.load_config({'exporters': ['shout']}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    version = meshlib.__version__
    assert done.stdout.splitlines() == [f"hi {version}", "bye", f"hello {version}"], done.stderr


def test_the_reference_is_current() -> None:
    """Otherwise: python scripts/metrics_reference.py"""
    script = runpy.run_path(str(ROOT / "scripts" / "metrics_reference.py"))
    text = script["PAGE"].read_text()
    assert script["page"](text) == text
