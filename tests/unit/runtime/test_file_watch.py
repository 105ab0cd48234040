"""FileWatch: a change is reported once, and not before whoever writes is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshlib.runtime.file_watch import SETTLED, FileWatch


class Time:
    """Steps of a second on the monotonic clock; on the wall it is when the file was written, or ``later``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.later = 0.0
        self.now = 0.0

    def wall(self) -> float:
        try:
            return os.stat(self.path).st_ctime + self.later
        except FileNotFoundError:
            return 0.0


class Looks:
    """``changed()``: a look, some time after the one before."""

    def __init__(self, path: Path) -> None:
        self.time = Time(path)
        self.watch = FileWatch(str(path), lambda: self.time.now, self.time.wall)

    def changed(self, after: float = 1.0) -> bool:
        self.time.now += after
        return self.watch.changed()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "meshlib.toml"
    found.write_text("")
    return found


@pytest.fixture
def watch(path: Path) -> Looks:
    """That has reported what is there now."""
    made = Looks(path)
    assert [made.changed() for _ in range(3)] == [False, True, False]
    return made


def test_a_change_waits_until_it_rests(path: Path, watch: Looks) -> None:
    """A file that was written just now may be half of what it will be, however often one looks."""
    path.write_text("mode =")
    assert not watch.changed()
    path.write_text("mode = 'off'")
    assert [watch.changed(after=0.1) for _ in range(7)] == [False] * 7
    assert watch.changed()
    assert not watch.changed()


def test_a_file_at_rest_is_taken_at_once(path: Path) -> None:
    """What was not written for SETTLED seconds is complete, also at the first look."""
    for later in (0.9 * SETTLED, 1.1 * SETTLED):
        watch = Looks(path)
        watch.time.later = later
        assert watch.changed() is (later > SETTLED)


def test_a_link_swapped_below_the_path(tmp_path: Path) -> None:
    """As a ConfigMap's volume does: the file is a link through ..data, which is replaced. Same size, same time."""
    for name, text in (("one", "mode = 'on' "), ("two", "mode = 'off'")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meshlib.toml").write_text(text)
        os.utime(tmp_path / name / "meshlib.toml", (1, 1))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "meshlib.toml").symlink_to("..data/meshlib.toml")
    watch = Looks(tmp_path / "meshlib.toml")
    watch.changed()
    assert watch.changed()
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "..data")
    assert [watch.changed() for _ in range(3)] == [False, True, False]


def test_gone_and_back(path: Path, watch: Looks) -> None:
    """An editor that moves its file into place is not noticed; a file that stays away is."""
    path.unlink()
    assert not watch.changed()
    path.write_text("mode = 'on'")
    assert [watch.changed() for _ in range(3)] == [False, True, False]
    path.unlink()
    assert [watch.changed() for _ in range(3)] == [False, True, False]
    path.write_text("")
    assert [watch.changed() for _ in range(3)] == [False, True, False]


def test_the_same_content_again_is_quiet(watch: Looks) -> None:
    """Nothing happens, nothing is reported."""
    assert not any(watch.changed() for _ in range(10))
