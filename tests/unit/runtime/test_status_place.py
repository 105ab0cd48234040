"""Where status sockets are, and what is not to be trusted there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from meshlib.runtime import status_place
from meshlib.runtime.status_place import (
    Abstract,
    abstract_address,
    directory,
    distrust,
    is_dead,
    new_name,
    owner_of,
    parents,
    peer_of,
    pid_of,
    read_abstract,
)


def test_places_in_their_order() -> None:
    """The session's own place first; a setting names the only one; off has none."""
    usual = tuple(map(Path, status_place.PARENTS))
    assert parents("auto", {}) == usual
    assert parents("auto", {"XDG_RUNTIME_DIR": "/run/user/7"}) == (Path("/run/user/7"), *usual)
    assert parents("auto", {"XDG_RUNTIME_DIR": "not/absolute"}) == usual
    assert parents("/srv/app", {"XDG_RUNTIME_DIR": "/run/user/7"}) == (Path("/srv/app"),)
    assert parents("off", {}) == ()


def test_names_tell_whose_they_are() -> None:
    """A directory's name has its user, a socket's name its process; other names have none."""
    assert owner_of(directory(Path("/run"), 1000)) == 1000
    assert owner_of(Path("/run/meshlib-x")) is None
    assert owner_of(Path("/run/meshlib")) is None
    assert pid_of(new_name(4711)) == 4711
    assert pid_of("4711.sock") is None
    assert pid_of("4711-0123abcd.sock.old") is None
    assert new_name(1) != new_name(1)  # process 1 of two containers that share a directory


def test_only_a_closed_directory_of_the_user_is_trusted(tmp_path: Path) -> None:
    """Another's, an open one, a link and a file are refused, each with the reason."""
    uid = os.geteuid()
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    assert distrust(closed, uid) == ""
    assert "belongs to user" in distrust(closed, uid + 1)
    closed.chmod(0o750)
    assert "0750" in distrust(closed, uid)
    link = tmp_path / "link"
    link.symlink_to(closed)
    assert "not a directory" in distrust(link, uid)
    file = tmp_path / "file"
    file.touch(0o600)
    assert "not a directory" in distrust(file, uid)
    with pytest.raises(FileNotFoundError):
        distrust(tmp_path / "nothing", uid)


def listening_at(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(os.fspath(path))
    made.listen(1)
    return made


def test_dead_is_where_nobody_listens_any_more(tmp_path: Path) -> None:
    """The kernel's answer, but not for what is just being made; files and nothing at all are no dead sockets."""
    path = tmp_path / "s"
    listening = listening_at(path)
    later = path.lstat().st_mtime + status_place.SETTLED + 1
    assert not is_dead(path, later)
    listening.close()
    assert is_dead(path, later)
    assert not is_dead(path, path.lstat().st_mtime)
    file = tmp_path / "f"
    file.touch()
    assert not is_dead(file, later + 100)
    assert not is_dead(tmp_path / "nothing", later)


def test_a_full_queue_is_no_death(tmp_path: Path) -> None:
    """A worker that accepts nobody, for it stands still, lives."""
    path = tmp_path / "s"
    listening = listening_at(path)
    later = path.lstat().st_mtime + status_place.SETTLED + 1
    waiting = []
    try:
        while True:
            one = socket.socket(socket.AF_UNIX)
            waiting.append(one)
            one.setblocking(False)
            one.connect(os.fspath(path))
    except BlockingIOError:
        assert not is_dead(path, later)
    finally:
        for one in (*waiting, listening):
            one.close()


def test_names_outside_the_file_system_are_read_from_the_kernels_list() -> None:
    """Only listening sockets with our kind of name count; the rest of the list is others'."""
    mine = abstract_address(1000, "4711-0123abcd.sock")
    shown = mine[1:].decode()
    head = "Num       RefCount Protocol Flags    Type St Inode Path"
    table = "\n".join(
        [
            head,
            f"0000000000000000: 00000002 00000000 00010000 0001 01 21001 @{shown}",
            f"0000000000000000: 00000003 00000000 00000000 0001 03 21002 @{shown}",  # a connection to it
            "0000000000000000: 00000002 00000000 00010000 0001 01 21003 /run/other.sock",
            "0000000000000000: 00000002 00000000 00010000 0001 01 21004 @meshlib-status/x/y",
            "0000000000000000: 00000002 00000000 00010000 0001 01 21005",
        ]
    )
    assert list(read_abstract(table)) == [Abstract(mine, 1000, 4711)]


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="only Linux tells who the peer is")
def test_the_kernel_tells_who_the_peer_is() -> None:
    """Process and user of the other end."""
    one, other = socket.socketpair()
    with one, other:
        assert peer_of(one) == (os.getpid(), os.geteuid())
