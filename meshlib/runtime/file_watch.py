"""FileWatch: has the content of a file changed, and is whoever writes it done?"""

from __future__ import annotations

import os
from collections.abc import Callable

#: A file that was not written for this long is complete, seconds: editors and ``cp`` empty a file before they fill it,
#: and an empty one is valid, but not what was meant. A volume that swaps a link (ConfigMap) is complete at once, and
#: waits no longer than this either. Less than the time between two looks, so that the second one takes the change.
SETTLED = 0.8

_Signature = tuple[int, int, int, int, int] | None


class FileWatch:
    """Looks at a path, through links: one ``stat`` per look. ``now``: monotonic seconds, ``wall``: Unix seconds. For
    one thread at a time.

    A file that is not there has a content, too: none. The first settled look always reports a change, since nobody
    knows what was read before it.
    """

    def __init__(self, path: str, now: Callable[[], float], wall: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._wall = wall
        self._reported: _Signature | tuple[()] = ()  #: (): none yet
        self._seen: _Signature | tuple[()] = ()  #: at the look before
        self._seen_at = 0.0  #: when it was seen first

    def again(self) -> None:
        """What was reported could not be taken in: report it at the next settled look, too."""
        self._reported = ()

    def changed(self) -> bool:
        """Whether there is another content than at the last report, and was for SETTLED seconds at least."""
        found, now = _signature(self._path), self._now()
        if found != self._seen:
            self._seen, self._seen_at = found, now
        if found == self._reported:
            return False
        at_rest = (
            found is not None and self._wall() - found[0] / 1e9 >= SETTLED
        )  # a change time: nobody can forge it
        if at_rest or now - self._seen_at >= SETTLED:
            self._reported = found
            return True
        return False


def _signature(path: str) -> _Signature:
    try:
        status = os.stat(path)
    except OSError:  # not there, or not for us: the reader says which
        return None
    return status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
