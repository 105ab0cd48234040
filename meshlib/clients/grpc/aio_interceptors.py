"""Interceptors of ``grpc.aio`` around a mesh channel: once per call, however many endpoints are tried.

grpc's own intercepted calls do the work. Their innermost step would start a call on a core channel; an interceptor of
ours stands before it, goes no further, and starts the call on the mesh channel.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
from grpc.aio import Metadata

from meshlib.clients.grpc.aio_shapes import StreamRequest, UnaryRequest
from meshlib.clients.grpc.methods import KINDS, FourKinds

#: What grpc's intercepted calls have taken, in this order, since there are four of them; newer ones take more.
_PARAMETERS = (
    "self",
    "interceptors",
    "request",
    "timeout",
    "metadata",
    "credentials",
    "wait_for_ready",
    "channel",
    "method",
    "request_serializer",
    "response_deserializer",
    "loop",
)


def _class_name(kind: str) -> str:
    return "".join(part.capitalize() for part in kind.split("_"))


def _load() -> dict[str, type]:
    """grpc's intercepted calls by kind; empty when they are not as we know them (decision D18)."""
    found: dict[str, type] = {}
    try:
        from grpc.aio import _interceptor as home

        for kind in KINDS:
            made = getattr(home, f"Intercepted{_class_name(kind)}Call")
            names = [
                name.replace("request_iterator", "request")
                for name in inspect.signature(made.__init__).parameters
            ]
            if tuple(names[: len(_PARAMETERS)]) != _PARAMETERS:
                return {}
            found[kind] = made
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}
    return found


_CALLS = _load()
#: Whether interceptors can run once per call here. Else they are handed to the endpoints' channels: once per attempt.
SUPPORTED = bool(_CALLS)


def by_kind(interceptors: Sequence[Any]) -> dict[str, list[Any]]:
    """Sorted as grpc sorts them, each into the first kind that it is of; ValueError for anything else."""
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    classes = {kind: getattr(grpc.aio, f"{_class_name(kind)}ClientInterceptor") for kind in KINDS}
    for interceptor in interceptors:
        for kind, wanted in classes.items():
            if isinstance(interceptor, wanted):
                found[kind].append(interceptor)
                break
        else:
            names = " or ".join(wanted.__name__ for wanted in classes.values())
            raise ValueError(f"Interceptor {interceptor} must be {names}.")
    return found


def split(interceptors: Sequence[Any] | None) -> tuple[Sequence[Any], Sequence[Any] | None]:
    """(those that run around the mesh channel's calls, those that the endpoints' channels get)."""
    if not interceptors:
        return (), None
    by_kind(interceptors)  # a wrong one is told where the channel is made, as in grpc
    return (interceptors, None) if SUPPORTED else ((), interceptors)


def intercepted(channel: grpc.aio.Channel, interceptors: Sequence[Any]) -> grpc.aio.Channel:
    """The channel with these around its calls."""
    return InterceptedChannel(channel, interceptors) if interceptors else channel


class _Last:
    """The last interceptor of one call: continues on the mesh channel. The method may have been changed on the way."""

    def __init__(self, method: _Method, compression: Any) -> None:
        self._method = method
        self._compression = compression

    async def start(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._method.inner(details.method)(
            request,
            timeout=details.timeout,
            metadata=details.metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
            compression=self._compression,
        )

    intercept_unary_unary = start
    intercept_unary_stream = start
    intercept_stream_unary = start
    intercept_stream_stream = start


class _Method:
    """One method with interceptors around it; what each kind shares."""

    def __init__(
        self, channel: Any, kind: str, interceptors: list[Any], method: Any, args: Any, named: dict[str, Any]
    ) -> None:
        self._channel = channel
        self._kind = kind
        self._interceptors = interceptors
        self._name = method if isinstance(method, bytes) else method.encode()
        self._args = args
        self._named = named

    def inner(self, method: Any) -> Any:
        """The mesh channel's own callable, which it remembers."""
        name = method.decode() if isinstance(method, bytes) else method
        return getattr(self._channel, self._kind)(name, *self._args, **self._named)

    def _start(
        self,
        request: Any,
        timeout: Any,
        metadata: Any,
        wait_for_ready: Any,
        credentials: Any,
        compression: Any,
    ) -> Any:
        metadata = metadata or Metadata()
        if not isinstance(metadata, Metadata):
            metadata = Metadata.from_tuple(tuple(metadata))
        return _CALLS[self._kind](
            [*self._interceptors, _Last(self, compression)],
            request,
            timeout,
            metadata,
            credentials,
            wait_for_ready,
            None,  # the core channel of the step that is never taken
            self._name,
            None,  # the mesh channel's callable serialises
            None,
            asyncio.get_running_loop(),
        )


class _UnaryUnary(_Method, UnaryRequest, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


class _UnaryStream(_Method, UnaryRequest, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


class _StreamUnary(_Method, StreamRequest, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


class _StreamStream(_Method, StreamRequest, grpc.aio.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


_METHODS: dict[str, type[_Method]] = dict(
    zip(KINDS, (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream), strict=True)
)


class InterceptedChannel(FourKinds, grpc.aio.Channel):
    """A mesh channel with interceptors around its calls; everything else is the channel's."""

    def __init__(self, channel: Any, interceptors: Sequence[Any]) -> None:
        self._channel = channel
        self._interceptors = by_kind(interceptors)

    def _method(self, kind: str, /, method: Any, *args: Any, **named: Any) -> Any:
        interceptors = self._interceptors[kind]
        if not interceptors:
            return getattr(self._channel, kind)(method, *args, **named)
        return _METHODS[kind](self._channel, kind, interceptors, method, args, named)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        state: grpc.ChannelConnectivity = self._channel.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    async def __aenter__(self) -> InterceptedChannel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        count = sum(len(found) for found in self._interceptors.values())
        return f"<{type(self).__name__} with {count} interceptors around {self._channel!r}>"
