"""The control loop where gevent has patched ``threading``: its thread is a greenlet of whoever started it.

asyncio knows the running loop of each thread of the operating system. Greenlets share one, so while the control loop
waits, and others run, it must not be taken for theirs: ``asyncio.run`` and everything that looks for a running loop
would refuse to work beside it.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from typing import Any


def is_patched() -> bool:
    """Whether threads made by ``threading`` are greenlets. Looks at gevent only where the application has loaded it."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


class _Considerate:
    """A selector that takes its loop's mark off the thread while it waits, and leaves what it finds there as it was.

    Between two waits the control loop's callbacks run without a switch: they only wait in the selector.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._theirs: Any = None
        self.loop: Any = None

    def select(self, timeout: float | None = None) -> Any:
        asyncio._set_running_loop(self._theirs)
        try:
            return self._selector.select(timeout)
        finally:
            self._theirs = asyncio._get_running_loop()
            asyncio._set_running_loop(self.loop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._selector, name)


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop that shares its thread with others."""
    selector: Any = _Considerate()
    selector.loop = asyncio.SelectorEventLoop(selector)
    made: asyncio.AbstractEventLoop = selector.loop
    return made
