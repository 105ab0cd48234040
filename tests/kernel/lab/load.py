"""Load: new flows from several places, one after the other, and every one of them counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.components.process import wait_for
from tests.kernel.lab.prober import Answered, Outcome

#: Seconds between two flows of one place: enough to meet every moment, few enough for a busy machine.
PAUSE = 0.01


class Goal(NamedTuple):
    """Where flows go, from which namespace."""

    space: str
    address: str
    port: int
    protocol: str = "TCP"


#: One new flow: from a namespace, to an address, a port, of a protocol.
Probe = Callable[[str, str, int, str], Outcome]


class Load:
    """Runs between entering and leaving; leaving fails when a single flow was not answered."""

    def __init__(self, probe: Probe, goals: Iterable[Goal]) -> None:
        self._probe = probe
        self._goals = tuple(goals)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(goal,), daemon=True) for goal in self._goals
        ]
        self.answered: Counter[str] = Counter()  #: by endpoint
        self.done: Counter[Goal] = Counter()
        self.failures: list[tuple[Goal, Outcome]] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if kind is None:
            assert not self.failures, f"{len(self.failures)} of {self.done.total()}: {self.failures[:5]}"
            assert all(self.done[goal] for goal in self._goals), self.done

    def more(self, flows: int = 20) -> None:
        """Waits until every place has made so many flows more."""
        wanted = {goal: self.done[goal] + flows for goal in self._goals}
        wait_for(
            lambda: self.failures or all(self.done[goal] >= count for goal, count in wanted.items()),
            timeout=60,
            what="further flows",
        )
        assert not self.failures, self.failures[:5]

    def _run(self, goal: Goal) -> None:
        while not self._stop.wait(PAUSE):
            outcome = self._probe(*goal)
            if isinstance(outcome, Answered):
                self.answered[outcome.endpoint] += 1
            else:
                self.failures.append((goal, outcome))
            self.done[goal] += 1
