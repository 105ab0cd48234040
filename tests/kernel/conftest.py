"""The lab for tests of kernel rules: network namespaces of this run's own.

What is not there skips the tests that need it; where MESHLIB_REQUIRE names the lane ``kernel``, it fails them.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from meshlib.agent.backends.nftables import NftablesBackend
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.backends.userspace import Proxy, UserspaceBackend
from meshlib.agent.backends.userspace.backend import waiting
from meshlib.agent.backends.userspace.flow import new_socket
from meshlib.agent.backends.userspace.room import Room
from meshlib.agent.desired import Place
from tests.components.process import NotAvailable, leave_out, program
from tests.kernel.lab.lab import Lab, Programmed
from tests.kernel.lab.net import OTHER_RANGE, SERVICE_RANGE, of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that use the lab need a real kernel, and share one lab per worker."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker("kernel")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A node with pods, another node's pods and an outside client; each test leaves the node without rules."""
    try:
        program("conntrack", package="conntrack")
        building = Lab()
    except NotAvailable as error:
        leave_out("kernel", error)
        raise
    with building:
        yield building


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> int:
    """Both address families."""
    value: int = request.param
    return value


@pytest.fixture
def nftables(lab: Lab) -> Iterator[Callable[..., NftablesBackend]]:
    """nftables(family): a backend on the lab's node. What it made is removed after the test."""
    made: list[NftablesBackend] = []

    def make(family: int, table: str = "meshlib") -> NftablesBackend:
        # Whenever it opens a socket, it does so inside: the host's own rules are out of reach.
        backend = NftablesBackend(family, table, lambda: lab.open(TransactionSocket))
        made.append(backend)
        probe = backend.probe()
        if not probe.usable:
            leave_out("kernel", NotAvailable(probe.reason))
        return backend

    try:
        yield make
    finally:
        for backend in made:
            backend.cleanup()
            backend.close()
        lab.forget_flows()


@pytest.fixture
def node(lab: Lab, family: int, nftables: Callable[..., NftablesBackend]) -> Callable[..., Programmed]:
    """node(**place): the lab's node of one family, programmed by nftables."""

    def make(**more: object) -> Programmed:
        place: Place = lab.place(family, **more)
        return Programmed(nftables(family), place)

    return make


@pytest.fixture
def userspace(lab: Lab, family: int) -> Iterator[Callable[[], Programmed]]:
    """userspace(), once: one local route for virtual addresses, and listeners on the wildcard address. Both go after
    the test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def make_socket(family: int, kind: int) -> socket.socket:
        return lab.open(lambda: new_socket(family, kind))

    wildcard = "0.0.0.0" if family == 4 else "::"
    proxy = Proxy(loop, Room(10_000), random.random, print, make=make_socket)
    submit = waiting(lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop))
    ranges = [of(family, each) for each in (SERVICE_RANGE, OTHER_RANGE)]
    made = []

    def make() -> Programmed:
        made.extend(ranges)
        lab.network.ip("node", *(f"route add local {each} dev lo table local" for each in ranges))
        return Programmed(UserspaceBackend(family, [wildcard], proxy, submit), lab.place(family))

    try:
        yield make
    finally:
        asyncio.run_coroutine_threadsafe(proxy.close(0.0), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        lab.network.ip("node", *(f"route del local {each} dev lo table local" for each in made))
