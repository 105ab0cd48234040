"""A network namespace inside the guest: addresses, echo servers, clients."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meshlib.agent.netlink import rtnl
from meshlib.agent.netlink.socket import ROUTE, NetlinkSocket
from tests.components.process import wait_for

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Space:
    """The calling thread moves into a new namespace, and back at the end."""

    def __enter__(self) -> Space:
        self._stack = contextlib.ExitStack()
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._stack.callback(os.close, here)
        _checked(_libc.unshare(_CLONE_NEWNET))
        self._stack.callback(lambda: _checked(_libc.setns(here, _CLONE_NEWNET)))
        self.number = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._stack.callback(os.close, self.number)
        self.route = self._stack.enter_context(NetlinkSocket(ROUTE))
        self.route.request(rtnl.set_link_up(1))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in this namespace, and then back where it was."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _checked(_libc.setns(self.number, _CLONE_NEWNET))
            yield
        finally:
            _checked(_libc.setns(here, _CLONE_NEWNET))
            os.close(here)

    def give(self, device: str, other: Space) -> None:
        """One of the current namespace's devices moves."""
        self.shell(f"ip link set {device} netns /proc/{os.getpid()}/fd/{other.number}")

    def address(self, *addresses: str) -> None:
        """Gives lo addresses, for endpoints and for the node."""
        for each in addresses:
            self.route.request(rtnl.add_address(each, 1))

    def wait_for_addresses(self) -> None:
        """Until IPv6 addresses may be used as sources."""
        wait_for(lambda: "tentative" not in self.shell("ip -6 address show dev lo"), what="the addresses")

    def sysctl(self, name: str, value: object) -> None:
        """``net.ipv4.vs.conntrack`` and its like, of this namespace."""
        Path("/proc/sys", *name.split(".")).write_text(str(value))

    def shell(self, command: str) -> str:
        """Runs in this namespace; its output. Fails where it does."""
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def echo(self, address: str, port: int, protocol: str = "TCP") -> Echo:
        """A server that answers everything with its own address and the client's."""
        return self._stack.enter_context(Echo(address, port, protocol))

    def ask(self, address: str, port: int, protocol: str = "TCP", timeout: float = 5.0) -> str:
        """Who answers a new flow: an endpoint's address, or "refused", or "nothing"."""
        try:
            with connect(address, port, protocol, timeout) as flow:
                return said(flow)[0]
        except (ConnectionRefusedError, PermissionError):
            # A datagram that IPVS has no destination for is refused to the sending process itself.
            return "refused"
        except TimeoutError:
            return "nothing"


def connect(
    address: str, port: int, protocol: str = "TCP", timeout: float = 5.0, source: str = ""
) -> socket.socket:
    """A flow of its own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    flow = socket.socket(family, kind)
    flow.settimeout(timeout)
    try:
        if source:
            flow.bind((source, 0))
        flow.connect((address, port))
    except BaseException:
        flow.close()
        raise
    return flow


def said(flow: socket.socket) -> tuple[str, str]:
    """Sends something; the endpoint's address and the source that it saw."""
    flow.send(b"?")
    answer = flow.recv(200)
    if not answer:
        raise ConnectionResetError("closed by the other side")
    endpoint, source = answer.decode().split()
    return endpoint, source


class Echo:
    """One thread that serves all flows of one address and port."""

    def __init__(self, address: str, port: int, protocol: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._tcp = protocol == "TCP"
        self._address = address
        self._socket = socket.socket(family, socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        if self._tcp:
            self._socket.listen(100)
        self._flows: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept if self._tcp else self._datagrams, daemon=True)

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for flow in self._flows:
            flow.close()

    def _accept(self) -> None:
        while True:
            try:
                flow, source = self._socket.accept()
            except OSError:
                return
            self._flows.append(flow)
            threading.Thread(target=self._serve, args=(flow, source), daemon=True).start()

    def _serve(self, flow: socket.socket, source: Any) -> None:
        with contextlib.suppress(OSError):
            while flow.recv(200):
                flow.send(f"{self._address} {source[0]}".encode())
            flow.close()

    def _datagrams(self) -> None:
        while True:
            try:
                _, source = self._socket.recvfrom(200)
                if source is None:  # shut down
                    return
                self._socket.sendto(f"{self._address} {source[0]}".encode(), source)
            except OSError:
                return
