"""meshlib resolve --watch, as a user runs it: a line per change, until interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "orders-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "orders"}},
    "addressType": "IPv4",
    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "orders", "namespace": "shop"},
    "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]},
}


def write(folder: Path, *addresses: str) -> None:
    entries = [{"addresses": [address], "conditions": {"ready": True}} for address in addresses]
    draft = folder / "orders.draft"
    draft.write_text(json.dumps({**SLICE, "endpoints": entries}))
    os.replace(draft, folder / "orders.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.json").write_text(json.dumps(SERVICE))
    write(tmp_path, "10.0.0.1")
    return tmp_path


@pytest.fixture
def watching(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "meshlib",
        "resolve",
        f"file://{folder}#shop/orders:http",
        "-w",
        "-o",
        "json",
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield running
    if running.poll() is None:
        running.kill()
    running.communicate()


def addresses(stream: IO[str] | None) -> list[str]:
    assert stream is not None
    found: dict[str, Any] = json.loads(stream.readline())
    return [row["address"] for row in found["endpoints"] if row["eligible"]]


def test_each_change_is_one_line(folder: Path, watching: subprocess.Popen[str]) -> None:
    """The first state at once, then one JSON line for each change, and none for what stays the same."""
    assert addresses(watching.stdout) == ["10.0.0.1"]
    write(folder, "10.0.0.1", "10.0.0.2")
    assert addresses(watching.stdout) == ["10.0.0.1", "10.0.0.2"]
    write(folder, "10.0.0.1", "10.0.0.2")  # the same again, in a new file
    write(folder, "10.0.0.3")
    assert addresses(watching.stdout)[-1] == "10.0.0.3"


def test_interrupt_ends_it_well(watching: subprocess.Popen[str]) -> None:
    """Ctrl-C is how one leaves: exit code 0, no traceback."""
    assert addresses(watching.stdout) == ["10.0.0.1"]
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=20)
    assert watching.returncode == 0
    assert errors == ""
