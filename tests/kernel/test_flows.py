"""UDP flows with a fixed source port across changes of the rules, in a real kernel's connection tracking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from meshlib.agent.desired import FrontendKey
from meshlib.agent.flows.forgetter import Forgetter, Forgotten
from meshlib.agent.netlink.socket import NETFILTER, NetlinkSocket
from tests.kernel.lab import wanted
from tests.kernel.lab.lab import Lab, Programmed
from tests.kernel.lab.net import FAR1, NODE, POD1, POD2, of
from tests.kernel.lab.prober import Answered, Refused
from tests.kernel.lab.wanted import CLUSTER_IP, NODE_PORT, REJECT, cluster_ip, node_port, to

Node = Callable[..., Programmed]
SOURCE_PORT = 40001


@dataclass
class Sweep:
    """Sweeps over the lab's node. ``gone``: frontends that were removed."""

    forgetter: Forgetter
    gone: list[FrontendKey] = field(default_factory=list)

    def __call__(self, programmed: Programmed) -> Forgotten:
        frontends = {frontend.key: frontend for frontend in programmed.desired.frontends}
        return self.forgetter.forget(frontends, programmed.desired.place, self.gone)


@pytest.fixture
def forget(lab: Lab) -> Iterator[Sweep]:
    """forget(programmed): one sweep."""
    sweep = Sweep(Forgetter(lambda protocol: lab.open(lambda: NetlinkSocket(protocol))))
    yield sweep
    sweep.forgetter.close()


@pytest.mark.acceptance(84, 85, 88)
@pytest.mark.parametrize("kind", ["cluster-ip", "node-port"])
def test_follows_a_replaced_pod(lab: Lab, node: Node, family: int, forget: Sweep, kind: str) -> None:
    """The old endpoint answers until its entry is forgotten, then the new one; other flows are left alone."""
    programmed = node()
    place = programmed.desired.place

    def rules(pod: str) -> None:
        programmed.program(
            wanted.desired(
                place,
                cluster_ip(family, to(family, pod), protocol="UDP"),
                cluster_ip(family, to(family, pod)),
                cluster_ip(family, to(family, POD2), port=81, protocol="UDP"),
                node_port(to(family, pod), protocol="UDP"),
            )
        )

    target, port = (of(family, CLUSTER_IP), 80) if kind == "cluster-ip" else (of(family, NODE), NODE_PORT)
    rules(POD1)
    with (
        lab.flow("p2", target, port, "UDP", source_port=SOURCE_PORT) as flow,
        lab.flow("p1", of(family, CLUSTER_IP), 81, "UDP", source_port=SOURCE_PORT) as other,
        lab.flow("p2", of(family, CLUSTER_IP), 80) as tcp,
    ):
        assert flow.ask().endpoint == of(family, POD1)
        seen = other.ask()
        assert tcp.ask().endpoint == of(family, POD1)
        rules(FAR1)
        assert flow.ask().endpoint == of(family, POD1)
        assert forget(programmed).deleted == 1
        assert flow.ask().endpoint == of(family, FAR1)
        assert other.ask() == seen
        assert tcp.ask().endpoint == of(family, POD1)
        assert forget(programmed).deleted == 0


@pytest.mark.acceptance(86)
def test_sends_before_there_is_an_endpoint(lab: Lab, node: Node, family: int, forget: Sweep) -> None:
    """A client that sends all the time is served once there is a frontend, or an endpoint behind it."""
    programmed = node(service_ranges=())
    place = programmed.desired.place
    vip = of(family, CLUSTER_IP)
    programmed.program(wanted.desired(place))
    # Nobody has the address yet: the datagram goes out untranslated, and is remembered so.
    assert not isinstance(lab.probe("p1", vip, 80, "UDP", patience=0.2, source_port=SOURCE_PORT), Answered)
    programmed.program(wanted.desired(place, cluster_ip(family, to(family, POD2), protocol="UDP")))
    assert forget(programmed).deleted == 1
    outcome = lab.probe("p1", vip, 80, "UDP", source_port=SOURCE_PORT)
    assert isinstance(outcome, Answered)
    assert outcome.endpoint == of(family, POD2)


@pytest.mark.acceptance(87)
def test_loses_the_last_endpoint(lab: Lab, node: Node, family: int, forget: Sweep) -> None:
    """Flows to a Service without endpoints are forgotten, and refused when they go on."""
    programmed = node()
    place = programmed.desired.place
    vip = of(family, CLUSTER_IP)
    programmed.program(wanted.desired(place, cluster_ip(family, to(family, POD2), protocol="UDP")))
    with lab.flow("p1", vip, 80, "UDP", source_port=SOURCE_PORT) as flow:
        flow.ask()
        programmed.program(wanted.desired(place, cluster_ip(family, REJECT, protocol="UDP")))
        assert flow.ask().endpoint == of(family, POD2)
        assert forget(programmed).deleted == 1
    assert lab.probe("p1", vip, 80, "UDP", source_port=SOURCE_PORT) == Refused()


@pytest.mark.acceptance(84)
def test_a_removed_service(lab: Lab, node: Node, family: int, forget: Sweep) -> None:
    """Flows to a frontend that is gone are forgotten; those to addresses that never were ours are not."""
    programmed = node()
    place = programmed.desired.place
    frontend = cluster_ip(family, to(family, POD2), protocol="UDP")
    programmed.program(wanted.desired(place, frontend))
    with lab.flow("p1", of(family, CLUSTER_IP), 80, "UDP") as flow:
        flow.ask()
        assert lab.ask("p1", of(family, FAR1), 8080, "UDP").endpoint == of(family, FAR1)
        programmed.program(wanted.desired(place))
        assert forget(programmed).deleted == 0
        forget.gone.append(frontend.key)
        done = forget(programmed)
        assert (done.deleted, done.refused) == (1, ())
        assert done.looked_at >= 2


def test_a_namespace_that_is_gone(lab: Lab) -> None:
    """A table that cannot be read is an error, and the next sweep opens a socket of its own."""
    opened: list[int] = []

    def connect(protocol: int) -> NetlinkSocket:
        opened.append(protocol)
        if len(opened) == 1:
            raise PermissionError(1, "not allowed")
        return lab.open(lambda: NetlinkSocket(protocol))

    forgetter = Forgetter(connect)
    with pytest.raises(PermissionError):
        forgetter.forget({}, lab.place(4))
    assert forgetter.forget({}, lab.place(4)).deleted == 0
    forgetter.close()
    assert opened == [NETFILTER, NETFILTER]
