"""`meshlib status` and `meshlib top` on real programs: gunicorn's workers, forks, other users, read-only systems."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from meshlib.cli.app import meshlib
from meshlib.cli.status import ask
from tests.components.backends import Backends
from tests.components.process import Daemon, can_connect, free_port, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "gunicorn_prefork"
#: Longest time a program may need here, seconds. Only a hang reaches it.
PATIENCE = 60

#: A program that uses a target, says so, and lives until its input ends.
WORKER = """
import sys
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.config import load_config
mesh = Mesh(config=load_config({"sync_timeout": 60}))
handle = mesh.target("static:///127.0.0.2:80,127.0.0.3:80")
for _ in range(10):
    handle.acquire().done()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time."""
    monkeypatch.setattr(ask, "PATIENCE", 60.0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: the address of a socket has room for a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="ms-") as made:
        yield Path(made)


@contextmanager
def running(script: str, place: Path, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has said a first line; its input ends at the end, and then it has to end, too."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "MESHLIB_STATUS_SOCKET": str(place)},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.wait()
        yield process
        rest, _ = process.communicate(timeout=PATIENCE)
        assert (rest, process.returncode) == ("", 0)
    finally:
        with process:  # closes its pipes, and waits
            process.kill()


def status(place: Path, *arguments: str) -> Any:
    return CliRunner().invoke(
        meshlib, ["status", *arguments], env={"MESHLIB_STATUS_SOCKET": str(place), "MESHLIB_CONFIG": None}
    )


def document(place: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(status(place, "--json", *arguments).stdout)
    return found


def of_all(place: Path, count: int, *arguments: str) -> dict[str, Any]:
    """The document once so many answer: a worker that is forked with knowledge serves before it listens."""

    def all_there() -> dict[str, Any] | None:
        found = document(place, *arguments)
        return found if len(found["workers"]) == count else None

    return wait_for(all_there, timeout=PATIENCE, what=f"{count} workers")


def test_every_worker_of_gunicorn_tells_what_it_did(backends: Backends, tmp_path: Path, place: Path) -> None:
    """Each worker has its own socket; what they say adds up to what the backends got; a killed one is cleared away."""
    servers = backends.http(2)
    addresses = ",".join(f"{server.host}:{server.port}" for server in servers)
    port = free_port("127.0.0.1")
    gunicorn = Daemon(
        "gunicorn",
        [
            *(sys.executable, "-m", "gunicorn", "--chdir", str(EXAMPLE), "--workers", "3", "--preload"),
            *("--bind", f"127.0.0.1:{port}", "app:application"),
        ],
        tmp_path,
        {
            **os.environ,
            "HOME": str(tmp_path),
            "MESHLIB_ALIASES": json.dumps({"orders.local": f"static:///{addresses}"}),
            "MESHLIB_STATUS_SOCKET": str(place),
            "MESHLIB_SYNC_TIMEOUT": "60",
            "ORDERS_URL": "http://orders.local/",
            "WARM_UP": "1",  # the master has a socket of its own, which its workers must not take for theirs
        },
    )
    gunicorn.start()
    try:
        gunicorn.wait_until(lambda: can_connect("127.0.0.1", port))
        with httpx.Client(verify=False, timeout=PATIENCE) as client, ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: client.get(f"http://127.0.0.1:{port}/"), range(30)))
        told = {int(answer.text.split()[1].rstrip(":")) for answer in answers}
        found = of_all(place, len(told) + 1, "--all-workers")
        workers = {worker["pid"]: worker for worker in found["workers"]}
        assert set(workers) == told | {gunicorn.pid}
        assert {worker["parent"] for pid, worker in workers.items() if pid in told} == {gunicorn.pid}
        targets = [target for worker in workers.values() for target in worker["targets"]]
        assert sum(target["totals"]["requests"] for target in targets) == 31
        assert {server.requests for server in servers} == {
            sum(row["requests"] for t in targets for row in t["endpoints"] if row["address"] == server.host)
            for server in servers
        }
        assert all(worker["versions"]["httpx"] == httpx.__version__ for worker in workers.values())
        table = status(place).stdout
        assert f"{len(workers)} workers" in table
        (one,) = document(place, "--pid", str(max(told)))["workers"]
        assert one["pid"] == max(told)

        killed = max(told)
        os.kill(killed, signal.SIGKILL)
        (left,) = (place / f"meshlib-{os.geteuid()}").glob(f"{killed}-*.sock")
        wait_for(lambda: not Path(f"/proc/{killed}").exists(), timeout=PATIENCE)
        os.utime(left, (0, 0))  # it has been like that for a while
        after = document(place)
        assert [each["pid"] for each in after["removed"]] == [killed]
        assert killed not in {worker["pid"] for worker in after["workers"]}
        assert not left.exists()
    finally:
        gunicorn.stop(PATIENCE)
    assert list((place / f"meshlib-{os.geteuid()}").iterdir()) == []


def test_a_forked_child_has_a_socket_of_its_own(place: Path) -> None:
    """Both answer for themselves; the child's end takes only its own socket away, the parent's end the parent's."""
    script = (
        WORKER.replace('print("ready", flush=True)\nsys.stdin.read()', "")
        + """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
to_child, from_parent = os.pipe()
from_child, to_parent = os.pipe()
pid = os.fork()
if pid == 0:
    handle.acquire().done()
    os.write(to_parent, b"x")
    os.read(to_child, 1)
    sys.exit(0)
os.read(from_child, 1)
print("ready", pid, flush=True)
sys.stdin.readline()
os.write(from_parent, b"x")
os.waitpid(pid, 0)
print("alone", flush=True)
sys.stdin.read()
"""
    )
    with running(script, place) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        workers = {worker["pid"]: worker for worker in of_all(place, 2)["workers"]}
        assert parent.pid in workers
        (child,) = set(workers) - {parent.pid}
        assert workers[child]["parent"] == parent.pid
        counts = {pid: worker["targets"][0]["requests"] for pid, worker in workers.items()}
        assert counts == {parent.pid: 10, child: 1}
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "alone\n"
        assert [worker["pid"] for worker in document(place)["workers"]] == [parent.pid]
    assert list((place / f"meshlib-{os.geteuid()}").iterdir()) == []


