"""When stale flows are looked for: after the kernel was written, after changes that matter, and again after errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec
import pytest

from meshlib.agent.compile.compiler import Compiler
from meshlib.agent.desired import Frontend, FrontendKey, Place
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.node import FamilyEngine, NodeEngine, Step
from meshlib.agent.engine.pace import Pace
from meshlib.agent.engine.programmer import Programmer
from meshlib.agent.engine.sweep import RETRY, Sweep
from meshlib.agent.flows.forgetter import Forgotten
from meshlib.agent.objects import Verb
from meshlib.agent.settings import AgentSettings
from meshlib.model.cluster import ClusterChange, Node, ServiceFacts
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from tests.unit.agent.fake_kernel import FakeKernel

NODE = Node("node-1", addresses=("192.0.2.1",))
KEY = ServiceKey("shop", "dns")
FRONTEND = FrontendKey("UDP", "10.96.0.10", 53)


def facts(*pods: str, protocol: str = "UDP") -> ServiceFacts:
    service = Service(
        key=KEY,
        type=ServiceType.CLUSTER_IP,
        ports=(ServicePort("dns", 53, protocol),),
        cluster_ips=(FRONTEND.address,),
        ip_families=(4,),
    )
    endpoints = tuple(SliceEndpoint(address=pod) for pod in pods)
    port = SlicePort("dns", 5353, protocol)
    slices = (
        EndpointSlice(
            namespace="shop", name="dns-1", service=KEY, family=4, ports=(port,), endpoints=endpoints
        ),
    )
    return ServiceFacts(service, slices)


@dataclass
class World:
    """An engine over a kernel of dictionaries, a clock, and a forgetter that notes when it was asked."""

    kernel: FakeKernel = field(default_factory=FakeKernel)
    now: float = 1000.0
    fault: OSError | None = None
    asked: list[tuple[int, frozenset[FrontendKey]]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        compiler = Compiler(AgentSettings(families=(4,)), 4)
        pace = Pace(min_interval=0.0)
        programmer = Programmer(self.kernel, compiler.place, Ledger(), lambda lines: None, pace=pace)
        family = FamilyEngine(compiler, programmer, Sweep(self.forget))
        self.engine = NodeEngine(
            {4: family}, lambda: self.now, lambda: self.now, self.steps.append, lambda f, c: None
        )

    def forget(
        self, frontends: Mapping[FrontendKey, Frontend], place: Place, gone: Collection[FrontendKey]
    ) -> Forgotten:
        self.asked.append((len(self.kernel.log), frozenset(gone)))
        if self.fault is not None:
            raise self.fault
        return Forgotten(3, 1)

    def tell(self, found: ServiceFacts | None, lists: int = 1) -> float | None:
        services = {} if found is None else {KEY: found}
        self.engine.tell(ClusterChange(services, NODE, complete=True, lists=lists))
        return self.engine.step()


@pytest.mark.acceptance(84, 87, 88)
def test_after_the_kernel_and_only_when_it_matters() -> None:
    """At the start; when an endpoint leaves or the last one does; when a frontend goes; not when one joins."""
    world = World()
    world.tell(facts("10.1.0.1"))
    assert len(world.asked) == 1
    assert world.asked[0][0] == len(world.kernel.log) > 0
    world.tell(facts("10.1.0.1", "10.1.0.2"))
    assert len(world.asked) == 1
    world.tell(facts("10.1.0.2"))
    assert len(world.asked) == 2
    assert world.kernel.log[-1].verb is Verb.REMOVE
    assert world.asked[1][0] == len(world.kernel.log)
    world.tell(facts())
    assert len(world.asked) == 3
    world.tell(None)
    assert world.asked[3][1] == {FRONTEND}
    world.tell(facts("10.1.0.3", protocol="TCP"))
    world.tell(facts("10.1.0.4", protocol="TCP"))
    assert len(world.asked) == 4


@pytest.mark.acceptance(84)
def test_a_sweep_that_fails_is_repeated() -> None:
    """The kernel's table cannot be read: the rules stand, the error is told, and it is tried again, with those gone."""
    world = World()
    world.tell(facts("10.1.0.1"))
    world.fault = PermissionError(1, "Operation not permitted")
    due = world.tell(None)
    assert world.steps[-1].written.ok
    swept = world.steps[-1].swept
    assert swept is not None
    assert "not permitted" in swept.error
    assert due is not None
    assert due <= world.now + RETRY
    world.engine.step()
    assert len(world.asked) == 2  # not before it is time
    world.now += RETRY
    world.fault = None
    world.engine.step()
    assert world.asked[-1][1] == {FRONTEND}
    swept = world.steps[-1].swept
    assert swept is not None
    assert swept.forgotten == Forgotten(3, 1)
    world.now += RETRY
    world.engine.step()
    assert len(world.asked) == 3


def test_nothing_is_forgotten_before_the_kernel_was_written() -> None:
    """The kernel refuses the new rules: flows are left alone, as those begun anew would go the old way."""
    world = World()
    world.tell(facts("10.1.0.1"))
    real, calls = world.kernel.dump, len(world.asked)

    def broken(family: int) -> object:
        raise OSError(5, "no")

    world.engine.families[4].programmer._audited = False
    world.kernel.dump = broken  # type: ignore[method-assign,assignment]
    world.tell(facts("10.1.0.2"))
    assert world.steps[-1].written.error is not None
    assert len(world.asked) == calls
    world.kernel.dump = real  # type: ignore[method-assign]
    world.now += 60.0
    world.engine.step()
    assert len(world.asked) == calls + 1


def test_a_pause_does_not_spin() -> None:
    """While writing is paused and something waits, the engine asks for no time in the past."""
    world = World()
    world.tell(facts("10.1.0.1"))
    world.engine.pause(True)
    assert world.tell(facts("10.1.0.2")) is None
    world.engine.pause(False)
    world.engine.step()
    assert world.engine.families[4].applied == world.engine.families[4].taken


def test_held_removals_have_their_turn() -> None:
    """Frontends that the guard holds back are served on; when a person lets them go, their flows are looked at."""
    world = World()
    many = {ServiceKey("shop", f"s{n}"): facts_of(n) for n in range(40)}
    world.engine.tell(ClusterChange(many, NODE, complete=True, lists=1))
    world.engine.step()
    assert len(world.asked) == 1
    world.tell(None, lists=2)
    assert all(not gone for _, gone in world.asked)
    assert world.engine.approve()
    world.engine.step()
    assert len(world.asked[-1][1]) == 40
    looked = len(world.asked)
    world.now += 100.0
    world.engine.step()
    assert len(world.asked) == looked


def facts_of(number: int) -> ServiceFacts:
    """A Service of its own at an address of its own."""
    found = facts("10.1.0.1")
    assert found.service is not None
    key = ServiceKey("shop", f"s{number}")
    service = dataclasses.replace(found.service, key=key, cluster_ips=(f"10.96.1.{number}",))
    (slice_,) = found.slices
    return ServiceFacts(service, (msgspec.structs.replace(slice_, service=key),))
