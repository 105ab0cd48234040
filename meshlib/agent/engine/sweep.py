"""Sweep: when remembered flows are looked at for stale ones, and again where that failed. Belongs to one thread.

Always after the kernel was written (a flow that is forgotten before begins again towards the old endpoint), and only
after a change that can leave something stale: reading the kernel's table costs what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from meshlib.agent.desired import Frontend, FrontendKey, Place
from meshlib.agent.flows.forgetter import Forgotten
from meshlib.agent.flows.stale import may_leave_stale

#: From all frontends, the node and those that went to what was forgotten. Raises OSError.
Forget = Callable[[Mapping[FrontendKey, Frontend], Place, Collection[FrontendKey]], Forgotten]

#: Seconds until a sweep that failed is repeated: a stale UDP flow goes on to a dead pod until then, and resolvers
#: give up after 5.
RETRY = 5.0


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did. ``error``: the table could not be read; nothing was forgotten, and it is tried again."""

    forgotten: Forgotten | None
    seconds: float
    error: str = ""


@dataclass(slots=True)
class Sweep:
    """``forget`` None: there is nothing that remembers flows."""

    forget: Forget | None = None
    # At the start too: an endpoint may have gone while nobody looked.
    _due: bool = True
    _gone: set[FrontendKey] = field(default_factory=set)
    _not_before: float = 0.0

    def changed(self, frontends: Mapping[FrontendKey, tuple[Frontend | None, Frontend | None]]) -> None:
        """Frontends with what they were and are; not yet in the kernel."""
        for key, (old, new) in frontends.items():
            if may_leave_stale(old, new):
                self._due = True
                if new is None:
                    self._gone.add(key)
                else:
                    self._gone.discard(key)

    def moved(self) -> None:
        """The node has other addresses: flows to a new one went elsewhere until now."""
        self._due = True

    def run(
        self, frontends: Mapping[FrontendKey, Frontend], place: Place, now: Callable[[], float]
    ) -> Swept | None:
        """After a write. None: nothing was to be done, or not yet again."""
        began = now()
        # Removals that the guard holds back are still served; their turn comes when it lets them go.
        gone = self._gone - frontends.keys()
        if self.forget is None or not (self._due or gone) or began < self._not_before:
            return None
        try:
            forgotten = self.forget(frontends, place, gone)
        except OSError as error:
            self._due = True
            self._not_before = now() + RETRY
            return Swept(None, now() - began, str(error))
        self._due, self._not_before = False, 0.0
        self._gone -= gone
        return Swept(forgotten, now() - began)

    def next(self) -> float | None:
        """When a sweep that failed is to be repeated; None: none did."""
        return self._not_before if self._due and self._not_before else None
