"""Guard against removing most of a node's Services because the source was wrong. Pure.

An API server that was restored from an old backup looks like a mass deletion. Connections cut by it cannot be given
back, while a removal that waits costs little: the endpoints refuse by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Below this many frontends any share is ordinary: a small cluster loses half of them with one namespace.
ORDINARY = 20


@dataclass(slots=True)
class Guard:
    """``share``: the largest part (0 to 1) of the frontends that may go at once; 1 switches it off.

    A larger removal is held until it is confirmed: it is still wanted after ``confirmations`` further complete lists
    from the source, or a person approves it.
    """

    share: float = 0.5
    confirmations: int = 2
    _since: int | None = None
    _approved: bool = False

    def check(self, before: int, removed: int, lists: int) -> bool:
        """Whether the removal may go on. ``lists``: complete lists received from the source so far."""
        if before < ORDINARY or removed <= before * self.share:
            self._since, self._approved = None, False
            return True
        if self._approved:
            self._since, self._approved = None, False
            return True
        if self._since is None:
            self._since = lists
        if lists - self._since >= self.confirmations:
            self._since = None
            return True
        return False

    @property
    def holding(self) -> bool:
        """Whether a removal waits for a confirmation."""
        return self._since is not None

    def approve(self) -> None:
        """A person has looked: the removal that waits, or the next one, goes through."""
        self._approved = True
