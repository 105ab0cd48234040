"""A node, pods on it and elsewhere, and a client outside: network namespaces joined by veth pairs, both families.

``node`` is where rules are programmed. Pods ``p1`` and ``p2`` are on it; ``far`` has the addresses of two pods of
another node; ``out`` is a client that nobody knows. ``hub`` routes between them, and sends every virtual address to the
node, as a network in front of a load balancer would. Nothing of the host's own namespace is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from tests.components.process import NotAvailable, program

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

#: One family's addresses by name; ``six`` gives the other's.
NODE, FAR, OUT, HUB = "10.0.0.1", "10.0.1.1", "10.0.2.2", "10.0.0.254"
POD1, POD2 = "10.1.0.2", "10.1.0.3"
FAR1, FAR2 = "10.1.1.2", "10.1.1.3"
NODE_SECOND = "10.0.0.2"
POD_RANGE, FAR_RANGE, SERVICE_RANGE, OTHER_RANGE = (
    "10.1.0.0/24",
    "10.1.1.0/24",
    "10.96.0.0/16",
    "10.77.0.0/16",
)


def six(address: str) -> str:
    """The IPv6 address (or range) that stands for an IPv4 one of this lab."""
    host, _, prefix = address.partition("/")
    a, b, c, d = host.split(".")
    text = f"fd{int(a):02x}:{b}:{c}::{d}"
    if not prefix:
        return str(ip_address(text))
    return f"fd{int(a):02x}:{b}:{c}::/{ {'24': 64, '16': 32}[prefix] }"


def of(family: int, address: str) -> str:
    """An address of this lab in a family."""
    return address if family == 4 else six(address)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the namespace; sockets that it opens stay there."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(here)
    finally:
        os.close(here)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Network:
    """The namespaces, from entering to leaving. ``spaces`` gives their names for ``inside``."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise NotAvailable("network namespaces need root")
        self._ip = program("ip", package="iproute2")
        tag = secrets.token_hex(3)
        self.spaces = {name: f"ml-{tag}-{name}" for name in ("hub", "node", "p1", "p2", "far", "out")}

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the namespaces; what is in them goes with them."""
        for name in self.spaces.values():
            if Path("/run/netns", name).exists():
                subprocess.run([self._ip, "netns", "del", name], check=False)

    def run(self, space: str, command: str) -> str:
        """A shell command in a namespace; its output. Fails when it does."""
        words = [self._ip, "netns", "exec", self.spaces[space], "sh", "-c", command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def nft(self, space: str, text: str) -> None:
        """Commands of nft, or a whole table, in a namespace."""
        words = [self._ip, "netns", "exec", self.spaces[space], "nft", "-f", "-"]
        done = subprocess.run(words, input=text + "\n", capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}: {done.stderr}"

    def ip(self, space: str, *lines: str) -> None:
        """Lines for ``ip -batch``, in a namespace."""
        words = [self._ip, "-n", self.spaces[space], "-batch", "-"]
        done = subprocess.run(words, input="\n".join(lines), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{lines}: {done.stderr}"

    def sysctl(self, space: str, name: str, value: object) -> None:
        """One sysctl of a namespace."""
        with inside(self.spaces[space]):
            Path("/proc/sys", *name.split("/")).write_text(str(value))

    def _build(self) -> None:
        for name in self.spaces.values():
            subprocess.run([self._ip, "netns", "add", name], check=True)
        for space in self.spaces:
            for setting in ("all", "default"):
                # Addresses are ours alone: no waiting for duplicates to be found.
                self.sysctl(space, f"net/ipv6/conf/{setting}/accept_dad", 0)
            self.ip(space, "link set lo up")
        for space in ("hub", "node"):
            self.sysctl(space, "net/ipv4/ip_forward", 1)
            self.sysctl(space, "net/ipv6/conf/all/forwarding", 1)
            # Refusals by ICMP are one a second to each client otherwise; the others would look like silence.
            self.sysctl(space, "net/ipv4/icmp_ratelimit", 0)
            self.sysctl(space, "net/ipv6/icmp/ratelimit", 0)
        for index, (space, address) in enumerate((("node", NODE), ("far", FAR), ("out", OUT))):
            hub = f"10.0.{index}.254"
            self._cable("hub", f"to-{space}", space, "eth0")
            self.ip(
                "hub", f"address add {hub}/24 dev to-{space}", f"address add {six(hub)}/64 dev to-{space}"
            )
            if space == "node":
                # The node's second address; of two the later IPv6 one is the source of flows, the earlier IPv4 one.
                self.ip(space, f"address add {six(NODE_SECOND)}/64 dev eth0")
            self.ip(
                space,
                f"address add {address}/24 dev eth0",
                f"address add {six(address)}/64 dev eth0",
                f"route add default via {hub}",
                f"route add default via {six(hub)}",
            )
        for space, pod in (("p1", POD1), ("p2", POD2)):
            self._cable("node", f"to-{space}", space, "eth0")
            # As many container networks do: the pod has a route to a neighbour that the node answers for.
            self.sysctl("node", f"net/ipv4/conf/to-{space}/proxy_arp", 1)
            self.sysctl("node", f"net/ipv4/neigh/to-{space}/proxy_delay", 0)
            self.ip(
                "node",
                f"address add fe80::1/64 dev to-{space}",
                f"route add {pod}/32 dev to-{space}",
                f"route add {six(pod)}/128 dev to-{space}",
            )
            self.ip(
                space,
                f"address add {pod}/32 dev eth0",
                f"address add {six(pod)}/128 dev eth0",
                "route add 169.254.1.1/32 dev eth0",
                "route add default via 169.254.1.1",
                "route add default via fe80::1 dev eth0",
            )
        self.ip("node", f"address add {NODE_SECOND}/24 dev eth0")
        for pod in (FAR1, FAR2):
            self.ip("far", f"address add {pod}/32 dev lo", f"address add {six(pod)}/128 dev lo")
        for destination, via in (
            (POD_RANGE, NODE),
            (SERVICE_RANGE, NODE),
            (OTHER_RANGE, NODE),
            (FAR_RANGE, FAR),
        ):
            self.ip(
                "hub",
                f"route add {destination} via {via}",
                f"route add {six(destination)} via {six(via)}",
            )

    def _cable(self, left: str, left_name: str, right: str, right_name: str) -> None:
        self.ip(
            left,
            f"link add {left_name} type veth peer name {right_name} netns {self.spaces[right]}",
            f"link set {left_name} up",
        )
        self.ip(right, f"link set {right_name} up")
