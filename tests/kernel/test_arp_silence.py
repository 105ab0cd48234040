"""ARP and neighbour discovery for virtual addresses that are local on a node: who answers. Real packets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from meshlib.agent.backends.ipvs.anyip import AnyIp
from meshlib.agent.backends.ipvs.silence import TABLE, Silence
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.desired import Frontend
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.programmer import Programmer, Written
from meshlib.agent.netlink.socket import NetlinkSocket
from tests.kernel.lab.lab import HOST_PORT, Lab
from tests.kernel.lab.net import NODE, POD1, of
from tests.kernel.lab.prober import Answered
from tests.kernel.lab.wanted import load_balancer, to

#: In the network between the hub and the node, as the address of a load balancer is.
VIP, OTHER = "10.0.0.77", "10.0.0.78"


class Quiet:
    """The binding and the silence of the ipvs backend, without the virtual servers that this kernel lacks."""

    name = "quiet"

    def __init__(self, lab: Lab) -> None:
        self.binding = AnyIp(lambda protocol: lab.open(lambda: NetlinkSocket(protocol)))
        self.silence = Silence(lambda: lab.open(TransactionSocket), lambda: self.binding.elsewhere)
        self.parts = (self.binding, self.silence)
        self.kinds = (*self.binding.kinds, *self.silence.kinds)

    def fixed(self, place: Any) -> Any:
        return self.silence.fixed(place)

    def translate(self, frontend: Frontend, place: Any) -> Any:
        return {**self.binding.translate(frontend, place), **self.silence.translate(frontend, place)}

    def translate_hairpin(self, hairpin: Any, place: Any) -> Any:
        return {}

    def ledger_key(self, key: Any) -> None:
        return None

    def dump(self, family: int) -> Any:
        return {**self.binding.dump(family), **self.silence.dump(family)}

    def apply(self, plan: Any, now: float) -> Any:
        failed: list[Any] = []
        for part in self.parts if plan[-1].verb.value != "remove" else reversed(self.parts):
            mine = [each for each in plan if each.key.kind in part.kinds]
            failed += part.apply(mine, now) if mine else ()
        return failed

    def tick(self, now: float) -> None:
        return None


class Agent:
    """Frontends by address, one write after the other."""

    def __init__(self, lab: Lab) -> None:
        self.backend = Quiet(lab)
        backend: Any = self.backend
        self.programmer = Programmer(backend, lab.place(4), Ledger(), lambda lines: None)
        self.now = 0.0

    def want(self, *addresses: str) -> Written:
        made = [_frontend(each) for each in addresses]
        gone: dict[Any, Any] = dict.fromkeys(self.programmer.frontends)
        self.programmer.change({**gone, **{each.key: each for each in made}}, 1, self.now)
        return self.audit()

    def audit(self) -> Written:
        self.programmer.audit()
        self.now += 10.0
        return self.programmer.write(self.now)


def _frontend(address: str) -> Frontend:
    made = load_balancer(4, to(4, POD1))
    return Frontend(made.key._replace(address=address), made.kind, made.owner, made.route)


@pytest.fixture
def agent(lab: Lab) -> Iterator[Agent]:
    """Everything of it is gone at the end."""
    made = Agent(lab)
    yield made
    lab.network.run("node", f"nft delete table arp {TABLE} 2>/dev/null; ip route flush table local proto 109")
    lab.network.run("node", f"ip address del {VIP}/32 dev eth0 2>/dev/null || true")
    for part in made.backend.parts:
        part.close()


def answers(lab: Lab, address: str) -> bool:
    """Whether the neighbour finds somebody behind the address, asking anew."""
    lab.network.run("hub", "ip neigh flush dev to-node")
    found = lab.probe("hub", address, HOST_PORT)
    known = lab.network.run("hub", f"ip neigh show {address} dev to-node")
    assert isinstance(found, Answered) == ("lladdr" in known)
    return isinstance(found, Answered)


def test_the_control_linux_answers_for_what_is_local(lab: Lab, agent: Agent) -> None:
    """With the route alone a neighbour finds the virtual address on this node; the node's own is found anyway."""
    assert not answers(lab, VIP)
    lab.network.run("node", f"ip route add local {VIP}/32 dev lo table local proto 109")
    assert answers(lab, VIP)
    assert answers(lab, NODE)


