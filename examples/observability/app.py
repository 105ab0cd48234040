"""A WSGI application whose workers make one page of metrics, with or without meshlib's in it.

    mkdir -p /tmp/metrics && rm -f /tmp/metrics/*.db
    export PROMETHEUS_MULTIPROC_DIR=/tmp/metrics
    gunicorn --chdir examples/observability --workers 4 --threads 4 app:application

GET /NAME asks the upstream of that name; GET /metrics is for Prometheus. The exporter is the one line that meshlib adds
to a service which has metrics already.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import httpx
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

import meshlib

UPSTREAMS: dict[str, str] = json.loads(os.environ.get("UPSTREAMS", '{"orders": "http://orders.shop.svc/"}'))

meshlib.start_exporter("prometheus")
client = meshlib.wrap(httpx.Client(timeout=float(os.environ.get("UPSTREAM_TIMEOUT", "5"))))


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers with what an upstream said, or with the metrics of all workers."""
    name = environ["PATH_INFO"].strip("/")
    if name == "metrics":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [generate_latest(registry)]
    if name not in UPSTREAMS:
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [f"upstreams: {', '.join(UPSTREAMS)}\n".encode()]
    try:
        answer = client.get(UPSTREAMS[name])
    except httpx.HTTPError as error:
        start_response("502 Bad Gateway", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{name}: {error}\n".encode()]
    start_response(
        f"{answer.status_code} {answer.reason_phrase}", [("Content-Type", "text/plain; charset=utf-8")]
    )
    return [answer.content]
