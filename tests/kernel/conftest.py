"""The lab for tests of kernel rules: network namespaces of this run's own.

What is not there skips the tests that need it; where MESHLIB_REQUIRE names the lane ``kernel``, it fails them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from meshlib.agent.backends.nftables import NftablesBackend
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.desired import Place
from tests.components.process import NotAvailable, leave_out, program
from tests.kernel.lab.lab import Lab, Programmed


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
