"""Exponential back-off with jitter, as client-go's reflector has it. Pure: time and randomness are arguments."""

from __future__ import annotations

import math

#: First delay, seconds (client-go: 800 ms).
BASE = 0.8
#: Cap before jitter, seconds (client-go: 30 s). With jitter a process asks once in 30-60 s during a long outage.
CAP = 30.0
#: Seconds without trouble after which the next trouble starts from BASE again (client-go: 2 min).
RESET_AFTER = 120.0
#: Doublings after which the cap is reached anyway; bounds the exponent.
_MAX_LEVEL = 16


class Backoff:
    """Delays of 0.8, 1.6, ... 30 s, each times a factor in [1, 2). One owner; not thread-safe."""

    __slots__ = ("_last", "level")

    def __init__(self) -> None:
        self.level = 0
        self._last = -math.inf  # end of the last delay

    def quiet(self, now: float) -> bool:
        """True when nothing went wrong during the last two minutes: the first trouble may be retried at once."""
        return now - self._last > RESET_AFTER

    def touch(self, now: float) -> None:
        """Remember a trouble that is retried without a delay, so that the next one is not."""
        if self.quiet(now):
            self.level = 0
        self._last = now

    def next(self, now: float, random: float) -> float:
        """The delay in seconds for a trouble at ``now``; ``random`` in [0, 1)."""
        if self.quiet(now):
            self.level = 0
        delay = min(CAP, BASE * 2.0**self.level) * (1.0 + random)
        self.level = min(self.level + 1, _MAX_LEVEL)
        self._last = now + delay
        return delay

    def reset(self) -> None:
        """Forget all trouble."""
        self.level = 0
        self._last = -math.inf
