"""The backends as child processes, and the manifest folder that tells meshlib about them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMESPACE, SERVICE = "shop", "orders"
#: How long a backend may take to start or to end, seconds, before it counts as broken.
PATIENCE = 15.0


@dataclass(slots=True)
class Member:
    """One backend process."""

    name: str
    process: subprocess.Popen[bytes]
    http: int
    grpc: int

    def order(self, text: str) -> None:
        if self.process.stdin is not None:
            self.process.stdin.write(text.encode() + b"\n")
            self.process.stdin.flush()


class Fleet:
    """Starts and stops backends, and registers them as a Service with one EndpointSlice each (ports differ)."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="meshlib-demo-"))
        self.members: dict[str, Member] = {}
        self._write("service", _service())

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members.values():
            if member.process.stdin is not None:
                member.process.stdin.close()  # it exits by itself when its input ends
        for member in self.members.values():
            try:
                member.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            if member.process.stdout is not None:
                member.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def target(self, port: str) -> str:
        """The target text for the Service's port ``http`` or ``grpc``."""
        return f"file://{self.folder}#{NAMESPACE}/{SERVICE}:{port}"

    def start(self, *names: str) -> None:
        """Start backends and wait until they listen; they get no traffic before ``register``."""
        started = {name: self._spawn(name) for name in names}
        for name, process in started.items():
            line = process.stdout.readline() if process.stdout is not None else b""
            if not line:
                raise OSError(f"backend {name} did not start (exit code {process.wait(PATIENCE)})")
            ports = json.loads(line)
            self.members[name] = Member(name, process, ports["http"], ports["grpc"])

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module, and names from story.py
            [sys.executable, "-m", "meshlib.cli.demo.backend", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is for the demo; it ends its backends itself, in order.
            start_new_session=True,
        )

    def register(self, name: str) -> None:
        self._write(name, _slice(self.members[name]))

    def forget(self, name: str) -> None:
        (self.folder / f"{name}.json").unlink()

    def slow_down(self, name: str, delay: float) -> None:
        self.members[name].order(f"delay {delay}")

    def stop(self, name: str) -> None:
        """Close its ports, finishing what is under way; the registry does not know yet."""
        self.members[name].order("stop")

    def _write(self, name: str, manifest: dict[str, Any]) -> None:
        path = self.folder / f"{name}.json"
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(manifest, indent=2))
        os.replace(draft, path)  # a reader sees the old file or the new one, never half of it


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE},
        "spec": {
            "clusterIP": "None",
            "ports": [{"name": "http", "port": 80}, {"name": "grpc", "port": 9000}],
        },
    }


def _slice(member: Member) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{SERVICE}-{member.name}",
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": SERVICE},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": "http", "port": member.http, "protocol": "TCP"},
            {"name": "grpc", "port": member.grpc, "protocol": "TCP"},
        ],
        "endpoints": [
            {
                "addresses": ["127.0.0.1"],
                "conditions": {"ready": True},
                "targetRef": {
                    "kind": "Pod",
                    "name": member.name,
                    "uid": f"{member.name}-{member.process.pid}",
                },
            }
        ],
    }
