"""Programming IPVS, against ipvsadm and pyroute2, in one boot of the user-mode-linux guest, on one processor.

A system call costs the guest more than it does a machine's own kernel, so ratios to a peer with many calls are larger
here than there. What is compared was read back from the kernel and found equal.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.compile.compiler import Compiler
from meshlib.agent.engine.garbage import undisturbed
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.node import FamilyEngine
from meshlib.agent.engine.programmer import Programmer
from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.messages import Request
from meshlib.agent.netlink.socket import ROUTE, NetlinkSocket
from meshlib.agent.settings import AgentSettings
from meshlib.model.cluster import ClusterChange, Node, ServiceFacts
from meshlib.model.service import Service, ServiceKey, ServicePort
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort

NAME = "IPVS: programming and reading, in the user-mode-linux guest"
TARGETS = (
    "full programming from the model <= 0.10 x ipvsadm -R; dump and parse <= 0.5 x ipvsadm -Sn; one endpoint: "
    "O(1) writes, <= 5 ms, flat from 1,000 to 10,000 Services; ratios are of the best times"
)

NODE = Node(name="node-1", addresses=("10.0.0.1",))


#: Services that the slow peers are given; their time per command does not depend on how many there are.
SAMPLE = 200
IPVSADM = f"program: ipvsadm -R ({SAMPLE} Services, scaled)"
PYROUTE2 = f"program: pyroute2 ({SAMPLE} Services, scaled)"
MESHLIB = "program: meshlib, from the model"
IPVSADM_READ, MESHLIB_READ = "read: ipvsadm -Sn", "read: meshlib"


def facts(services: int, endpoints: int) -> ClusterChange:
    """A cluster of Services with one TCP port each."""
    found = {}
    for number in range(services):
        key = ServiceKey("shop", f"orders-{number}")
        service = Service(
            key=key,
            cluster_ips=(f"10.96.{number >> 8}.{number & 255}",),
            ports=(ServicePort("http", 80, target_port=8080),),
        )
        found[key] = ServiceFacts(service, (slice_of(key, number, endpoints),))
    return ClusterChange(found, NODE, complete=True, lists=1)


def slice_of(key: ServiceKey, number: int, endpoints: int) -> EndpointSlice:
    """The endpoints of one Service."""
    return EndpointSlice(
        namespace=key.namespace,
        name=key.name,
        service=key,
        family=4,
        ports=(SlicePort("http", 8080),),
        endpoints=tuple(
            SliceEndpoint(address=f"10.{128 + each}.{number >> 8}.{number & 255}", node=f"node-{each}")
            for each in range(endpoints)
        ),
    )


class _Counted(NetlinkSocket):
    writes = 0

    def batch(self, requests: Iterable[Request], *rest: int) -> dict[int, Refusal]:
        def counted() -> Iterator[Request]:
            for request in requests:
                _Counted.writes += 1
                yield request

        return super().batch(counted(), *rest)


def engine() -> FamilyEngine:
    """A new agent, as it starts."""
    compiler = Compiler(AgentSettings(node_name="node-1"), 4)
    programmer = Programmer(IpvsBackend(connect=_Counted), compiler.place, Ledger(), lambda lines: None)
    return FamilyEngine(compiler, programmer)


def program(change: ClusterChange) -> FamilyEngine:
    """Model to kernel, whole."""
    made = engine()
    with undisturbed():  # as the agent does each step
        made.take(change, None, 0.0)
        step = made.write(time.monotonic, time.time)
    if not step.written.ok:
        raise RuntimeError(f"not programmed: {step.written.error} {step.written.failed[:3]}")
    return made


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """The process moves into a new one, with lo up."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        with NetlinkSocket(ROUTE) as route:
            route.request(rtnl.set_link_up(1))
            route.request(rtnl.add_address("10.0.0.1", 1))
        yield
    finally:
        libc.setns(here, 0x40000000)
        os.close(here)


def saved() -> bytes:
    """The whole table in ipvsadm's words."""
    return subprocess.run(["ipvsadm", "-Sn"], check=True, capture_output=True).stdout


