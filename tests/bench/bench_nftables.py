"""nftables: 10,000 Services with three endpoints each, against chains per Service and endpoint as kube-proxy lays out.

CPU time of this process and of its children (the kernel's work in system calls included), in network namespaces that
are made for it; ours and the peer's in turn.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import ip_address
from statistics import median

from meshlib.agent.backends.nftables import NftablesBackend
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Masquerade,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.engine.planner import Planner
from meshlib.model.service import ServiceKey
from tests.components.process import program

NAME = "nftables, Services with 3 endpoints each, CPU ms"
TARGETS = (
    "a full load of 10,000 at most 0.1 times the peer's; a change of one endpoint at most 5 ms, "
    "the same at 1,000 as at 10,000"
)

_CLONE_NEWNET = 0x40000000
_PLACE = Place(4, ("192.0.2.1",), ("10.1.0.0/16",), service_ranges=("10.96.0.0/12",))


def run(quick: bool) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """The table."""
    few, many = (100, 1000) if quick else (1000, 10000)
    rounds = 1 if quick else 3
    rows = []
    ours = [_ours(many) for _ in range(rounds)]
    peer = [_peer(many) for _ in range(rounds)]
    small = [_ours(few) for _ in range(rounds)]
    small_peer = [_peer(few) for _ in range(rounds)]
    for name, index in (
        ("full load", 0),
        ("one endpoint replaced", 1),
        ("one endpoint more, then one less", 2),
        ("whole table read and compared", 3),
    ):
        for count, mine, theirs in ((few, small, small_peer), (many, ours, peer)):
            a, b = [each[index] for each in mine], [each[index] for each in theirs]
            ratio = f"{median(a) / median(b):.4f}"
            rows.append([name, f"{count:,}", _spread(a), _spread(b), ratio])
    return ("what", "Services", "meshlib", "chains, by nft", "ratio"), rows


def _spread(values: Sequence[float]) -> str:
    return f"{median(values) * 1000:.2f} ({min(values) * 1000:.2f}-{max(values) * 1000:.2f})"


def _service(number: int, endpoints: Sequence[int] = (0, 1, 2)) -> Frontend:
    base = int(ip_address("10.1.0.0"))
    targets = (Target(str(ip_address(base + 4 * number + each)), 8080) for each in endpoints)
    return Frontend(
        FrontendKey("TCP", str(ip_address(int(ip_address("10.96.0.0")) + number)), 80),
        FrontendKind.CLUSTER_IP,
        PortKey(ServiceKey("shop", f"web-{number}"), "http", "TCP"),
        Route(Action.FORWARD, tuple(targets)),
        masquerade=Masquerade.OFF_NODE,
    )


def _ours(count: int) -> tuple[float, float, float, float]:
    """Seconds: full load; one replaced; one more or less; read and compared."""
    with _namespace():
        backend = NftablesBackend(4)
        planner = Planner(backend.kinds)
        services = [_service(number) for number in range(count)]

        def write() -> None:
            plan = planner.plan()
            failed = backend.apply(plan, 0.0)
            assert plan, "nothing to write"
            assert not failed, failed[:3]
            planner.done(plan)

        def change(number: int, endpoints: Sequence[int]) -> None:
            old, new = services[number], _service(number, endpoints)
            planner.change((1, old.key), backend.translate(old, _PLACE), backend.translate(new, _PLACE))
            services[number] = new
            write()

        def load() -> None:
            planner.change((0,), {}, backend.fixed(_PLACE))
            for each in services:
                planner.change((1, each.key), {}, backend.translate(each, _PLACE))
            write()

        try:
            full = _cpu(load)
            change(0, (0, 1, 2, 3))  # the chain for four is there from now on
            replaced = [_cpu(partial(change, n, (0, 1, 3))) for n in range(1, 21)]
            sized = [_cpu(partial(change, n, (0, 1, 2, 3))) for n in range(1, 21)]
            sized += [_cpu(partial(change, n, (0, 1, 2))) for n in range(1, 21)]
            read = _cpu(lambda: _nothing(planner.audit(backend.dump(4), lambda key: True).count))
        finally:
            backend.close()
        return full, median(replaced), median(sized), read


def _nothing(count: int) -> None:
    assert count == 0, f"{count} objects differ"


def _peer(count: int) -> tuple[float, float, float, float]:
    nft = program("nft", package="nftables")

    def send(text: str) -> None:
        subprocess.run([nft, "-f", "-"], input=text, text=True, check=True)

    def read() -> None:
        subprocess.run([nft, "-j", "list", "table", "ip", "peer"], stdout=subprocess.DEVNULL, check=True)

    with _namespace():
        full = _cpu(lambda: send(_peer_table(count)))
        replaced = [_cpu(partial(send, _peer_change(n, (0, 1, 3)))) for n in range(1, 4)]
        sized = [_cpu(partial(send, _peer_change(n, (0, 1, 2, 3)))) for n in range(4, 7)]
        return full, median(replaced), median(sized), _cpu(read)


def _peer_table(count: int) -> str:
    """A verdict map from each address to a chain of its Service, which jumps to a chain of each endpoint."""
    lines = [
        "add table ip peer",
        "add map ip peer services { type ipv4_addr . inet_proto . inet_service : verdict; }",
        "add chain ip peer markit",
        "add rule ip peer markit meta mark set meta mark or 0x4000",
        "add chain ip peer find",
        "add rule ip peer find ip daddr . meta l4proto . th dport vmap @services",
        "add chain ip peer pre { type nat hook prerouting priority dstnat; }",
        "add rule ip peer pre jump find",
        "add chain ip peer out { type nat hook output priority -100; }",
        "add rule ip peer out jump find",
        "add chain ip peer post { type nat hook postrouting priority srcnat; }",
        "add rule ip peer post meta mark & 0x4000 != 0 masquerade fully-random",
    ]
    for number in range(count):
        service = _service(number)
        lines += [f"add chain ip peer svc{number}", *_peer_endpoints(number, (0, 1, 2))]
        lines.append(_peer_rule(number, (0, 1, 2)))
        key = f"{service.key.address} . tcp . 80"
        lines.append(f"add element ip peer services {{ {key} : goto svc{number} }}")
    return "\n".join(lines) + "\n"


def _peer_endpoints(number: int, endpoints: Sequence[int]) -> Iterator[str]:
    for each, target in zip(endpoints, _service(number, endpoints).route.targets, strict=True):
        chain = f"ep{number}-{each}"
        yield f"add chain ip peer {chain}"
        yield f"add rule ip peer {chain} ip saddr {target.address} jump markit"
        yield f"add rule ip peer {chain} meta l4proto tcp dnat to {target.address}:{target.port}"


def _peer_rule(number: int, endpoints: Sequence[int]) -> str:
    ways = ", ".join(f"{index} : goto ep{number}-{each}" for index, each in enumerate(endpoints))
    pods = "ip saddr != 10.1.0.0/16 jump markit"
    head = f"add rule ip peer svc{number}"
    return f"{head} {pods}\n{head} numgen random mod {len(endpoints)} vmap {{ {ways} }}"


def _peer_change(number: int, endpoints: Sequence[int]) -> str:
    new = [each for each in endpoints if each == 3]
    whole = _service(number, endpoints).route.targets
    lines = []
    for each in new:
        chain, target = f"ep{number}-{each}", whole[endpoints.index(each)]
        lines.append(f"add chain ip peer {chain}")
        lines.append(f"add rule ip peer {chain} meta l4proto tcp dnat to {target.address}:{target.port}")
    lines += [f"flush chain ip peer svc{number}", _peer_rule(number, endpoints)]
    return "\n".join(lines) + "\n"


def _cpu(work: Callable[[], None]) -> float:
    before = _spent()
    work()
    return _spent() - before


def _spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@contextlib.contextmanager
def _namespace() -> Iterator[None]:
    """The calling thread is in a network namespace of its own, which ends with what was opened there."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace: this needs root")
        try:
            yield
        finally:
            if libc.setns(here, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "the way back is gone")
    finally:
        os.close(here)
