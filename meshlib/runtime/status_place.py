"""Where status sockets are: the same answer for the program that serves one and for ``meshlib status``, which looks.

One directory per user, ``meshlib-UID`` with mode 0700, in the first of a few places that can be written; a socket in it
is called ``PID-TOKEN.sock``. Containers of one pod share /dev/shm but not their process numbers, hence the token. Where
no place can be written at all, Linux has names for sockets that are not in the file system; those carry no permissions,
so both ends ask the kernel who the other one is.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
import struct
import sys
from asyncio.trsock import TransportSocket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

#: Values of the setting ``status_socket`` that are no directory.
AUTO, OFF = "auto", "off"
#: Tried in this order after XDG_RUNTIME_DIR: root may write the first; the second is a file system of its own in every
#: container, writable also where the root file system is not; the last is where there is nothing better.
PARENTS = ("/run", "/dev/shm", "/tmp")  # noqa: S108 - what we make there is checked: ours, and closed to others
#: Names outside the file system begin with this, after the zero byte.
ABSTRACT = "meshlib-status/"
#: Longest path that a socket address holds: sun_path has 108 bytes on Linux and 104 on macOS, one of them the final
#: zero.
MAX_PATH = 107 if sys.platform == "linux" else 103

#: A socket is bound first and listens a moment later; only one that is older than this, seconds, can be called dead.
SETTLED = 5.0

_NAME = re.compile(r"(\d{1,10})-[0-9a-f]{8}\.sock")
_DIRECTORY = re.compile(r"meshlib-(\d{1,10})")
_ABSTRACT_NAME = re.compile(re.escape(ABSTRACT) + r"(\d{1,10})/(\d{1,10})-[0-9a-f]{8}\.sock")
#: struct ucred: pid, uid, gid.
_CREDENTIALS = struct.Struct("3i")


class Peer(NamedTuple):
    """Who is at the other end. ``pid`` is 0 where it has no number in our process namespace."""

    pid: int
    uid: int


class Abstract(NamedTuple):
    """A socket name outside the file system, as ``/proc/net/unix`` lists it."""

    address: bytes
    uid: int
    pid: int


def parents(setting: str, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The places, in order. A directory that is named in the setting is the only one."""
    if setting == OFF:
        return ()
    if setting != AUTO:
        return (Path(setting),)
    session = environ.get("XDG_RUNTIME_DIR", "")
    return tuple(map(Path, (session, *PARENTS) if session.startswith("/") else PARENTS))


def directory(parent: Path, uid: int) -> Path:
    return parent / f"meshlib-{uid}"


def owner_of(directory: Path) -> int | None:
    """The user that a directory's name says it belongs to; None: it is no such name."""
    match = _DIRECTORY.fullmatch(directory.name)
    return int(match[1]) if match else None


def new_name(pid: int) -> str:
    return f"{pid}-{secrets.token_hex(4)}.sock"


def pid_of(name: str) -> int | None:
    """The process that a socket's name says it belongs to; None: it is no such name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def abstract_address(uid: int, name: str) -> bytes:
    return b"\0" + f"{ABSTRACT}{uid}/{name}".encode()


def read_abstract(table: str) -> Iterator[Abstract]:
    """The status sockets in the text of ``/proc/net/unix`` (whoever made them: ask the kernel who answers)."""
    for line in table.splitlines():
        fields = line.split()
        # A listening socket has the flag __SO_ACCEPTCON; names outside the file system are shown with an @.
        if len(fields) == 8 and fields[3] == "00010000" and fields[7].startswith("@"):
            match = _ABSTRACT_NAME.fullmatch(fields[7][1:])
            if match:
                yield Abstract(b"\0" + fields[7][1:].encode(), int(match[1]), int(match[2]))


def distrust(directory: Path, uid: int) -> str:
    """Why a directory must not be used for sockets of ``uid``; empty: it may. Raises FileNotFoundError."""
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a directory"
    if found.st_uid != uid:
        return f"it belongs to user {found.st_uid}"
    if found.st_mode & 0o077:
        return f"others may enter it (mode {stat.S_IMODE(found.st_mode):04o} instead of 0700)"
    return ""


def is_dead(path: Path, wall: float) -> bool:
    """Whether nobody listens at a socket, and it is not one that is just being made. ``wall``: Unix seconds.

    The answer is the kernel's, so it holds across process namespaces. Never blocks.
    """
    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode) or wall - found.st_mtime < SETTLED:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
    except ConnectionRefusedError:
        return True
    except OSError:  # gone, not ours to ask, or too busy to take another connection
        return False
    return False


def peer_of(connection: socket.socket | TransportSocket) -> Peer | None:
    """The kernel's word for who is at the other end; None where it does not tell (other systems than Linux)."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return Peer(pid, uid)
