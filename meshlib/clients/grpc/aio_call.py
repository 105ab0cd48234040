"""The asyncio call objects of a mesh channel.

Each implements grpc.aio's interface of its kind and passes everything on to the attempt that decides. An attempt whose
connection was refused is replaced before anybody sees it. As in grpc.aio, a call with one response goes on when its
user drops it (fire and forget), and a stream of responses ends: so the first is its own ``Progress``, which the loop
holds, and the second only has one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from functools import partial
from typing import Any

import grpc

from meshlib.clients.grpc.aio_progress import Progress


class _Call:
    """What all kinds share."""

    @property
    def _progress(self) -> Progress:
        raise NotImplementedError

    def cancel(self) -> bool:
        return self._progress.cancel()

    def cancelled(self) -> bool:
        return self._progress.cancelled()

    def done(self) -> bool:
        return self._progress.done()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._progress.on_end(partial(callback, self))

    def time_remaining(self) -> float | None:
        remaining = self._progress.attempts.remaining()
        return None if remaining is None else max(0.0, remaining)

    async def _decided(self) -> Any:
        """The deciding call, or the error that stands for it; cancelling the waiter leaves the call alone."""
        await self._progress.until_settled()
        return self._progress.call

    async def initial_metadata(self) -> Any:
        return await self._ask("initial_metadata", grpc.aio.Metadata)

    async def trailing_metadata(self) -> Any:
        return await self._ask("trailing_metadata", grpc.aio.Metadata)

    async def code(self) -> Any:
        return await self._ask("code", lambda: self._error.code())

    async def details(self) -> Any:
        return await self._ask("details", lambda: self._error.details())

    async def debug_error_string(self) -> Any:
        return await self._ask("debug_error_string", lambda: self._error.debug_error_string())

    async def _ask(self, name: str, otherwise: Callable[[], Any]) -> Any:
        """``name()`` of the call that decides; ``otherwise()`` when none ever did."""
        while True:
            call = await self._decided()
            if call is None and self._error is not None:
                return otherwise()
            if call is not None:
                answer = await getattr(call, name)()
                if self._progress.decides(call):
                    return answer

    async def wait_for_connection(self) -> None:
        call = await self._progress.deciding()
        await call.wait_for_connection()

    @property
    def _error(self) -> Any:
        return self._progress.error

    async def _deciding(self) -> Any:
        """The deciding call; as in grpc.aio, cancelling somebody who waits for the response cancels the call."""
        try:
            return await self._progress.deciding()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def __repr__(self) -> str:
        call = self._progress.call
        if call is None:
            return f"<{type(self).__name__} {'ended' if self.done() else 'waiting for an endpoint'}>"
        return repr(call)


class _UnaryResponse(Progress, _Call):
    @property
    def _progress(self) -> Progress:
        return self

    def __await__(self) -> Generator[Any, Any, Any]:
        while True:
            call = self.call or (yield from self._deciding().__await__())
            try:
                return (yield from call.__await__())
            except grpc.RpcError:
                if self.decides(call):
                    raise


class _StreamResponse(_Call):
    """Dropping the last reference cancels the call."""

    def __init__(self, progress: Progress) -> None:
        self._made = progress
        self._sampled = False
        self._iterator: weakref.ref[AsyncIterator[Any]] | None = None

    @property
    def _progress(self) -> Progress:
        return self._made

    def __del__(self) -> None:
        if not self._made.finished:
            self._made.abandon()

    def __aiter__(self) -> AsyncIterator[Any]:
        # Weak, because the iterator holds this object: a cycle would keep an abandoned stream open until the next gc.
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is None:
            iterator = self._responses()
            self._iterator = weakref.ref(iterator)
        return iterator

    async def _responses(self) -> AsyncIterator[Any]:
        while True:
            call = await self._deciding()
            try:
                async for response in call:
                    if not self._sampled:
                        self._sample()
                    yield response
            except asyncio.CancelledError:
                self.cancel()  # grpc does so in all waits but one, that for the request to be sent
                raise
            except grpc.RpcError:
                if self._progress.decides(call):
                    raise
            else:
                return

    async def read(self) -> Any:
        while True:
            call = await self._deciding()
            try:
                response = await call.read()
            except asyncio.CancelledError:
                self.cancel()
                raise
            except grpc.RpcError:
                if self._progress.decides(call):
                    raise
            else:
                if not self._sampled and response is not grpc.aio.EOF:
                    self._sample()
                return response

    def _sample(self) -> None:
        self._sampled = True
        completion = self._progress.completion
        if completion is not None:
            completion.responded()


class _StreamRequest(_Call):
    async def write(self, request: Any) -> None:
        call = await self._deciding()
        await call.write(request)

    async def done_writing(self) -> None:
        call = await self._deciding()
        await call.done_writing()

    @property
    def _done_writing_flag(self) -> bool:
        """What grpc's intercepted calls look at before they take another message."""
        return bool(getattr(self._progress.call, "_done_writing_flag", False))


class UnaryUnaryCall(_UnaryResponse, grpc.aio.UnaryUnaryCall):  # type: ignore[type-arg]
    """One request, one response."""


class UnaryStreamCall(_StreamResponse, grpc.aio.UnaryStreamCall):  # type: ignore[type-arg]
    """One request, a stream of responses."""


class StreamUnaryCall(_UnaryResponse, _StreamRequest, grpc.aio.StreamUnaryCall):  # type: ignore[type-arg]
    """A stream of requests, one response."""


class StreamStreamCall(_StreamRequest, _StreamResponse, grpc.aio.StreamStreamCall):  # type: ignore[type-arg]
    """A stream of requests, a stream of responses."""
