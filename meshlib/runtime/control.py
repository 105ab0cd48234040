"""ControlThread: the one thread of a process that talks to control planes, with its own asyncio loop (decision D9).

It is a daemon and its helper threads are daemons, so that a blocked system call can never hold up interpreter exit.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from meshlib.runtime import greenlets

P = ParamSpec("P")
T = TypeVar("T")

#: Blocking calls under way at once (getaddrinfo, exec plugins, file reads). Few, because they are rare and short;
#: more than one, because a hung getaddrinfo must not stop a kubeconfig plugin.
HELPERS = 4
#: How long close() and interpreter exit wait for the loop to wind up, seconds (exit must take at most 1.5 s in all).
JOIN_TIMEOUT = 1.0


class DaemonExecutor(ThreadPoolExecutor):
    """Runs each call in a daemon thread of its own, a few at a time.

    The standard pool joins its threads at interpreter exit, so one hung getaddrinfo would hang the program.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # the inherited pool itself is never used: no thread of it is started
        self._slots = threading.BoundedSemaphore(HELPERS)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            with self._slots:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:  # belongs to whoever awaits the future
                    future.set_exception(error)
                else:
                    future.set_result(result)

        threading.Thread(target=work, name="meshlib-helper", daemon=True).start()
        return future


def _new_loop() -> asyncio.AbstractEventLoop:
    """Asyncio's own, whatever the application's policy is (uvloop): a forked child must be able to see which
    descriptors it has, and libuv's threads end a forked child that exits with a crash."""
    if greenlets.is_patched():
        return greenlets.new_loop()
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop()
    return asyncio.SelectorEventLoop()


class ControlThread:
    """Owns the loop. Made and started by the process runtime; never restarted, a new one is made instead."""

    def __init__(self, on_crash: Callable[[str, BaseException], None]) -> None:
        self._on_crash = on_crash
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self.loop = _new_loop()
        self.loop.set_default_executor(DaemonExecutor())
        self._thread = threading.Thread(target=self._run, name="meshlib-control", daemon=True)
        self._stopping = False

    def start(self) -> None:
        """Raises RuntimeError where no thread can be started: too many of them, or the interpreter is at its exit."""
        try:
            self._thread.start()
        except RuntimeError:
            self.loop.close()
            raise

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def on_loop(self) -> bool:
        """Whether the caller runs on the control thread."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Run ``function`` on the loop soon. From any thread. After stop: does nothing."""
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self._stopping:
                raise

    def spawn(self, coroutine: Coroutine[Any, Any, Any], /, *, name: str) -> asyncio.Task[Any]:
        """Start a task (on the loop only); an exception that nobody expected is reported, never lost."""
        task = self.loop.create_task(coroutine, name=f"meshlib-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def run_blocking(self, function: Callable[..., T], /, *args: Any) -> T:
        return await self.loop.run_in_executor(None, function, *args)

    def at_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Register what must be closed before the loop ends (on the loop only)."""
        self._closing.append(close)

    def stop(self) -> None:
        """Wind up and wait for it, at most JOIN_TIMEOUT. From any thread; from the control thread it does not wait."""
        if not self._stopping:
            self.call(self._begin_stop)
            self._stopping = True
        if not self.on_loop() and self._thread.ident is not None:
            self._thread.join(JOIN_TIMEOUT)

    def abandon_after_fork(self) -> None:
        """In a forked child: give back the descriptors without telling the parent's peers or its epoll.

        Each inherited descriptor is overwritten by one of /dev/null, so that whatever still thinks it owns the number
        may close it harmlessly later, and a connection that the parent closes is not kept open by us.
        """
        self._stopping = True
        selector = getattr(self.loop, "_selector", None)
        if selector is None or selector.get_map() is None:
            return
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            for descriptor in list(selector.get_map()):
                os.dup2(null, descriptor, inheritable=False)
        finally:
            os.close(null)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def _begin_stop(self) -> None:
        self.loop.create_task(self._wind_up())

    async def _wind_up(self) -> None:
        try:
            async with asyncio.timeout(JOIN_TIMEOUT * 0.8):
                for task in tuple(self._tasks):
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                for close in self._closing:
                    await close()
        except TimeoutError:
            pass  # exit must not wait for a peer; what is left dies with the loop
        except Exception as error:
            self._on_crash("closing", error)
        finally:
            self.loop.stop()

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_crash(task.get_name(), error)