def test_switched_off_there_is_none(place: Path) -> None:
    """`off`: no socket and no directory, and the program as it is."""
    with running(WORKER.replace('"sync_timeout": 60', '"sync_timeout": 60, "status_socket": "off"'), place):
        assert list(place.iterdir()) == []


def test_before_the_first_use_there_is_none(place: Path) -> None:
    """A Mesh that was only made has no socket."""
    with running(
        'import sys, meshlib\nmesh = meshlib.Mesh()\nprint("ready", flush=True)\nsys.stdin.read()', place
    ):
        assert list(place.iterdir()) == []


def test_nobody_there(place: Path) -> None:
    """Where it looked and what to check, and the exit code for a no; JSON stays JSON."""
    result = status(place)
    assert result.exit_code == 1
    assert f"{place}/meshlib-" in result.stderr
    assert "Check that" in result.stderr
    empty = status(place, "--json")
    assert empty.exit_code == 1
    assert json.loads(empty.stdout) == {"schema": 1, "workers": [], "silent": [], "removed": []}
    off = CliRunner().invoke(meshlib, ["status"], env={"MESHLIB_STATUS_SOCKET": "off"})
    assert off.exit_code == 1
    assert "status_socket is off here" in off.stderr


def test_another_number_and_both_options(place: Path) -> None:
    """Asked for a process that is none of ours, it names those that are; options that exclude each other do."""
    with running(WORKER, place) as worker:
        result = status(place, "--pid", "1")
        assert result.exit_code == 1
        assert f"These do: {worker.pid}" in result.stderr
        assert status(place, "--pid", "1", "--all-workers").exit_code == 2


def test_a_broken_file_does_not_keep_us_from_looking(place: Path, tmp_path: Path) -> None:
    """At three in the morning somebody breaks meshlib.toml: the workers still run, and status still tells."""
    broken = tmp_path / "meshlib.toml"
    broken.write_text("mode = [")
    with running(WORKER, place) as worker:
        result = CliRunner().invoke(
            meshlib,
            ["status", "--json"],
            env={"MESHLIB_CONFIG": str(broken), "MESHLIB_STATUS_SOCKET": str(place)},
        )
        assert "not valid TOML" in result.stderr
        assert [each["pid"] for each in json.loads(result.stdout)["workers"]] == [worker.pid]