def test_virtual_addresses_are_silent(lab: Lab, agent: Agent) -> None:
    """Those of Services, and nothing else; after the last one is gone Linux answers as ever."""
    assert agent.want(VIP, OTHER).ok
    assert not answers(lab, VIP)
    assert answers(lab, NODE)
    # Through a router that knows the way it is served as before: nobody asks for it by ARP.
    lab.network.run("hub", f"ip route add {VIP}/32 via {NODE}")
    try:
        assert isinstance(lab.probe("out", VIP, HOST_PORT), Answered)
    finally:
        lab.network.run("hub", f"ip route del {VIP}/32")
    assert agent.want(OTHER).ok
    lab.network.run("node", f"ip route add local {VIP}/32 dev lo table local")
    try:
        assert answers(lab, VIP)
    finally:
        lab.network.run("node", f"ip route del local {VIP}/32 dev lo table local")
    assert not answers(lab, OTHER)


def test_an_address_that_a_device_has_is_answered(lab: Lab, agent: Agent) -> None:
    """An announcer gives it to this node, and takes it away: known with the next look, either way."""
    assert agent.want(VIP).ok
    lab.network.run("node", f"ip address add {VIP}/32 dev eth0")
    assert agent.audit().ok
    assert answers(lab, VIP)
    assert not agent.audit().plan
    lab.network.run("node", f"ip address del {VIP}/32 dev eth0")
    assert agent.audit().ok
    assert not answers(lab, VIP)


def test_an_address_that_a_device_had_first(lab: Lab, agent: Agent) -> None:
    """It is never silent, and removing the Service changes nothing about it."""
    lab.network.run("node", f"ip address add {VIP}/32 dev eth0")
    assert agent.want(VIP).ok
    assert answers(lab, VIP)
    assert not agent.audit().plan
    assert agent.want().ok
    assert answers(lab, VIP)


@pytest.mark.parametrize(
    "damage",
    [
        f"nft delete table arp {TABLE}",
        f"nft flush chain arp {TABLE} in",
        f"nft flush set arp {TABLE} virtual",
        f"nft add element arp {TABLE} virtual {{ {NODE} }}",
        f"nft insert rule arp {TABLE} in accept",
    ],
)
def test_damage_is_mended(lab: Lab, agent: Agent, damage: str) -> None:
    """Whatever was done to the table, one audit later it does what it should, and nothing more is to be done."""
    assert agent.want(VIP, OTHER).ok
    lab.network.run("node", damage)
    assert agent.audit().ok
    assert not answers(lab, VIP)
    assert not answers(lab, OTHER)
    assert answers(lab, NODE)
    assert not agent.audit().plan


def test_somebody_elses_table(lab: Lab, agent: Agent) -> None:
    """It is left alone, and said so."""
    lab.network.run("node", f"nft add table arp {TABLE}")
    with pytest.raises(OSError, match="somebody else"):
        agent.backend.silence.dump(4)


def test_trying_leaves_nothing(lab: Lab, agent: Agent) -> None:
    """Not even for a moment, and not in what is counted as ours."""
    assert agent.backend.silence.lacking() == ""
    assert "probe" not in lab.network.run("node", "nft list tables")


def test_neighbour_discovery_answers_for_devices_only(lab: Lab) -> None:
    """IPv6 needs no silence: an address that is local by a route alone is not answered for, one of a device is."""
    address = "fd0a:0:0::77"
    lab.network.run("node", f"ip -6 route add local {address}/128 dev lo table local proto 109")
    try:
        assert not answers(lab, address)
        assert answers(lab, of(6, NODE))
    finally:
        lab.network.run("node", f"ip -6 route del local {address}/128 dev lo table local")
