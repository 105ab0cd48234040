"""Addresses that lost their pods: noticed from slices, and told to the backend when it is time."""

from __future__ import annotations

import gc
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import pytest

from meshlib.agent.compile.compiler import Compiler
from meshlib.agent.compile.departures import MOST_LEFT, Departures
from meshlib.agent.engine.garbage import settle, undisturbed
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.node import FamilyEngine, NodeEngine
from meshlib.agent.engine.programmer import Programmer
from meshlib.agent.settings import AgentSettings
from meshlib.model.cluster import ClusterChange, Node, ServiceFacts
from meshlib.model.service import Service, ServiceKey, ServicePort
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from tests.unit.agent.fake_kernel import FakeKernel

ORDERS, CARTS = ServiceKey("shop", "orders"), ServiceKey("shop", "carts")
A, B = "10.1.0.1", "10.1.0.2"


def pod(address: str, uid: str = "1", *, terminating: bool = False) -> SliceEndpoint:
    return SliceEndpoint(address=address, uid=uid, ready=not terminating, terminating=terminating)


def slices(service: ServiceKey, *pods: SliceEndpoint) -> tuple[EndpointSlice, ...]:
    """A slice of each pod, as a cluster may well have them."""
    return tuple(
        EndpointSlice(
            namespace=service.namespace,
            name=f"{service.name}-{number}",
            service=service,
            family=4,
            ports=(SlicePort("http", 8080),),
            endpoints=(each,),
        )
        for number, each in enumerate(pods)
    )


class Seen:
    """What was shown last, Service by Service."""

    def __init__(self) -> None:
        self.departures = Departures()
        self.shown: dict[ServiceKey, tuple[EndpointSlice, ...]] = {}

    def show(self, service: ServiceKey, *pods: SliceEndpoint) -> set[str]:
        old, new = self.shown.get(service, ()), slices(service, *pods)
        self.shown[service] = new
        return self.departures.change(service, old, new)


@pytest.mark.acceptance(52)
def test_a_terminating_pod_that_leaves_is_dead() -> None:
    """Not while it terminates, and not those beside it."""
    seen = Seen()
    assert seen.show(ORDERS, pod(A), pod(B)) == set()
    assert seen.show(ORDERS, pod(A, terminating=True), pod(B)) == set()
    assert seen.show(ORDERS, pod(B)) == {A}


def test_a_pod_that_leaves_otherwise_may_live_on() -> None:
    """Somebody took its label away: it keeps its connections, even if it comes back."""
    seen = Seen()
    seen.show(ORDERS, pod(A), pod(B))
    assert seen.show(ORDERS, pod(B)) == set()
    assert seen.show(ORDERS, pod(A), pod(B)) == set()


def test_a_pod_of_two_services_leaves_with_the_last() -> None:
    """Their slices change one after the other."""
    seen = Seen()
    for service in (ORDERS, CARTS):
        seen.show(service, pod(A, terminating=True))
    assert seen.show(ORDERS) == set()
    assert seen.show(CARTS) == {A}


@pytest.mark.acceptance(52)
@pytest.mark.parametrize("where", [ORDERS, CARTS])
def test_an_address_with_another_pod(where: ServiceKey) -> None:
    """In the same Service or in another: who had it before is gone, however it left."""
    seen = Seen()
    seen.show(ORDERS, pod(A))
    seen.show(ORDERS)
    assert seen.show(where, pod(A, "2")) == {A}
    assert seen.show(where, pod(A, "2"), pod(B)) == set()


def test_an_address_whose_pod_changes_between_two_looks() -> None:
    """It never left the slices, as far as we were told."""
    seen = Seen()
    seen.show(ORDERS, pod(A))
    assert seen.show(ORDERS, pod(A, "2")) == {A}


def test_nobody_says_which_pod_it_is() -> None:
    """Slices written by hand have no pods: an address that returns is taken for the same."""
    seen = Seen()
    seen.show(ORDERS, pod(A, ""))
    seen.show(ORDERS)
    assert seen.show(ORDERS, pod(A, "")) == set()
    assert seen.show(ORDERS, pod(A, "2")) == set()


def test_a_pod_that_takes_over_a_terminating_ones_address() -> None:
    """It is alive: when it leaves without having been terminating, nothing is cut."""
    seen = Seen()
    seen.show(ORDERS, pod(A, terminating=True))
    assert seen.show(ORDERS, pod(A, "2")) == {A}
    assert seen.show(ORDERS) == set()


