"""Finding the status sockets of running programs, and taking away those of programs that are gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshlib.runtime import status_place

#: Where the kernel lists the sockets of this network namespace, those outside the file system included.
PROC_NET_UNIX = "/proc/net/unix"
#: Where systemd keeps the XDG_RUNTIME_DIR of every user's session.
SESSIONS = "/run/user"


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket that may answer. ``uid`` and ``pid`` are what its name says; who answers is checked later."""

    address: Path | bytes
    uid: int
    pid: int

    def __str__(self) -> str:
        if isinstance(self.address, bytes):
            return "@" + self.address[1:].decode(errors="replace")
        return str(self.address)


@dataclass(slots=True)
class Found:
    """``looked``: where; ``ignored``: what was there and is not to be trusted; ``stale``: what was taken away."""

    sockets: list[Socket] = field(default_factory=list)
    looked: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    stale: list[Socket] = field(default_factory=list)


def find(setting: str, environ: Mapping[str, str], uid: int) -> Found:
    """All sockets that ``uid`` may ask: its own, and as root everybody's. ``setting``: that of ``status_socket``."""
    found = Found()
    for directory, owner in _directories(setting, environ, uid, found):
        _look(directory, owner, found)
    if setting == status_place.AUTO:
        found.looked.append(f"{PROC_NET_UNIX} (names outside the file system)")
        found.sockets += _abstract(uid)
    found.sockets.sort(key=lambda each: (each.uid, each.pid, str(each)))
    return found


def _directories(
    setting: str, environ: Mapping[str, str], uid: int, found: Found
) -> Iterator[tuple[Path, int]]:
    parents = list(status_place.parents(setting, environ))
    if uid == 0 and setting == status_place.AUTO:
        with contextlib.suppress(OSError):
            parents += sorted(Path(SESSIONS).iterdir())
    seen = set()
    for parent in parents:
        mine = status_place.directory(parent, uid)
        found.looked.append(str(status_place.directory(parent, uid)) if uid else f"{parent}/meshlib-*")
        candidates = [mine]
        if uid == 0:
            with contextlib.suppress(OSError):  # no such place
                candidates = sorted(parent.glob("meshlib-*"))
        for directory in candidates:
            owner = status_place.owner_of(directory)
            if owner is not None and directory not in seen:
                seen.add(directory)
                yield directory, owner


def _look(directory: Path, owner: int, found: Found) -> None:
    try:
        if problem := status_place.distrust(directory, owner):
            found.ignored.append(f"{directory}: {problem}")
            return
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        found.ignored.append(f"{directory}: {error.strerror or error}")
        return
    wall = time.time()
    for path in paths:
        pid = status_place.pid_of(path.name)
        if pid is None:
            continue
        socket = Socket(path, owner, pid)
        if not status_place.is_dead(path, wall):
            found.sockets.append(socket)
            continue
        with contextlib.suppress(
            OSError
        ):  # a file system that is read-only by now: it stays, and harms nobody
            path.unlink()
        found.stale.append(socket)


def _abstract(uid: int) -> Iterator[Socket]:
    try:
        table = Path(PROC_NET_UNIX).read_text(errors="replace")
    except OSError:  # no Linux, or no /proc
        return
    for each in status_place.read_abstract(table):
        if uid in (0, each.uid):
            yield Socket(each.address, each.uid, each.pid)
