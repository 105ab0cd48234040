"""The other netlink families against a real kernel: remembered flows, and changes of addresses as they happen."""

from __future__ import annotations

import errno
import select

import pytest

from meshlib.agent.netlink import conntrack, rtnl
from meshlib.agent.netlink.messages import Request
from meshlib.agent.netlink.socket import NETFILTER, ROUTE, KernelRefused, NetlinkSocket
from tests.kernel.uml.space import Space, connect, said

A = "10.1.0.1"


@pytest.mark.acceptance(84)
@pytest.mark.parametrize("address", [A, "fd01::1"])
def test_a_flow_is_found_and_forgotten(space: Space, address: str) -> None:
    """Only the one that is meant; forgetting it again is refused as not being there."""
    space.address(A, "fd01::1")
    space.wait_for_addresses()
    tables = "ip6tables-legacy" if ":" in address else "iptables-legacy"
    space.shell(f"{tables} -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT")  # or nothing is remembered
    for protocol in ("UDP", "TCP"):
        space.echo(address, 8080, protocol)
    flows = [connect(address, 8080, "UDP"), connect(address, 8080, "UDP"), connect(address, 8080)]
    for flow in flows:
        said(flow)
    port = flows[0].getsockname()[1]
    family = 6 if ":" in address else 4
    with NetlinkSocket(NETFILTER) as netlink:

        def known(protocol: str) -> list[conntrack.Entry]:
            return conntrack.parse_entries(netlink.dump(conntrack.list_entries(family)), protocol)

        assert len(known("UDP")) == 2
        assert len(known("TCP")) == 1
        (entry,) = (each for each in known("UDP") if each.original.source_port == port)
        assert entry.original[:2] == entry.reply[1::-1] == (address, address)
        netlink.request(conntrack.delete_entry(entry))
        assert entry not in known("UDP")
        assert (len(known("UDP")), len(known("TCP"))) == (1, 1)
        with pytest.raises(KernelRefused) as caught:
            netlink.request(conntrack.delete_entry(entry))
        assert caught.value.errno == errno.ENOENT
    for flow in flows:
        flow.close()


@pytest.mark.acceptance(69)
def test_a_change_of_address_is_told_at_once(space: Space) -> None:
    """Coming and going, in the order in which it happened."""
    with NetlinkSocket(ROUTE, (rtnl.ADDRESSES_V4, rtnl.ADDRESSES_V6)) as watching:
        assert watching.notifications() == []
        space.address("10.0.0.1", "fd00::1")
        space.route.request(rtnl.remove_address("10.0.0.1", 1))
        told: list[tuple[bool, str]] = []
        while len(told) < 3:
            assert select.select([watching], [], [], 10)[0], told
            changes = rtnl.parse_address_changes(watching.notifications())
            told += [(change.added, change.address.address) for change in changes]
    assert [each for each in told if "." in each[1]] == [(True, "10.0.0.1"), (False, "10.0.0.1")]
    assert (True, "fd00::1") in told


def test_refusals_of_a_batch_do_not_stop_the_rest(space: Space) -> None:
    """Those in the middle fail by their place, also where they are many and take several sends."""
    requests: list[Request] = []
    for number in range(500):
        requests.append(rtnl.add_route(f"10.96.{number >> 8}.{number & 255}", "", 1))
        if number % 3 == 0:
            requests.append(rtnl.remove_route("10.97.0.1", 1))
    refusals = space.route.batch(requests)
    wrong = {place for place, request in enumerate(requests) if request.type == 25}
    assert {place: refusal.errno for place, refusal in refusals.items()} == dict.fromkeys(wrong, errno.ESRCH)
    routes = rtnl.parse_routes(space.route.dump(rtnl.list_routes(4)))
    assert sum(route.protocol == rtnl.PROTOCOL for route in routes) == 500