def test_only_so_many_are_remembered() -> None:
    """The oldest is forgotten first."""
    seen = Seen()
    many = [pod(f"10.{each >> 16}.{each >> 8 & 255}.{each & 255}") for each in range(MOST_LEFT + 1)]
    for each in (many[:1], [], many[1:], []):
        seen.show(ORDERS, *each)
    assert seen.show(ORDERS, pod(many[0].address, "2")) == set()
    assert seen.show(ORDERS, pod(many[0].address, "2"), pod(many[1].address, "2")) == {many[1].address}


@dataclass
class CuttingKernel(FakeKernel):
    cuts: list[set[str]] = field(default_factory=list)

    def cut(self, addresses: Collection[str], now: float) -> None:
        self.cuts.append(set(addresses))


def change(*pods: SliceEndpoint, complete: bool = False) -> ClusterChange:
    service = Service(key=ORDERS, cluster_ips=("10.96.0.1",), ports=(ServicePort("http", 80),))
    facts = {ORDERS: ServiceFacts(service, slices(ORDERS, *pods))}
    return ClusterChange(facts, Node(name="node-1"), complete=complete, lists=1)


def engine(kernel: FakeKernel, **options: Any) -> tuple[NodeEngine, list[float]]:
    """With its clock."""
    compiler = Compiler(AgentSettings(node_name="node-1"), 4)
    family = FamilyEngine(compiler, Programmer(kernel, compiler.place, Ledger(), lambda lines: None))
    clock = [100.0]
    made = NodeEngine(
        {4: family}, lambda: clock[0], lambda: 0.0, lambda step: None, lambda family, change: None, **options
    )
    return made, clock


@pytest.mark.acceptance(52)
def test_the_backend_is_told_at_once_where_nothing_is_to_be_written() -> None:
    """A pod that was not served any more (another was ready) disappears: no rule changes, its connections go."""
    kernel = CuttingKernel()
    made, clock = engine(kernel)
    for pods in ((pod(A), pod(B)), (pod(A, terminating=True), pod(B)), (pod(B),)):
        made.tell(change(*pods, complete=True))
        clock[0] += 10.0
        assert kernel.cuts == []
        made.step()
    assert kernel.cuts == [{A}]
    made.step()
    assert kernel.cuts == [{A}]


def test_the_backend_is_told_after_what_was_written() -> None:
    """While a removal fails it does not drain yet: cutting would come too early."""
    kernel = CuttingKernel()
    made, clock = engine(kernel)
    made.tell(change(pod(A, terminating=True), complete=True))
    made.step()
    kernel.fault = lambda operation: 5
    made.tell(change(pod(B)))
    clock[0] += 10.0
    made.step()
    assert kernel.cuts == []
    kernel.fault = lambda operation: 0
    clock[0] += 60.0
    made.step()
    assert kernel.cuts == [{A}]


def test_backends_without_waiting_connections() -> None:
    """They are not asked."""
    made, clock = engine(FakeKernel())
    for pods in ((pod(A, terminating=True),), ()):
        made.tell(change(*pods, complete=True))
        clock[0] += 10.0
        made.step()
    assert made.synced


def test_settled_once() -> None:
    """When everything was first brought to the kernel, and never again."""
    told: list[bool] = []
    kernel = FakeKernel()
    made, clock = engine(kernel, settled=lambda: told.append(True))
    kernel.fault = lambda operation: 5
    made.tell(change(pod(A), complete=True))
    made.step()
    assert told == []
    kernel.fault = lambda operation: 0
    for pods in ((pod(A), pod(B)), (pod(A),)):
        clock[0] += 60.0
        made.tell(change(*pods))
        made.step()
    assert told == [True]


def test_the_collector_is_as_before_afterwards() -> None:
    """Also after an exception, and where somebody had switched it off."""
    assert gc.isenabled()

    def fail() -> None:
        with undisturbed():
            with undisturbed():
                pass
            assert not gc.isenabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()


def test_what_is_settled_is_not_looked_at_again() -> None:
    """It is set apart from what the collector walks over."""
    try:
        settle()
        assert gc.get_freeze_count() > 1000
        assert len(gc.get_objects()) < gc.get_freeze_count()
    finally:
        gc.unfreeze()
