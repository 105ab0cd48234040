"""Programs in the foreground, their ports, their logs, and waiting for something to become true."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

# Below Linux's ephemeral range (32768-60999), so that no outgoing connection of any process can take the port
# of a server while a test has stopped it; above the ports of usual services.
_PORTS = itertools.cycle(random.Random(os.getpid()).sample(range(20000, 32000), 12000))


class NotAvailable(Exception):
    """A component is not installed. The message says how to get it."""


def free_port(*hosts: str) -> int:
    """A port that nobody listens on at the moment, TCP or UDP, on any of `hosts` (default 127.0.0.1)."""
    for port in _PORTS:
        try:
            for host in hosts or ("127.0.0.1",):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(family, kind) as probe:
                        if kind == socket.SOCK_STREAM:
                            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind((host, port))
        except OSError:
            continue
        return port
    raise AssertionError("unreachable")


def program(name: str, *folders: Path | str | None, package: str | None = None) -> str:
    """The full path of a program: from `folders`, PATH or the sbin folders."""
    places = [str(f) for f in folders if f] + [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        hint = f" (Debian package {package})" if package else ""
        raise NotAvailable(f"{name} is not installed{hint}; `make components` gets it")
    return found


def wait_for(
    condition: Callable[[], T | None], *, timeout: float = 10.0, what: str = "", interval: float = 0.02
) -> T:
    """Calls `condition` until it returns something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"after {timeout:g} s still waiting for {what or condition!r}; last: {value!r}"
            )
        time.sleep(interval)


def can_connect(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


# Kills what is still running when its standard input ends: when the test process is gone, however it went.
_REAPER = """
import os, signal, sys
running = set()
for line in sys.stdin:
    (running.add if line[0] == "+" else running.discard)(int(line[1:]))
for pid in running:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@functools.cache
def _reaper() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _REAPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def _reaper_told(sign: str, pid: int) -> None:
    pipe = _reaper().stdin
    assert pipe is not None
    pipe.write(f"{sign}{pid}\n")
    pipe.flush()


class Daemon:
    """One program in the foreground. Its output goes to a log file; it is stopped by its process id."""

    def __init__(self, name: str, args: Sequence[str], folder: Path, env: dict[str, str] | None = None):
        self.name = name
        self.args = list(args)
        self.folder = folder
        self.log = folder / f"{name}.log"
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches pytest, and pytest stops us in order.
            self._process = subprocess.Popen(
                self.args,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._env,
                start_new_session=True,
            )
        _reaper_told("+", self._process.pid)

    def wait_until(self, ready: Callable[[], Any], timeout: float = 30.0) -> None:
        """Waits until `ready()` is true; the program's own death ends the wait at once."""

        def check() -> bool:
            if not self.running:
                code = self._process.returncode if self._process else None
                raise RuntimeError(f"{self.name} ended with {code}:\n{self.tail()}")
            return bool(ready())

        try:
            wait_for(check, timeout=timeout, what=f"{self.name} to be ready")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.tail()}") from None

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def send(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def pause(self) -> None:
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def stop(self, timeout: float = 5.0) -> None:
        """Politely first, then not. Safe to call twice."""
        if self._process is None:
            return
        self.send(signal.SIGTERM)
        self.resume()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self._process.wait()
        _reaper_told("-", self._process.pid)
        self._process = None


def required_lanes() -> set[str]:
    return {lane.strip() for lane in os.environ.get("MESHLIB_REQUIRE", "").split(",") if lane.strip()}


def leave_out(lane: str, reason: object) -> None:
    """Skips the running test; fails it where MESHLIB_REQUIRE names the lane."""
    if lane in required_lanes():
        pytest.fail(f"lane {lane!r} is required: {reason}", pytrace=False)
    pytest.skip(f"lane {lane!r} left out: {reason}")
