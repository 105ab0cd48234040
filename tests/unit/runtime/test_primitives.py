"""Primitives of the runtime under threads."""

from __future__ import annotations

import threading
from collections import Counter

from meshlib.runtime.primitives import STRIPES, StripedLocks


def test_stripes_are_handed_out_in_turn() -> None:
    """Neighbours never share a lock, and each lock is shared by as many as any other."""
    locks = StripedLocks()
    handed = [locks() for _ in range(3 * STRIPES)]
    assert set(Counter(map(id, handed)).values()) == {3}
    assert handed[:STRIPES] == handed[STRIPES : 2 * STRIPES]


def test_stripes_may_be_asked_for_by_several_threads() -> None:
    """Clients make a Subchannel too, for the one try through the Service address."""
    locks = StripedLocks()
    handed: list[threading.Lock] = []
    threads = [threading.Thread(target=lambda: handed.extend(locks() for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(handed) == 2000
    assert len({id(lock) for lock in handed}) == STRIPES
