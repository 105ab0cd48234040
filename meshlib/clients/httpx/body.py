"""Bodies: a request body that knows whether it was started, a response body whose end is the end of a lease."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from meshlib.observe.catalogue import ERRORS
from meshlib.runtime.lease import Lease
from meshlib.runtime.observing import TALLY

#: Leases of responses that were thrown away unfinished. ``Lease.done`` takes locks, and a finalizer may run while its
#: own thread holds them, so finalizers only append here (deque.append is safe there); the next request settles them.
_abandoned: deque[Lease] = deque()


def settle_abandoned() -> None:
    """End the leases of responses that the garbage collector found. Called where no lock is held."""
    while _abandoned:
        try:
            lease = _abandoned.popleft()
        except IndexError:  # another thread was faster
            return
        lease.done()


def abandon(lease: Lease) -> None:
    """For finalizers: end the lease at the next request."""
    _abandoned.append(lease)


class RequestBody:
    """The caller's body. ``started``: it may be on the wire. ``replayable``: it can begin again."""

    __slots__ = ("_stream", "replayable", "started")

    def __init__(self, stream: Any, replayable: bool) -> None:
        self._stream = stream
        self.replayable = replayable
        self.started = False

    @property
    def can_begin(self) -> bool:
        """Whether a request with this body can be sent (again)."""
        return self.replayable or not self.started

    def __iter__(self) -> Iterator[bytes]:
        self.started = True
        return iter(self._stream)

    def __aiter__(self) -> AsyncIterator[bytes]:
        self.started = True
        stream: AsyncIterator[bytes] = self._stream.__aiter__()
        return stream


class Owner(Protocol):
    """The engine whose connection a response body reads from."""

    unread: deque[Any]  #: bodies thrown away unfinished, whose connections the engine closes later

    def reclaim(self, body: Any) -> None:
        """Closing this body was interrupted: give up its connection."""
        ...


def end(lease: Lease, failed: bool) -> None:
    """A body has ended; ``failed``: it broke off, and its endpoint is to blame."""
    lease.done(failed)
    if failed:
        TALLY.add(ERRORS, lease.subchannel.target, "broken")


class _LeasedBody:
    """What both colours share: the lease ends once, by exhaustion, close, an exception, or the garbage collector."""

    __slots__ = ("_blames", "_inner", "_lease", "_owner")

    def __init__(
        self, inner: Any, lease: Lease, blames: Callable[[BaseException], bool], owner: Owner
    ) -> None:
        self._inner = inner
        self._lease: Lease | None = lease
        self._blames = blames
        self._owner = owner

    def _end(self, error: BaseException | None = None) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            end(lease, error is not None and self._blames(error))

    def __del__(self) -> None:
        lease = getattr(self, "_lease", None)
        if lease is not None:
            _abandoned.append(lease)
            self._owner.unread.append(self._inner)


class LeasedBody(_LeasedBody):
    """A response body of the sync engine."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._inner
        except BaseException as error:
            self._end(error)
            raise
        self._end()

    def close(self) -> None:
        try:
            self._inner.close()
        except BaseException:
            self._owner.reclaim(self._inner)
            raise
        finally:
            self._end()


class AsyncLeasedBody(_LeasedBody):
    """A response body of the asyncio engine."""

    __slots__ = ()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._inner:
                yield part
        except BaseException as error:
            self._end(error)
            raise
        self._end()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        except (
            BaseException
        ):  # a task cancelled here would leave httpcore's pool with a request that never ends
            self._owner.reclaim(self._inner)
            raise
        finally:
            self._end()
