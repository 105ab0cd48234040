"""The real clock and randomness. Every other room receives them as arguments."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """``now``: monotonic seconds. ``wall``: Unix seconds. ``random``: floats in [0, 1)."""

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    random: Callable[[], float] = random.random


SYSTEM = Clock()
