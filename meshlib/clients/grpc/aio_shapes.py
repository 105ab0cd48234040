"""How asyncio methods are called, with grpc.aio's own argument lists: with one request, or with a stream of them."""

from __future__ import annotations

from typing import Any


class _Starts:
    """``_start`` gets the arguments of either, in one order, and gives the call object."""

    def _start(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None,
        credentials: Any,
        compression: Any,
    ) -> Any:
        raise NotImplementedError


class UnaryRequest(_Starts):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self._start(request, timeout, metadata, wait_for_ready, credentials, compression)


class StreamRequest(_Starts):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self._start(request_iterator, timeout, metadata, wait_for_ready, credentials, compression)
