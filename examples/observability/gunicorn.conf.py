"""What prometheus_client asks of gunicorn: a worker that is gone has nothing in flight, and no connections."""

from __future__ import annotations

from typing import Any

from prometheus_client import multiprocess


def child_exit(server: Any, worker: Any) -> None:
    """In the master: forget the gauges of that worker. Its counters stay."""
    multiprocess.mark_process_dead(worker.pid)
