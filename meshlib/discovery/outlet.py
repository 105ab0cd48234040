"""Outlet: what one subscription has published, so that only news goes out and a failure never hides the facts."""

from __future__ import annotations

from meshlib.discovery.base import Publish
from meshlib.model.update import DoesNotExist, Failure, Snapshot


class Outlet:
    """Between a resolver's state and one subscriber. Lives on the control loop.

    Two things are kept apart: the last facts (a Snapshot or DoesNotExist) and whether something is wrong now. A Failure
    goes out once when things go wrong; when they are right again the facts go out again, changed or not.
    """

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._shown: Snapshot | DoesNotExist | None = None
        self._failing = False
        self.closed = False

    def show(self, facts: Snapshot | DoesNotExist | None, failure: Failure | None = None) -> None:
        """Publish what is new of the ``facts`` (None: nothing known beyond what was shown) and of what is wrong."""
        recovered = self._failing and failure is None
        if facts is not None and not self.closed and (recovered or not _same(facts, self._shown)):
            self._shown, self._failing = facts, False
            self._publish(facts)
        # The subscriber may have closed us from inside publish.
        if failure is not None and not self._failing and not self.closed:
            self._failing = True
            self._publish(failure)


def _same(new: Snapshot | DoesNotExist, old: Snapshot | DoesNotExist | None) -> bool:
    """Equal for endpoints: a count of skipped entries alone is no news."""
    if isinstance(new, Snapshot) and isinstance(old, Snapshot):
        return (new.service, new.slices) == (old.service, old.slices)
    return new == old
