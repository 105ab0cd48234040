"""What httpx gets from the fast wire: httpcore's Response in all that transports and applications use of it."""

from __future__ import annotations

from typing import Any

from meshlib.clients.httpx.fast.reply import ReplyParser


class Response:
    """``stream`` is replaced by the pool's leased body."""

    __slots__ = ("extensions", "headers", "status", "stream")

    def __init__(self, reply: ReplyParser, stream: Any, network_stream: Any) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.stream = stream
        self.extensions = {
            "http_version": reply.version,
            "reason_phrase": reply.reason,
            "network_stream": network_stream,
        }

    def __repr__(self) -> str:
        return f"<Response [{self.status}]>"
