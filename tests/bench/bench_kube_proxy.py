"""kube-proxy 1.20.2 and the agent, each as a process on the same real API server: first full sync, one change, memory.

ipvs in the user-mode-linux guest, iptables against nftables in a network namespace. Started in turn, each in a
namespace of its own; the time of a first sync is that from the start of the process until it says so itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.components.kube import KubeCluster
from tests.components.kube_binaries import cache_folder
from tests.components.process import wait_for
from tests.kernel.lab.agent import AgentProcess
from tests.kernel.lab.net import inside
from tests.kernel.lab.servers import Servers
from tests.kernel.uml.cluster import NODE, PODS, PORT, NodeSpace, agent, kube_proxy

NAME = "kube-proxy 1.20.2 and the agent on the same API server, Services with 5 endpoints each"
TARGETS = "first full sync <= 0.5 x kube-proxy's; agent's memory at 10,000 Services <= 150 MB"

ENDPOINTS = 5
CHANGES = 10
_TICK = os.sysconf("SC_CLK_TCK")


class Figures(NamedTuple):
    """Seconds, and MB of all of its processes together: what is theirs (PSS), and with what they share counted in each
    of them (RSS)."""

    first_sync: float
    first_cpu: float
    change: float
    change_cpu: float
    memory: float
    resident: float


def fill(kube: KubeCluster, first: int, last: int) -> None:
    """Services with slices written by hand, ``first`` to ``last``."""
    for number in range(first, last):
        name = f"orders-{number}"
        kube.create_service("default", name, selector={})
        high, low = divmod(number, 250)
        kube.put_slice(
            "default", name, name, [f"10.{128 + each}.{high}.{low + 1}" for each in range(ENDPOINTS)]
        )


def processes(pid: int) -> list[int]:
    """A process and its descendants that live."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def cpu(pid: int) -> float:
    """Seconds of processor time, of children that have ended as well."""
    total = 0
    for each in processes(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(") ")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / _TICK


def memory(pid: int) -> tuple[float, float]:
    """MB: shared pages by halves (PSS), and counted in each process (RSS)."""
    found = {"Pss:": 0, "Rss:": 0}
    for each in processes(pid):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(" ")
            if name in found:
                found[name] += int(rest.split()[0])
    return found["Pss:"] * 1024 / 1e6, found["Rss:"] * 1024 / 1e6


class Subject:
    """One of the two, in a namespace of its own."""

    def __init__(self, kube: KubeCluster, ours: bool, mode: str, folder: Path) -> None:
        self.space = NodeSpace(f"ml-bench-{secrets.token_hex(3)}", kube.port)
        self._kube = kube
        self._ours: AgentProcess | None = None
        if ours:
            self._ours = agent(kube, self.space, folder, in_pod=True, mode=mode)
            self.daemon = self._ours.daemon
        else:
            self.daemon = kube_proxy(kube, self.space, folder, mode)

    def synced(self) -> bool:
        """Whether the first full sync is done."""
        if self._ours is not None:
            return self._ours.synced()
        try:
            with inside(self.space.name):
                metrics = socket.create_connection(("127.0.0.1", 10249), timeout=5)
        except OSError:
            return False
        with metrics, metrics.makefile("rb") as answer:
            metrics.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = answer.read().decode()
        found = re.search(r"^kubeproxy_sync_proxy_rules_last_timestamp_seconds (\S+)$", text, re.MULTILINE)
        return found is not None and float(found[1]) > 0

    def measure(self) -> Figures:
        """The whole life."""
        with self.space, Servers() as servers:
            self.space.serve(servers, PODS[:2])
            vip = self._point(PODS[0])
            try:
                began = time.monotonic()
                self.daemon.start()
                # Answering takes a little of its time, so it is not asked all the time.
                wait_for(self.synced, timeout=600, interval=0.05, what="the first full sync")
                first = time.monotonic() - began
                first_cpu = cpu(self.daemon.pid)
                wait_for(partial(self._answers, vip, PODS[0]), timeout=60)
                times = []
                before = cpu(self.daemon.pid)
                for turn in range(CHANGES):
                    pod = PODS[(turn + 1) % 2]
                    self._point(pod)
                    at = time.monotonic()
                    wait_for(partial(self._answers, vip, pod), timeout=120, interval=0.005)
                    times.append(time.monotonic() - at)
                    time.sleep(1.2)  # both write at most once a second
                spent = (cpu(self.daemon.pid) - before) / CHANGES
                return Figures(first, first_cpu, median(times), spent, *memory(self.daemon.pid))
            finally:
                self.daemon.stop(20)

    def _point(self, pod: str) -> str:
        """The Service that is watched leads to this pod. Returns its address."""
        made = self._kube.create_service("default", "watched", selector={}, target_port=PORT)
        self._kube.put_slice("default", "watched", "watched", [pod])
        address: str = made["spec"]["clusterIP"]
        return address

    def _answers(self, vip: str, pod: str) -> bool:
        return _answering(self.space.name, vip) == pod


def _answering(space: str, vip: str) -> str:
    """Which pod, if any."""
    with inside(space):
        flow = socket.socket()
    with flow:
        flow.settimeout(2)
        try:
            flow.connect((vip, 80))
            flow.send(b"?")
            return flow.recv(200).decode().split()[0]
        except (OSError, IndexError):
            return ""


def compare(kube: KubeCluster, folder: Path, theirs: str, ours: str, times: int) -> dict[str, list[Figures]]:
    """Both in turn. ``theirs`` and ``ours``: modes."""
    found: dict[str, list[Figures]] = {}
    for turn in range(times):
        for name, mine, mode in ((f"kube-proxy, {theirs}", False, theirs), (f"meshlib, {ours}", True, ours)):
            own = folder / f"{turn}-{mode}-{mine}"
            own.mkdir()
            found.setdefault(name, []).append(Subject(kube, mine, mode, own).measure())
    return found


def rows_of(services: int, found: dict[str, list[Figures]]) -> list[list[str]]:
    """The table's; the first one is the peer."""
    rows = []
    peer = min(each.first_sync for each in next(iter(found.values())))
    for name, runs in found.items():
        firsts = [each.first_sync for each in runs]
        middle = [median(each[index] for each in runs) for index in range(len(Figures._fields))]
        rows.append(
            [
                f"{services:,}",
                name,
                f"{middle[0]:.2f} s ({min(firsts):.2f}-{max(firsts):.2f})",
                # The best of each: whatever else the machine does only ever makes it longer.
                f"{min(firsts) / peer:.2f}",
                f"{middle[1]:.2f} s",
                f"{middle[2] * 1000:.0f} ms",
                f"{middle[3] * 1000:.0f} ms",
                f"{middle[4]:.0f} MB ({middle[5]:.0f} MB)",
            ]
        )
    return rows


def in_guest(folder: Path, services: int, times: int) -> list[list[str]]:
    """Runs in the guest."""
    with KubeCluster("v1beta1", controllers=False) as kube:
        kube.create_node("node-a", ip=NODE)
        fill(kube, 0, services)
        return rows_of(services, compare(kube, folder, "ipvs", "ipvs", times))


def in_namespace(folder: Path, services: int, times: int, many: int) -> list[list[str]]:
    """On this machine's kernel. ``many``: Services for the last row, of the agent alone."""
    with KubeCluster("v1beta1", controllers=False) as kube:
        kube.create_node("node-a", ip=NODE)
        fill(kube, 0, services)
        rows = rows_of(services, compare(kube, folder, "iptables", "nftables", times))
        small = float(rows[-1][-1].split()[0])
        if many > services:
            fill(kube, services, many)
            own = folder / "many"
            own.mkdir()
            found = Subject(kube, True, "nftables", own).measure()
            row = rows_of(many, {"meshlib, nftables": [found]})[0]
            row[3] = ""
            growth = (found.memory - small) * 1000 / (many - services)
            row[-1] += f", {growth:.1f} kB per Service"
            rows.append(row)
        return rows


def run(quick: bool) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Boots the guest for the first half."""
    from tests.kernel.uml import guest

    services, times = (100, 1) if quick else (1000, 2)
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="meshlib-bench-") as name:
        folder = Path(name)
        result = folder / "result"
        command = [
            guest.python(),
            "-m",
            "tests.bench.bench_kube_proxy",
            str(result),
            str(services),
            str(times),
        ]
        guest.run(
            command,
            folder,
            env={"XDG_CACHE_HOME": str(cache_folder().parents[2])},
            memory=4096,
            cpu=max(os.sched_getaffinity(0)),
            timeout=800,
        )
        rows: list[Any] = json.loads(result.read_text())
        rows += in_namespace(folder, services, times, services if quick else 10_000)
    header = [
        "Services",
        "who",
        "first full sync",
        "ratio",
        "its CPU",
        "one change",
        "its CPU",
        "memory (RSS)",
    ]
    return header, rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as given:
        Path(sys.argv[1]).write_text(json.dumps(in_guest(Path(given), int(sys.argv[2]), int(sys.argv[3]))))
