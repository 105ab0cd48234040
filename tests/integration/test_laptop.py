"""examples/laptop as it is written: the programs, the tunnel's place, and the services of the compose file."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshlib.discovery.kubernetes.credentials import SERVICE_ACCOUNT_DIR
from tests.components.process import can_connect, free_port, wait_for

LAPTOP = Path(__file__).resolve().parents[2] / "examples" / "laptop"
COMPOSE: dict[str, Any] = yaml.safe_load((LAPTOP / "compose/compose.yaml").read_text())
IN_A_POD = Path(SERVICE_ACCOUNT_DIR, "token").exists() or "KUBERNETES_SERVICE_HOST" in os.environ
pytestmark = pytest.mark.skipif(IN_A_POD, reason="the tests run in a pod, where no dev file is read")
MESHLIB = [sys.executable, "-W", "error", "-m", "meshlib"]


@contextmanager
def program(words: list[str], port: int, **environ: str) -> Iterator[None]:
    running = subprocess.Popen(
        [sys.executable, *words[1:]], cwd=LAPTOP, env={**os.environ, **environ}, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: can_connect(environ.get("BIND", "127.0.0.1"), port), timeout=60)
        yield
    finally:
        running.kill()
        running.wait()


def web(words: list[str], folder: Path, **environ: str) -> list[str]:
    """The lines of a program that ends by itself; ``meshlib`` and ``python`` are ours."""
    assert words[0] == "meshlib"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    known = {**os.environ, "PATH": path, "MESHLIB_SYNC_TIMEOUT": "30"}
    command = [*MESHLIB, *words[1:]]
    done = subprocess.run(
        command, cwd=folder, env=known | environ, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert "meshlib.dev.toml is in use: orders.shop.svc -> " in done.stderr
    return done.stdout.splitlines()


def dev_file(source: str, port: int, folder: Path) -> str:
    """The example's own file, with a port that is free on this machine."""
    text = (LAPTOP / source).read_text()
    assert "= 9000" in text or ":9000" in text
    (folder / "meshlib.dev.toml").write_text(text.replace("9000", str(port)))
    return str(folder / "meshlib.dev.toml")


@contextmanager
def tunnel(port: int, to: int) -> Iterator[None]:
    """What kubectl port-forward is to a program: a listener whose connections end at one pod."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def serve() -> None:
        while True:
            try:
                ours, _ = listener.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", to))
            ends.extend((ours, theirs))
            for pair in ((ours, theirs), (theirs, ours)):
                thread = threading.Thread(target=pump, args=pair)
                thread.start()
                pumps.append(thread)

    ends: list[socket.socket] = []
    pumps: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", port))
    server = threading.Thread(target=serve)
    server.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
        listener.close()
        for end in ends:
            with contextlib.suppress(OSError):  # its peer closed first
                end.shutdown(socket.SHUT_RDWR)
        for pumping in pumps:
            pumping.join()
        for end in ends:
            end.close()


@pytest.mark.parametrize("way", ["program", "port-forward"])
def test_one_program_on_this_machine(tmp_path: Path, way: str) -> None:
    """The commands of the page: the dev file's port is the program itself, or the tunnel to it."""
    port, behind = free_port(), free_port()
    dev_file("meshlib.dev.toml", port, tmp_path)
    words = ["meshlib", "run", "--", "python", str(LAPTOP / "web.py")]
    served = port if way == "program" else behind
    with program(["python", "orders.py", str(served)], served, BIND="127.0.0.1"):
        if way == "program":
            lines = web(words, tmp_path, MESHLIB_ENV="dev")
        else:
            with tunnel(port, behind):
                lines = web(words, tmp_path, MESHLIB_ENV="dev")
    assert len(lines) == 4
    assert all(line.endswith("for orders.shop.svc") for line in lines)


def test_compose_file() -> None:
    """It has the services of the page, mounts what exists, and passes the dev file by its name."""
    services = COMPOSE["services"]
    assert set(services) == {"orders", "web"}
    environ = services["web"]["environment"]
    mounts = dict(volume.split(":")[:2] for volume in services["web"]["volumes"])
    for source in mounts:
        assert (LAPTOP / "compose" / source).exists()
    assert environ["MESHLIB_DEV_FILE"] in mounts.values()
    assert "pip install" in services["web"]["build"]["dockerfile_inline"]
    assert services["web"]["depends_on"] == ["orders"]


def test_services_of_the_compose_file(tmp_path: Path) -> None:
    """Their own commands as processes: two replicas behind the name that compose's DNS would give, in turns."""
    hosts = ["127.0.0.2", "127.0.0.3"]
    port = free_port(*hosts)
    names = tmp_path / "hosts"
    names.write_text("".join(f"{host} orders\n" for host in hosts))
    orders = [str(port) if word == "9000" else word for word in COMPOSE["services"]["orders"]["command"]]
    settings = {"dns": {"hosts": str(names), "allow_loopback": True}}
    with (
        program(orders, port, BIND=hosts[0]),
        program(orders, port, BIND=hosts[1]),
    ):
        lines = web(
            COMPOSE["services"]["web"]["command"],
            LAPTOP,
            MESHLIB_DEV_FILE=dev_file("compose/meshlib.dev.toml", port, tmp_path),
            MESHLIB_DISCOVERY=json.dumps(settings),
            MESHLIB_PICKER="round_robin",
            MESHLIB_SYNC_TIMEOUT="30",
        )
    counts = {host: sum(f"/{host} for orders.shop.svc" in line for line in lines) for host in hosts}
    assert counts == {hosts[0]: 6, hosts[1]: 6}