def timed(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def with_pyroute2(table: bytes) -> None:
    """The same commands through pyroute2's high-level calls."""
    from pyroute2 import IPVS
    from pyroute2.ipvs import IPVSDest, IPVSService

    with IPVS() as ipvs:
        service: Any = None
        for line in table.decode().splitlines():
            words = line.split()
            address, _, port = words[2].partition(":")
            if words[0] == "-A":
                service = IPVSService(
                    addr=address, port=int(port), protocol=6, sched_name="rr", flags={"flags": 0, "mask": 0}
                )
                ipvs.service("add", service=service)
            else:
                real, _, number = words[4].partition(":")
                dest = IPVSDest(
                    addr=real, port=int(number), fwd_method=0, weight=1, upper_threshold=0, lower_threshold=0
                )
                ipvs.dest("add", service=service, dest=dest)


def inside(quick: bool) -> list[list[str]]:
    """Runs in the guest."""
    rows: list[list[str]] = []
    for services, endpoints in ((1000, 10), (10000, 5)):
        if quick and services > 1000:
            continue
        rows += compare(services, endpoints, 1 if quick else 3)
        rows += one_change(services, endpoints)
    return rows


def compare(services: int, endpoints: int, times: int) -> list[list[str]]:
    """Full programming, and reading it back."""
    change = facts(services, endpoints)
    with namespace():
        program(change)
        table = saved()
    digest = hashlib.sha256(table).digest()
    lines = table.splitlines(keepends=True)
    sample = b"".join(lines[: SAMPLE * (endpoints + 1)])
    scale = services / SAMPLE
    took: dict[str, list[float]] = {}
    for turn in range(times):
        with namespace():
            restore = timed(lambda: subprocess.run(["ipvsadm", "-R"], input=sample, check=True))
            took.setdefault(IPVSADM, []).append(restore * scale)
            assert saved() == sample
        if turn == 0:
            with namespace():
                took.setdefault(PYROUTE2, []).append(timed(lambda: with_pyroute2(sample)) * scale)
                assert saved() == sample
        with namespace():
            began = time.perf_counter()
            made = program(change)
            took.setdefault(MESHLIB, []).append(time.perf_counter() - began)
            backend = made.programmer.backend
            assert isinstance(backend, IpvsBackend)
            for _ in range(2):
                took.setdefault(IPVSADM_READ, []).append(timed(saved))
                took.setdefault(MESHLIB_READ, []).append(timed(lambda: backend.servers.dump(4)))  # noqa: B023
            assert hashlib.sha256(saved()).digest() == digest
            assert len(backend.servers.dump(4)) == services * (endpoints + 1)
    rows = []
    for name, peer, target in (
        (IPVSADM, IPVSADM, ""),
        (PYROUTE2, IPVSADM, ""),
        (MESHLIB, IPVSADM, "<= 0.10"),
        (IPVSADM_READ, IPVSADM_READ, ""),
        (MESHLIB_READ, IPVSADM_READ, "<= 0.5"),
    ):
        seconds = took[name]
        # The best of each: whatever else the machine does only ever makes it longer.
        ratio = f"{min(seconds) / min(took[peer]):.3f}"
        spread = f"{min(seconds):.3f}-{max(seconds):.3f} s"
        rows.append([f"{services:,} × {endpoints}", name, f"{median(seconds):.3f} s", spread, ratio, target])
    return rows


def one_change(services: int, endpoints: int) -> list[list[str]]:
    """One endpoint comes, and another goes."""
    change = facts(services, endpoints)
    with namespace():
        made = program(change)
        cpu, writes = [], []
        for turn in range(20):
            number = turn * (services // 20)
            key = ServiceKey("shop", f"orders-{number}")
            service = change.services[key].service
            wanted = ClusterChange(
                {key: ServiceFacts(service, (slice_of(key, number, endpoints + 1 - 2 * (turn % 2)),))},
                lists=1,
            )
            before, began = _Counted.writes, time.perf_counter()
            made.take(wanted, None, 1.0)
            step = made.write(lambda: 1.0, time.time)
            # The guest counts processor time in ticks of 10 ms, and nothing else runs in it.
            cpu.append(time.perf_counter() - began)
            writes.append(_Counted.writes - before)
            assert step.written.ok
    size = f"{services:,} × {endpoints}"
    spread = f"{min(cpu) * 1000:.2f}-{max(cpu) * 1000:.2f} ms"
    return [
        [
            size,
            "one endpoint changes, model to kernel",
            f"{median(cpu) * 1000:.2f} ms",
            spread,
            "",
            "<= 5 ms",
        ],
        [size, "one endpoint changes, writes", f"{min(writes)}-{max(writes)}", "", "", "O(1)"],
    ]


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    """Boots the guest and runs ``inside`` there."""
    from tests.kernel.uml import guest

    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="meshlib-bench-") as name:
        folder = Path(name)
        result = folder / "result"
        command = [guest.python(), "-m", "tests.bench.bench_ipvs", str(result), str(int(quick))]
        guest.run(command, folder, cpu=max(os.sched_getaffinity(0)), timeout=1100)
        rows = json.loads(result.read_text())
    return ["Services × endpoints", "what", "median", "spread", "ratio to ipvsadm", "target"], rows


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(inside(sys.argv[2] == "1")))
