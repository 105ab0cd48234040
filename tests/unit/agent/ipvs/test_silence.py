"""Silence over a socket that says what the test wants: kernels without ARP tables, refusals, lost answers."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from meshlib.agent.backends.ipvs import IpvsBackend
from meshlib.agent.backends.ipvs.silence import Silence
from meshlib.agent.desired import Action, Frontend, FrontendKey, FrontendKind, Place, PortKey, Route
from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.messages import Request
from meshlib.agent.netlink.socket import NetlinkSocket
from meshlib.agent.objects import ObjectKey, Operation, Verb
from meshlib.model.service import ServiceKey

VIP = "10.96.0.10"
KEY = ObjectKey("silent", VIP)
PLACE = Place(4, ("10.0.0.1", "10.0.0.2"), source="10.0.0.1")


class Script:
    """A kernel that takes transactions, or refuses them."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.refuse = 0
        self.lost = False
        self.opened = self.closed = 0

    def __call__(self) -> Any:
        self.opened += 1
        return self

    def commit(self, requests: list[Request]) -> dict[int, Refusal]:
        self.sent = [request.type & 0xFF for request in requests]
        if self.lost:
            raise OSError(errno.ENOBUFS, "lost")
        return {0: Refusal(self.refuse, "")} if self.refuse else {}

    def close(self) -> None:
        self.closed += 1


def frontend(address: str) -> Frontend:
    owner = PortKey(ServiceKey("shop", "orders"), "http", "TCP")
    inside = Route(Action.REJECT)
    return Frontend(FrontendKey("TCP", address, 80), FrontendKind.LOAD_BALANCER, owner, inside, inside)


@pytest.mark.parametrize("address", ["", "10.0.0.1", "10.0.0.2"])
def test_the_nodes_own_addresses_are_not_silent(address: str) -> None:
    """Nor what has none: the node would be cut off."""
    silence = Silence(Script(), frozenset)
    assert silence.translate(frontend(address), PLACE) == {}
    assert silence.translate(frontend(VIP), PLACE) == {KEY: True}


def test_a_refused_transaction_did_nothing() -> None:
    """All of it is told as failed, and none of it is believed."""
    script = Script()
    silence = Silence(script, lambda: {"10.96.0.11"})
    plan = [Operation(Verb.ADD, KEY, True), Operation(Verb.ADD, ObjectKey("silent", "10.96.0.11"), True)]
    script.refuse = errno.ENOMEM
    assert [failure.errno for failure in silence.apply(plan, 0.0)] == [errno.ENOMEM] * 2
    script.refuse = 0
    assert silence.apply([Operation(Verb.REMOVE, plan[1].key, True)], 0.0) == []
    assert script.sent == [14]  # it was not believed to be spared: it is taken out


def test_a_lost_answer() -> None:
    """Nobody knows; the socket is opened again."""
    script = Script()
    silence = Silence(script, frozenset)
    script.lost = True
    (failure,) = silence.apply([Operation(Verb.ADD, KEY, True)], 0.0)
    assert (failure.errno, script.closed) == (errno.ENOBUFS, 1)
    script.lost = False
    assert silence.apply([Operation(Verb.ADD, KEY, True)], 0.0) == []
    assert script.opened == 2


def test_an_address_of_a_device_is_spared() -> None:
    """Nothing is put in for it, and nothing taken out when it is not wanted any more."""
    script = Script()
    silence = Silence(script, lambda: {VIP})
    for verb in (Verb.ADD, Verb.REMOVE):
        assert silence.apply([Operation(verb, KEY, True)], 0.0) == []
        assert script.sent == []
    assert silence.apply([Operation(Verb.SET, KEY, True)], 0.0) == []
    assert script.sent == [14]


@pytest.mark.parametrize(("refuse", "lost"), [(errno.EOPNOTSUPP, False), (0, True)])
def test_a_kernel_without_arp_tables_is_served_without(refuse: int, lost: bool) -> None:
    """The backend says so when it is tried, and wants nothing of the kind from then on."""

    def no_netlink(protocol: int) -> NetlinkSocket:
        raise OSError(errno.EPROTONOSUPPORT, "no netlink")

    script = Script()
    backend = IpvsBackend(arp=script, connect=no_netlink)
    assert "ARP" not in backend.probe().reason
    assert "silent" in backend.kinds
    script.refuse, script.lost = refuse, lost
    assert "ARP for virtual addresses is answered" in backend.probe().reason
    assert "silent" not in backend.kinds
    assert KEY not in backend.translate(frontend(VIP), PLACE)
