"""A Python process that sees the world as a pod does: its own /etc/hosts and environment, told what to do line by line.

Needs root and Linux, for a mount namespace of its own; nothing of the machine is changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.components.process import NotAvailable

_ROOT = Path(__file__).resolve().parents[2]


class Pod:
    """`hosts` maps names to addresses, in place of cluster DNS; `environ` replaces the environment."""

    def __init__(self, folder: Path, hosts: Mapping[str, str], environ: Mapping[str, str]) -> None:
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            raise NotAvailable("a private mount namespace needs root and the program unshare (util-linux)")
        hosts_file = folder / "hosts"
        hosts_file.write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
        self._process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                'mount --bind "$0" /etc/hosts && exec "$@"',
                str(hosts_file),
                sys.executable,
                "-X",
                "dev",
                "-W",
                "error",
                "-m",
                "tests.components.pod_caller",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={"PYTHONPATH": str(_ROOT), "PATH": os.environ["PATH"], "HOME": str(folder), **environ},
        )

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def do(self, **command: Any) -> dict[str, Any]:
        """One command to tests/components/pod_caller.py; its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate()
            raise AssertionError(f"the pod's process ended: {errors}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> tuple[int, str]:
        """Let it end by itself: exit code and everything it wrote to stderr."""
        _, errors = self._process.communicate(timeout=30)
        return self._process.returncode, errors
