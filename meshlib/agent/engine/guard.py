"""Guard against removing most of a node's Services because the source was wrong. Pure.

An API server that was restored from an old backup looks like a mass deletion. Connections cut by it cannot be given
back, while a removal that waits costs little: the endpoints refuse by themselves. The same deletion may come in many
small changes, one watch event each, so removals add up over a while.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

#: Below this many frontends any share is ordinary: a small cluster loses half of them with one namespace.
ORDINARY = 20
#: Seconds over which removals add up. A controller deletes 5 to 20 objects a second (client-go's limits), which takes a
#: thousand Services in minutes; who removes most of a cluster by hand, a namespace now and then, takes longer.
WINDOW = 300.0


@dataclass(slots=True)
class Guard:
    """``share``: the largest part (0 to 1) of the frontends that may go at once, or within WINDOW; 1 switches it off.

    A larger removal is held until it is confirmed: it is still wanted after ``confirmations`` further complete lists
    from the source, or a person approves it.
    """

    share: float = 0.5
    confirmations: int = 2
    _since: int | None = None
    _approved: bool = False
    #: When how many were served, each less than the one before: the first is the most of the window.
    _most: deque[tuple[float, int]] = field(default_factory=deque)

    def check(self, before: int, removed: int, lists: int, now: float) -> bool:
        """Whether the removal may go on. ``before``: how many are served; ``lists``: complete lists received from the
        source so far; ``now``: monotonic seconds."""
        most = self._most_served(before, now)
        gone = (
            most - before + removed
        )  # what came instead counts for the next change only: it cuts nothing less now
        if not removed or most < ORDINARY or gone <= most * self.share:
            self._since, self._approved = None, False
            return True
        if self._since is None:
            self._since = lists
        if self._approved or lists - self._since >= self.confirmations:
            self._since, self._approved = None, False
            self._most.clear()  # it was meant: what follows is judged on its own
            return True
        return False

    def _most_served(self, before: int, now: float) -> int:
        while self._most and self._most[-1][1] <= before:
            self._most.pop()
        self._most.append((now, before))
        while self._most[0][0] < now - WINDOW:
            self._most.popleft()
        return self._most[0][1]

    @property
    def holding(self) -> bool:
        """Whether a removal waits for a confirmation."""
        return self._since is not None

    def approve(self) -> None:
        """A person has looked: the removal that waits, or the next one, goes through."""
        self._approved = True
