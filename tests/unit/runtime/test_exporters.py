"""Exporters: found by name, started once, repeated on the control thread, in children too, and never during a fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import meshlib
from meshlib.errors import ConfigError
from meshlib.runtime import exporters
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.observing import subscribe
from meshlib.testing.manual import ManualResolver


@pytest.fixture(autouse=True)
def _none_stays() -> Iterator[None]:
    yield
    for stop in list(exporters._running.values()):
        stop()
    exporters._running.clear()


def test_one_line_starts_it_and_it_runs_once() -> None:
    """The page has the build; a second start is told; after the end it may be started again."""
    registry = CollectorRegistry()
    stop = meshlib.start_exporter("prometheus", registry=registry)
    assert f'meshlib_build_info{{version="{meshlib.__version__}"}} 1.0' in generate_latest(registry).decode()
    with pytest.raises(ConfigError, match="runs already"):
        meshlib.start_exporter("prometheus", registry=CollectorRegistry())
    stop()
    stop()
    assert generate_latest(registry) == b""
    meshlib.start_exporter("prometheus", registry=registry)


def test_the_configuration_starts_it_once_for_all_meshes() -> None:
    """Named in the configuration, it runs from the first Mesh on; what code started before stays as it is."""
    config = load_config({}, {"MESHLIB_EXPORTERS": "prometheus, opentelemetry"})
    registry = CollectorRegistry()
    meshlib.start_exporter("prometheus", registry=registry)
    with Mesh(config=config), Mesh(config=config):
        assert set(exporters._running) == {"prometheus", "opentelemetry"}
    assert b"meshlib_build_info" in generate_latest(registry)


def test_an_unknown_name_is_told_with_what_exists_and_where_it_was_written() -> None:
    """From code and from the environment."""
    with pytest.raises(ConfigError, match=r"'prometeus': unknown.*opentelemetry, prometheus"):
        meshlib.start_exporter("prometeus")
    with pytest.raises(ConfigError, match=r"MESHLIB_EXPORTERS.*prometeus"):
        Mesh(config=load_config({}, {"MESHLIB_EXPORTERS": "prometeus"}))


@pytest.mark.parametrize(
    ("name", "module"), [("prometheus", "prometheus_client"), ("opentelemetry", "opentelemetry.metrics")]
)
def test_a_missing_library_is_told_with_its_extra(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install, in one line."""
    for loaded in [each for each in sys.modules if each.split(".")[0] == module.split(".")[0]]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module.split(".")[0], None)
    monkeypatch.delitem(sys.modules, f"meshlib.observe.{name}", raising=False)
    with pytest.raises(ConfigError, match=rf"pip install 'meshlib-sdk\[{name}\]'"):
        meshlib.start_exporter(name)


def test_neither_library_is_loaded_unless_it_is_asked_for() -> None:
    """A Mesh in use loads none of them."""
    program = (
        "import sys, meshlib\n"
        "with meshlib.Mesh() as mesh:\n"
        "    mesh.target('static:///10.0.0.1:80').try_start()\n"
        "    print([name for name in ('prometheus_client', 'opentelemetry') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


class Calls:
    """Work to repeat; ``again`` is set by each call."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.again = threading.Event()
        self.error: Exception | None = None

    def __call__(self) -> None:
        self.threads.append(threading.current_thread().name)
        self.again.set()
        if self.error is not None:
            raise self.error


def used(mesh: Mesh) -> None:
    mesh.target("k8s:///orders.shop:80").try_start()


def test_repeated_work_runs_on_the_control_thread_and_once_more_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From when it runs, whichever came first; again in the next one; not after it was ended."""
    monkeypatch.setattr(exporters, "INTERVAL", 3600.0)
    calls, late = Calls(), Calls()
    stop = exporters.repeat("test", calls)
    with Mesh(resolvers={"k8s": ManualResolver()}) as mesh:
        assert calls.threads == []
        used(mesh)
        assert calls.again.wait(20)
        stop_late = exporters.repeat("late", late)
        assert late.again.wait(20)
        calls.again.clear()
        late.again.clear()
    assert calls.again.wait(20)  # closing waits for the thread, but not for ever
    assert late.again.wait(20)
    assert set(calls.threads) == {"meshlib-control"}
    assert len(calls.threads) == len(late.threads) == 2  # at the start, and when the last Mesh was closed
    stop()
    with Mesh(resolvers={"k8s": ManualResolver()}) as mesh:
        late.again.clear()
        used(mesh)
        assert late.again.wait(20)
    assert len(calls.threads) == 2
    stop_late()


def test_repeated_work_that_fails_is_told_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter's error must not end discovery, nor the exporter."""
    monkeypatch.setattr(exporters, "INTERVAL", 0.0)
    calls, told = Calls(), list[Any]()
    calls.error = OSError("disk full")
    unsubscribe = subscribe(told.append)
    stop = exporters.repeat("exporter test", calls)
    try:
        with Mesh(resolvers={"k8s": ManualResolver()}) as mesh:
            used(mesh)
            for _ in range(3):
                calls.again.clear()
                assert calls.again.wait(20)
    finally:
        stop()
        unsubscribe()
    assert [event.error for event in told if getattr(event, "source", "") == "exporter test"][:2] == [
        calls.error
    ] * 2


#: Forks many times while the control thread is in the work nearly always, under a lock that the child needs.
PROGRAM = """
import json, os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import meshlib
from meshlib.runtime import exporters
exporters.INTERVAL = 0.0
library = threading.Lock()   # as prometheus_client's: nobody renews it after a fork
inside = threading.Event()

def work():
    with library:
        inside.set()
        for _ in range(500_000):  # so long that the other thread gets its turn in the middle
            pass

exporters.repeat("test", work)
codes = []
with meshlib.Mesh(config=meshlib.load_config({"sync_timeout": 60})) as mesh:
    target = mesh.target("static:///10.0.0.1:80")
    with target.pick(timeout=120):
        pass
    for _ in range(8):
        inside.clear()
        inside.wait(20)
        child = os.fork()
        if child == 0:
            free = library.acquire(timeout=5)
            library.release() if free else None
            inside.clear()
            with target.pick(timeout=120):
                pass
            os._exit(0 if free and inside.wait(20) else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


def test_nobody_forks_in_the_middle_of_repeated_work() -> None:
    """A child never inherits a library's lock that the work held, and repeats the work itself."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0] * 8


def test_work_that_never_ends_does_not_hold_up_a_fork_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither does work that forks itself; afterwards the parent goes on as before."""
    monkeypatch.setattr(exporters, "PATIENCE", 0.01)
    with exporters._gate:
        exporters._before_fork()
        exporters._after_fork_in_parent()
        assert exporters._gate.locked()
    exporters._before_fork()
    assert exporters._gate.locked()
    exporters._after_fork_in_parent()
    assert not exporters._gate.locked()
