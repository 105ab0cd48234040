"""A WSGI service that calls another with plain httpx and knows nothing of meshlib.

    MESHLIB_CONFIG=meshlib.toml MESHLIB_EXPORTERS=prometheus PROMETHEUS_MULTIPROC_DIR=/tmp/metrics \
        python -m meshlib run -- python -m gunicorn --workers 4 app:application

GET / asks the stock Service; GET /metrics is for Prometheus. Whether a request of its client goes through meshlib is
decided by meshlib.toml, which every worker follows while it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import httpx
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

STOCK = os.environ.get("STOCK_URL", "http://stock.shop.svc/")
client = httpx.Client(timeout=float(os.environ.get("STOCK_TIMEOUT", "5")))


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers with the worker's number and what the stock Service said."""
    if environ["PATH_INFO"] == "/metrics":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [generate_latest(registry)]
    try:
        answer = client.get(STOCK)
    except httpx.HTTPError as error:
        start_response("502 Bad Gateway", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"stock: {error}\n".encode()]
    start_response(f"{answer.status_code} {answer.reason_phrase}", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {answer.text}".encode()]
