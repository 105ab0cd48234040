"""Alarm: wait for a moment or for somebody's call, whichever comes first, on an injected sleep."""

from __future__ import annotations

import asyncio

from meshlib.discovery.base import ResolverContext


class Alarm:
    """For one waiter on the control loop. A call that comes while nobody waits ends the next wait at once."""

    def __init__(self, context: ResolverContext) -> None:
        self._context = context
        self._called = False
        self._waiter: asyncio.Future[None] | None = None

    def call(self) -> None:
        """End the current wait, or the next one."""
        self._called = True
        self._ring(self._waiter)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait at most ``seconds`` (None: until called). True when it was a call that ended it."""
        if not self._called and (seconds is None or seconds > 0):
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            sleeper = None
            if seconds is not None:
                sleeper = self._context.spawn(self._ring_after(seconds, waiter), name="alarm")
            try:
                await waiter
            finally:
                self._waiter = None
                if sleeper is not None:
                    sleeper.cancel()
        called, self._called = self._called, False
        return called

    async def _ring_after(self, seconds: float, waiter: asyncio.Future[None]) -> None:
        await self._context.sleep(seconds)
        self._ring(waiter)

    @staticmethod
    def _ring(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
