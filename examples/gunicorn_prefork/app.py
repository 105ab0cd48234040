"""A WSGI application whose workers share nothing and still balance: run it with gunicorn, with or without --preload.

    gunicorn --chdir examples/gunicorn_prefork --workers 4 --preload app:application

The client is made once, at import. With --preload that is in the master process, before the workers are forked: each
worker notices the fork and builds its own control thread and connections on its first request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import httpx

import meshlib

ORDERS = os.environ.get("ORDERS_URL", "http://orders.shop.svc/")
client = meshlib.wrap(httpx.Client(timeout=5.0))

if os.environ.get("WARM_UP"):
    client.get(ORDERS)  # even a master that has used it already may be forked


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers with what the orders Service said, and which worker asked."""
    try:
        answer = client.get(ORDERS)
    except httpx.HTTPError as error:
        start_response("502 Bad Gateway", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"orders: {error}\n".encode()]
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"worker {os.getpid()}: {answer.text}\n".encode()]
