"""examples/gunicorn_prefork as a user runs it: real gunicorn, real workers, every request counted."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.components.backends import Backends
from tests.components.process import Daemon, can_connect, free_port

EXAMPLE = Path(__file__).parents[2] / "examples" / "gunicorn_prefork"
WORKERS = 3
REQUESTS = 90


@pytest.mark.parametrize(
    ("options", "warm_up"),
    [((), 0), (("--preload",), 0), (("--preload",), 1)],
    ids=["workers-import", "preload", "preload-used-in-the-master"],
)
def test_every_worker_balances_and_no_answer_is_lost(
    backends: Backends, tmp_path: Path, options: tuple[str, ...], warm_up: int
) -> None:
    """Each request gets the answer of a backend, all backends are used, and the backends saw exactly these requests."""
    servers = backends.http(3)
    addresses = ",".join(f"{server.host}:{server.port}" for server in servers)
    port = free_port("127.0.0.1")
    gunicorn = Daemon(
        "gunicorn",
        [
            *(sys.executable, "-m", "gunicorn", "--chdir", str(EXAMPLE), "--workers", str(WORKERS)),
            *("--bind", f"127.0.0.1:{port}", *options, "app:application"),
        ],
        tmp_path,
        {
            **os.environ,
            "HOME": str(tmp_path),  # newer versions keep a control socket there
            "MESHLIB_ALIASES": json.dumps({"orders.local": f"static:///{addresses}"}),
            "MESHLIB_PICKER": "round_robin",
            "ORDERS_URL": "http://orders.local/",
            "WARM_UP": "1" if warm_up else "",
        },
    )
    gunicorn.start()
    try:
        gunicorn.wait_until(lambda: can_connect("127.0.0.1", port))
        # One client: each would load the certificates of all the world anew.
        with httpx.Client(timeout=60, verify=False) as client, ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: client.get(f"http://127.0.0.1:{port}/"), range(REQUESTS)))
    finally:
        gunicorn.stop(15)
    assert {answer.status_code for answer in answers} == {200}, gunicorn.tail()
    workers = {answer.text.split()[1] for answer in answers}
    assert 1 < len(workers) <= WORKERS
    assert sum(server.requests for server in servers) == REQUESTS + warm_up
    assert all(server.requests > 0 for server in servers)
