"""Process models of servers and task queues as they are run: celery's prefork pool, uvicorn --reload, pools of
processes. Programs that know httpx only; every request is counted where it arrives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.components.backends import Backends
from tests.components.process import Daemon, free_port, wait_for
from tests.integration.test_run import environ

MESHLIB_RUN = [sys.executable, "-m", "meshlib", "run", "--"]


@contextmanager
def running(
    name: str, words: list[str], folder: Path, env: dict[str, str], automatic: bool
) -> Iterator[Daemon]:
    """A Python program, under ``meshlib run`` or as it is."""
    start = MESHLIB_RUN if automatic else [sys.executable]
    program = Daemon(name, [*start, *words], folder, env)
    program.start()
    try:
        yield program
    finally:
        program.stop(20)


# The filesystem broker is real and needs no server. WARM: the master uses the client before it forks its workers.
CELERY = """
import os
import celery
import httpx
if os.environ.get("CODE"):
    import meshlib
    meshlib.install()
app = celery.Celery("shop", broker="filesystem://", backend="file://" + os.environ["FOLDER"] + "/results")
folder = os.environ["FOLDER"] + "/queue"
app.conf.broker_transport_options = {
    "data_folder_in": folder, "data_folder_out": folder, "control_folder": folder, "polling_interval": 0.05,
}
app.conf.broker_connection_retry_on_startup = True
client = httpx.Client()

@celery.signals.worker_init.connect
def warm_up(**_):
    if os.environ.get("WARM"):
        client.get("http://orders.internal/warm")

@app.task
def order():
    reply = client.get("http://orders.internal/")
    return [reply.text, os.getpid()]

if __name__ == "__main__":
    # imported, as the worker has it: a task is known by its module's name
    from shop import order
    results = [order.delay() for _ in range(24)]
    print([result.get(timeout=60, interval=0.05) for result in results])
"""


@pytest.mark.parametrize("how", ["run", "install-used-before-the-fork"])
def test_celery_prefork(backends: Backends, tmp_path: Path, how: str) -> None:
    """Each task gets the answer of a backend in whichever worker it runs; all backends are used, none twice for one."""
    pytest.importorskip("celery")
    servers = backends.http(3)
    (tmp_path / "shop.py").write_text(CELERY)
    (tmp_path / "queue").mkdir()
    (tmp_path / "results").mkdir()
    env = environ(servers, FOLDER=str(tmp_path))
    if how != "run":
        env["CODE"] = "1"
    if how.endswith("fork"):
        env["WARM"] = "1"
    words = ["-m", "celery", "-A", "shop", "worker", "--pool", "prefork", "-c", "2", "-l", "warning"]
    words += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with running("celery", words, tmp_path, env, automatic=how == "run") as worker:
        asked = subprocess.run(
            [sys.executable, "shop.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90
        )
        # Its own end takes celery six seconds. A session of its own: the group is the worker and its children.
        os.killpg(worker.pid, signal.SIGKILL)
        assert asked.returncode == 0, asked.stderr + worker.tail()
    answers = eval(asked.stdout)
    assert {name for name, _ in answers} == {server.name for server in servers}
    assert sum(server.paths["/"] for server in servers) == len(answers) == 24
    assert sum(server.paths["/warm"] for server in servers) == bool(env.get("WARM"))


ASGI = """
import httpx
client = httpx.AsyncClient()
VERSION = "one"
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    reply = await client.get("http://orders.internal/")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-version", VERSION.encode())]})
    await send({"type": "http.response.body", "body": reply.content})
"""


def test_uvicorn_reload(backends: Backends, tmp_path: Path) -> None:
    """The code is edited three times under requests: what the server answers, before, while and after it is replaced,
    comes from a backend, and what the old processes left open is closed."""
    servers = backends.http(2)
    path = tmp_path / "shop_asgi.py"
    path.write_text(ASGI)
    port = free_port("127.0.0.1")
    words = ["-m", "uvicorn", "--reload", "--reload-delay", "0.1", "--lifespan", "off", "--port", str(port)]
    answers: list[tuple[str, str]] = []
    wrong: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                reply = httpx.get(f"http://127.0.0.1:{port}/", timeout=30, verify=False)
            except httpx.TransportError:
                continue  # uvicorn resets connections that it has accepted and not read from yet
            if reply.status_code == 200:
                answers.append((reply.headers["x-version"], reply.text))
            else:
                wrong.append(reply)

    with running("uvicorn", [*words, "shop_asgi:app"], tmp_path, environ(servers), automatic=True) as server:
        server.wait_until(lambda: b"Started server process" in server.log.read_bytes())
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for version in ("one", "two", "three", "four"):
                if version != "one":
                    path.write_text(ASGI.replace("one", version))
                wait_for(lambda: answers and answers[-1][0] == version, timeout=30, what=version)  # noqa: B023
        finally:
            stop.set()
            asking.join(60)
        assert wrong == [], server.tail()
    assert {text for _, text in answers} == {backend.name for backend in servers}
    assert sum(backend.requests for backend in servers) >= len(answers)
    wait_for(lambda: not any(backend.connections for backend in servers), what="all connections closed")


POOL = """
import multiprocessing, os, sys, warnings
from concurrent.futures import ProcessPoolExecutor
warnings.simplefilter("ignore", DeprecationWarning)  # of fork with threads, Python 3.12 and later
import httpx
import meshlib
meshlib.install()
client = httpx.Client()

def order(number):
    body = f"{number}/{os.getpid()}".encode()
    reply = client.post("http://orders.internal/echo", content=body)
    return reply.content == body, reply.headers["x-backend"]

if __name__ == "__main__":
    order(-1)
    for method in ("fork", "forkserver", "spawn"):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            results = list(pool.map(order, range(12)))
        print(method, all(good for good, _ in results), len({name for _, name in results}))
    print(order(-2)[0])
"""


def test_process_pool_executor(backends: Backends, tmp_path: Path) -> None:
    """A used client of a module, in pools of every start method; the parent's goes on."""
    servers = backends.http(2)
    (tmp_path / "app.py").write_text(POOL)
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env=environ(servers),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == ["fork True 2", "forkserver True 2", "spawn True 2", "True", ""]
    bodies = [got.body for server in servers for got in server.received]
    assert len(bodies) == len(set(bodies)) == 2 + 3 * 12
    assert os.getpid() not in {int(body.partition(b"/")[2]) for body in bodies}
