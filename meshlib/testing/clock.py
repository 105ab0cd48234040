"""FakeClock: virtual time for tests, so that a minute of back-off takes no time and nothing depends on luck."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class FakeClock:
    """Monotonic seconds that move only when told. One thread, one event loop.

    ``now`` and ``sleep`` fit wherever meshlib takes a clock; ``advance`` wakes the sleepers whose time has come, in
    order, letting each run before the next.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        until = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + max(0.0, seconds), next(self._order), until))
        await until

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; returns when everybody who was woken has run until its next wait."""
        end = self._now + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, until = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            if not until.done():
                until.set_result(None)
            await self.settle()
        self._now = end

    async def settle(self) -> None:
        """Let every task that can run do so, without time passing."""
        for _ in range(
            50
        ):  # each round lets every ready task take one step; chains of awaits are much shorter
            await asyncio.sleep(0)

    @property
    def sleeping(self) -> int:
        """How many are asleep now."""
        return sum(not until.done() for _, _, until in self._sleepers)
