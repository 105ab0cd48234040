"""Interrupts a piece of work at its n-th wait, for every n until it survives: cancellation and Ctrl-C at each await or
blocking call.

    for run in each_wait(make, "at once"):     # make() gives a fresh coroutine
        await run(); ...                       # check that nothing is left behind

    for run in each_block(work, after=False):  # work() is called in this thread
        run(); ...                             # check that nothing is left behind
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")

#: More waits than any request here has; a loop that never ends is a broken test.
MOST = 2000

#: When the cancellation comes. ``at once``: while it waits; what it waits for is cancelled. ``too late``: what it waits
#: for has happened, and the cancellation is faster than the waiter (the race that loses wake-ups).
Moment = Literal["at once", "too late"]


class _Steps(Generic[T]):
    """Awaits a coroutine and cancels the task at its ``nth`` suspension (from 1)."""

    def __init__(self, work: Coroutine[Any, Any, T], nth: int, moment: Moment) -> None:
        self._work, self._nth, self._moment = work, nth, moment
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, T]:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited = self._work.send(value) if error is None else self._work.throw(error)
            except StopIteration as finished:
                return finished.value  # type: ignore[no-any-return]
            finally:
                value = error = None  # an error that holds this frame would keep what the work dropped
            self.waits += 1
            if self.waits == self._nth:
                self._cancel(waited)
            try:
                value = yield waited
            except BaseException as caught:
                error = caught

    def _cancel(self, waited: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._moment == "at once" or waited is None:
            task.get_loop().call_soon(task.cancel)
            return
        waited.add_done_callback(lambda _: task.cancel())  # before the task's own, which wakes it


class Run(Generic[T]):
    """One try. ``survived``: the work ended before its n-th wait."""

    def __init__(self, nth: int) -> None:
        self.nth = nth
        self.survived = False
        self.where = ""  #: what was interrupted, for messages


class AsyncRun(Run[T]):
    """``await run()``."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]], nth: int, moment: Moment) -> None:
        super().__init__(nth)
        self._make, self._moment = make, moment

    async def __call__(self) -> T | None:
        """What the work returned; None: it was cancelled."""
        steps = _Steps(self._make(), self.nth, self._moment)

        async def work() -> T:
            return await steps

        task = asyncio.create_task(work())
        try:
            result = await task
        except asyncio.CancelledError:
            me = asyncio.current_task()
            assert me is not None
            assert not me.cancelling()  # we are not meant
            return None
        finally:
            self.survived = steps.waits < self.nth
        return result


def each_wait(make: Callable[[], Coroutine[Any, Any, T]], moment: Moment) -> Iterator[AsyncRun[T]]:
    """Runs to be awaited one after the other; the last one survives. All on the same loop."""
    for nth in range(1, MOST):
        run = AsyncRun(make, nth, moment)
        yield run
        if run.survived:
            return
    raise AssertionError(f"after {MOST} waits it had not ended")


class Interrupted(KeyboardInterrupt):
    """What a signal handler raises in the middle of a blocking call."""


#: What blocks, by the name of the C function: sockets and TLS, locks and events, poll, sleep.
BLOCKING = frozenset(
    {
        "connect",
        "send",
        "sendall",
        "recv",
        "recv_into",
        "do_handshake",
        "read",
        "write",
        "acquire",
        "poll",
        "sleep",
    }
)
_MODULES = frozenset({"socket", "ssl", "_socket", "_ssl", "_thread", "select"})


class BlockRun(Run[T]):
    """``run()``."""

    def __init__(self, work: Callable[[], T], nth: int, after: bool) -> None:
        super().__init__(nth)
        self._work, self._event = work, "c_return" if after else "c_call"

    def __call__(self) -> T | None:
        """What the work returned; None: it was interrupted."""
        calls = 0

        def profile(frame: Any, event: str, function: Any) -> None:
            nonlocal calls
            if event == self._event and function.__name__ in BLOCKING and _blocks(frame, function):
                calls += 1
                if calls == self.nth:
                    at = frame.f_code
                    self.where = f"{function.__name__} in {at.co_qualname}, {at.co_filename}:{frame.f_lineno}"
                    raise Interrupted

        sys.setprofile(profile)
        try:
            return self._work()
        except Interrupted:
            return None
        finally:
            sys.setprofile(None)
            self.survived = calls < self.nth


#: Locks of the standard library and httpcore that are held for a moment and that these themselves do not protect
#: against signals, and what does not block.
_NOT_OURS = frozenset(
    {
        "Condition._is_owned",
        "Condition._acquire_restore",
        "CookieJar.extract_cookies",
        "Lock.__enter__",
        "ThreadLock.__enter__",
        "is_socket_readable",  # asks, does not block; also where an endpoint leaves, which no signal interrupts
    }
)


def _blocks(frame: Any, function: Any) -> bool:
    if frame.f_code.co_qualname in _NOT_OURS:
        return False
    owner = getattr(function, "__self__", None)
    return type(owner).__module__ in _MODULES or function.__module__ == "time"


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """For a part of the work that another thread does where it is not a test."""
    profile = sys.getprofile()
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(profile)


def each_block(work: Callable[[], T], *, after: bool) -> Iterator[BlockRun[T]]:
    """Runs of ``work`` interrupted at the n-th blocking C call of this thread: in its stead, or (``after``) when it has
    done its work and its result is lost, as when a signal comes while the call returns."""
    for nth in range(1, MOST):
        run = BlockRun(work, nth, after)
        yield run
        if run.survived:
            return
    raise AssertionError(f"after {MOST} blocking calls it had not ended")
