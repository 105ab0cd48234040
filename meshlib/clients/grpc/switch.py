"""SwitchChannel and AioSwitchChannel: ``HOST:PORT`` channels that ask at each call whose the host is now.

A bare channel for as long as the host is not known to be a Service (short names before DNS has spoken, a port
that the Service does not list), a mesh channel when it is. A call stays where it began. Asking costs a look-up in a
dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc

from meshlib.clients.grpc.methods import KINDS, FourKinds
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.primitives import new_lock
from meshlib.runtime.process import rebuild_after_fork

#: Says whose the host is now; None: the bare path. Told whether it is for a call, which is counted.
Find = Callable[[bool], TargetHandle | None]


class _Sides(FourKinds):
    """The two channels, each made when it is first needed, and which one serves now."""

    def __init__(self, find: Find, bare: Callable[[], Any], balanced: Callable[[TargetHandle], Any]) -> None:
        self._find = find
        self._make_bare = bare
        self._make_balanced = balanced
        self._lock = new_lock()
        self._bare: Any = None
        self._balanced: Any = None
        self._closed = False
        self._subscribed: dict[Any, Any] = {}
        rebuild_after_fork(self)

    def _now(self, for_call: bool = False) -> Any:
        if self._closed:
            return self._made()[0]  # answers as grpc's closed channel does
        handle = self._find(for_call)
        if handle is None:
            return self._bare if self._bare is not None else self._make("_bare", self._make_bare)
        if self._balanced is not None:
            return self._balanced
        return self._make("_balanced", lambda: self._make_balanced(handle))

    def _make(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if getattr(self, name) is None:
                setattr(self, name, make())
            return getattr(self, name)

    def _made(self) -> list[Any]:
        if self._bare is None and self._balanced is None:
            self._make("_bare", self._make_bare)
        return [channel for channel in (self._bare, self._balanced) if channel is not None]

    def after_fork(self) -> None:
        """In a forked child (called by the runtime): each side looks after itself, as it does alone."""
        self._lock = new_lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} bare: {self._bare!r}, balanced: {self._balanced!r}>"


class _Method:
    """A multicallable that has one on each side."""

    def __init__(self, sides: _Sides, kind: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._sides = sides
        self._kind = kind
        self._arguments = arguments
        self._named = named
        self._made: dict[Any, Any] = {}

    def _callable(self) -> Any:
        channel = self._sides._now(for_call=True)
        made = self._made.get(channel)
        if made is None:
            make = getattr(channel, self._kind)
            made = self._made.setdefault(channel, make(*self._arguments, **self._named))
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._callable()(*args, **kwargs)

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        return self._callable().with_call(*args, **kwargs)

    def future(self, *args: Any, **kwargs: Any) -> Any:
        return self._callable().future(*args, **kwargs)


class _UnaryUnary(_Method, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


class _UnaryStream(_Method, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


class _StreamUnary(_Method, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


class _StreamStream(_Method, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


_KINDS: dict[str, type[_Method]] = dict(
    zip(KINDS, (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream), strict=True)
)


class SwitchChannel(_Sides, grpc.Channel):
    """For ``grpc.insecure_channel`` and ``secure_channel``. Thread-safe; usable after fork as its sides are."""

    def _method(self, kind: str, /, *args: Any, **named: Any) -> Any:
        return _KINDS[kind](self, kind, args, named)

    def _get_registered_call_handle(self, method: str) -> int:
        """What grpc's static stubs ask for and hand back as fourth argument: only whether there is one matters."""
        return 1

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        """The states of the side that serves when this is called."""
        channel = self._subscribed[callback] = self._now()
        channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        channel = self._subscribed.pop(callback, None)
        if channel is not None:
            channel.unsubscribe(callback)

    def close(self) -> None:
        for channel in self._made():
            channel.close()
        self._closed = True

    def __enter__(self) -> SwitchChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _AioUnaryUnary(_Method, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


class _AioUnaryStream(_Method, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


class _AioStreamUnary(_Method, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


class _AioStreamStream(_Method, grpc.aio.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """For isinstance."""


_AIO_KINDS: dict[str, type[_Method]] = dict(
    zip(KINDS, (_AioUnaryUnary, _AioUnaryStream, _AioStreamUnary, _AioStreamStream), strict=True)
)


class AioSwitchChannel(_Sides, grpc.aio.Channel):
    """For ``grpc.aio``. The bare side belongs to the event loop it was first used on, as grpc's channels do."""

    def _method(self, kind: str, /, *args: Any, **named: Any) -> Any:
        return _AIO_KINDS[kind](self, kind, args, named)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        state: grpc.ChannelConnectivity = self._now().get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._now().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._now().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        for channel in self._made():
            await channel.close(grace)
        self._closed = True

    async def __aenter__(self) -> AioSwitchChannel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