def test_a_worker_that_stands_still(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process is named, and the exit code says that something is not known."""
    with running(WORKER, place) as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        os.waitpid(worker.pid, os.WUNTRACED)  # until all its threads stand still
        try:
            monkeypatch.setattr(ask, "PATIENCE", 0.3)
            result = status(place)
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        assert result.exit_code == 3
        assert f"no answer from process {worker.pid}" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_root_may_ask_another_user_may_not(place: Path) -> None:
    """A worker of user 65534: root sees it, user 1 neither finds it nor may open its socket."""
    place.chmod(0o777)
    script = WORKER.replace("handle =", "import os; os.setgid(65534); os.setuid(65534)\nhandle =")
    with running(script, place) as worker:
        (found,) = document(place)["workers"]
        assert (found["pid"], found["uid"]) == (worker.pid, 65534)
        other = """
            import os, sys
            from pathlib import Path
            from meshlib.cli.status import ask, find
            from meshlib.runtime import status_socket
            os.setgid(1)
            os.setuid(1)
            place, path = sys.argv[1:]
            print(len(find.find(place, {}, 1).sockets))
            print(ask.ask_all([find.Socket(Path(path), 65534, 1)], 1, others=False)[0].why)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(other), str(place), found["socket"]],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.stdout.splitlines() == ["0", "only user 65534 and root may ask"], done.stderr


def _may_unshare() -> bool:
    program = shutil.which("unshare")
    return program is not None and subprocess.run([program, "-m", "-n", "true"], check=False).returncode == 0


def test_a_read_only_system_without_tmp(place: Path) -> None:
    """Nowhere to write: a name outside the file system, found and asked all the same."""
    if not _may_unshare():
        pytest.skip("a mount and a network namespace of its own need root and the program unshare")
    script = (
        WORKER.replace('print("ready", flush=True)\nsys.stdin.read()', "")
        + """
import subprocess
print(subprocess.run([sys.executable, "-m", "meshlib", "status", "--json"], capture_output=True, text=True).stdout)
"""
    )
    read_only = "; ".join(f"mount -t tmpfs -o ro none {where}" for where in ("/run", "/dev/shm", "/tmp"))
    done = subprocess.run(
        ["unshare", "-m", "-n", "sh", "-ec", f'{read_only}; exec "$@"', "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=Path(__file__).parents[2],
        env={
            name: value
            for name, value in os.environ.items()
            if name not in ("XDG_RUNTIME_DIR", "MESHLIB_STATUS_SOCKET")
        },
    )
    assert done.stderr == ""
    (found,) = json.loads(done.stdout)["workers"]
    assert found["socket"].startswith(f"@meshlib-status/{os.geteuid()}/{found['pid']}-")
    assert found["targets"][0]["requests"] == 10


def _top(place: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "meshlib", "top", "--interval", "0.2", *arguments]


def test_top_prints_one_picture_without_a_terminal(place: Path) -> None:
    """Both tables, once; nobody there is the same clear message as status has."""
    env = {**os.environ, "MESHLIB_STATUS_SOCKET": str(place)}
    nobody = subprocess.run(
        _top(place), capture_output=True, text=True, timeout=PATIENCE, env=env, check=False
    )
    assert nobody.returncode == 1
    assert "Check that" in nobody.stderr
    with running(WORKER, place):
        done = subprocess.run(
            _top(place),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=env,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.count("REQ/S") == 2
    assert "127.0.0.2:80" in done.stdout


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_top_is_live_until_q_or_ctrl_c(place: Path, key: bytes) -> None:
    """It draws again and again on a terminal, ends with exit code 0, and leaves the terminal as it was."""
    env = {**os.environ, "MESHLIB_STATUS_SOCKET": str(place), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with running(WORKER, place):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(sys.executable, _top(place), env)
        try:
            seen = b""
            deadline = time.monotonic() + PATIENCE
            while seen.count(b"REQ/S") < 6 and time.monotonic() < deadline:  # three pictures of two tables
                seen += os.read(terminal, 65536)
            os.write(terminal, key)
            while True:
                try:
                    seen += os.read(terminal, 65536)
                except OSError:  # how Linux says that the other end has closed
                    break
        finally:
            os.close(terminal)
        _, result = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(result) == 0, seen[-2000:]
    assert b"\x1b[?1049l" in seen  # back from the alternate screen
    assert b"Traceback" not in seen
