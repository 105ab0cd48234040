"""What a policy that must know the load of the whole set keeps up to date, across pickers and under threads.

Subchannels count; a LoadWatch mirrors their counts into whatever form the policy needs, under one lock of its
own. It is told when a count fell (``Subchannel.on_load``) and raises counts itself when it picks. Being told
takes no lock: a request may end in a finalizer, which may run in the middle of a pick of the same thread. Who
fell is looked at before the next pick, and whoever mirrors a count reads the Subchannel's own while holding the
lock, so that the mirror is right as soon as the last of concurrent changes was told.

Locks are taken in one order: the LoadWatch's, then the Subchannel's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from meshlib.pickers.subchannel import Subchannel, Watcher


class LoadWatch:
    """Carried over from picker to picker: ``sync`` brings it in line with a new list in one step for those who
    pick.

    A picker that was replaced and is still held by a caller then picks from the new list, which does no harm.
    """

    __slots__ = ("_fallen", "_lock", "_watcher", "_weights")

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._weights: dict[Subchannel, int] = {}
        self._fallen: set[Subchannel] = set()
        self._watcher: Watcher = self._fallen.add  # atomic, with and without the GIL

    def sync(self, members: Sequence[Subchannel]) -> None:
        """Make ``members`` (all of positive weight) the list; what stays keeps its place."""
        wanted = {member: member.endpoint.weight for member in members}
        with self._lock:
            self.catch_up()
            known = self._weights
            gone = [m for m, weight in known.items() if wanted.get(m) != weight]
            new = [m for m, weight in wanted.items() if known.get(m) != weight]
            for member in gone:
                self._remove(member)
            self._weights = wanted
            for member in new:
                self._add(member)
            self._synced()
        for member in gone:
            if member not in wanted and member.on_load is self._watcher:
                member.on_load = None
        for member in new:
            member.on_load = self._watcher
        with self._lock:
            for member in new:  # a count that fell before we listened
                self._update(member)

    def catch_up(self) -> None:
        """Mirror the counts that fell since the last look. Called with the lock held."""
        fallen = self._fallen
        while fallen:
            self._update(fallen.pop())

    def _begin(self, member: Subchannel) -> None:
        """Count one more request on the picked member. Called with the lock held."""
        with member.lock:
            member.inflight += 1
        self._update(member)

    def _add(self, member: Subchannel) -> None:
        raise NotImplementedError

    def _remove(self, member: Subchannel) -> None:
        raise NotImplementedError

    def _update(self, member: Subchannel) -> None:
        """Mirror the member's count; does nothing for one that is not (or no longer) in the list."""
        raise NotImplementedError

    def _synced(self) -> None:
        """After the list changed."""
