"""The demo, as a user runs it: real servers, real traffic, and nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import pytest

from meshlib.cli.demo.story import NOTICE

#: The shortest demo.
SECONDS = "10"


def demo(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "meshlib", "demo", "--seconds", SECONDS, *arguments]


def backends_of(folder: Path) -> list[int]:
    """Demo backends that run with this temporary folder in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            if b"meshlib.cli.demo.backend" in command and f"TMPDIR={folder}".encode() in environ.split(b"\0"):
                found.append(int(entry.name))
    return found


def test_no_request_fails_and_the_figures_add_up() -> None:
    """One backend slows down, one dies, one joins: no request fails, and the traffic follows."""
    # What a user's machine may have set must not matter: a proxy, and settings for other programs.
    environ = {
        **os.environ,
        "HTTP_PROXY": "http://127.0.0.1:1",
        "MESHLIB_STRICT": "yes",
        "MESHLIB_PICKER": "random",
    }
    done = subprocess.run(demo("--json"), capture_output=True, text=True, timeout=90, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == 0
    assert found["errors"] == []
    assert found["http"] > 100
    assert found["grpc"] > 100
    assert found["requests"] == found["http"] + found["grpc"]
    assert found["slow_share_after"] < found["slow_share_before"] / 2
    assert (
        found["p99_slow"] < 0.25 * 0.75
    )  # a quarter of a second is what the slow one takes, give or take 25 %
    assert found["dead_received_for"] < NOTICE  # it stopped getting traffic before the registry knew
    assert found["joiner_waited"] is not None


def test_plain_output_tells_the_story_and_the_summary() -> None:
    """Without a terminal it prints lines: every event and the figures; the verdict is the exit code."""
    done = subprocess.run(
        demo(), capture_output=True, text=True, timeout=90, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in (
        "slows down",
        "dies",
        "the registry drops",
        "joins",
        "as fast as before",
        "failed",
        "share of",
    ):
        assert part in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("columns", [100, 30])
def test_a_terminal_gets_a_live_table(columns: int) -> None:
    """On a terminal, a narrow one too: columns that are drawn again in place, then the story and the summary."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    running = subprocess.Popen(demo(), stdin=its, stdout=its, stderr=its, env=environ)
    os.close(its)
    parts = []
    try:
        with contextlib.suppress(OSError):  # EIO: the other side was closed
            while part := os.read(ours, 65536):
                parts.append(part)
        assert running.wait(30) == 0
    finally:
        os.close(ours)
        if running.poll() is None:
            running.kill()
            running.wait()
    text = b"".join(parts).decode()
    assert "Traceback" not in text
    live, _, end = text.partition("summary")
    assert live.count("\x1b[1A\x1b[2K") > 50  # the line above, erased: drawn again, many times
    if columns == 100:
        for word in ("endpoint", "share", "in flight", "p50", "p99", "errors", "five", "joined", "█"):
            assert word in live
    assert "requests" in end


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process(how: signal.Signals) -> None:
    """However the demo ends, its servers end with it; unless it was killed outright, so does its folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = subprocess.Popen(demo(), env={**os.environ, "TMPDIR": name}, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 30
            while len(backends_of(folder)) < 5:
                assert time.monotonic() < deadline, "the backends did not start"
                time.sleep(0.05)
            running.send_signal(how)
            running.wait(30)
            while backends_of(folder):
                assert time.monotonic() < deadline + 30, "backends outlived the demo"
                time.sleep(0.05)
            if how is not signal.SIGKILL:
                assert list(folder.iterdir()) == []
        finally:
            if running.poll() is None:
                running.kill()
                running.wait()
