"""kube-proxy's rules, projected: the chains of 1.20 and of newer versions; and what counts as a difference."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.agent.compare.iptables_rules import Unreadable, project
from meshlib.agent.compare.ours import Ours, from_plain, ours, to_plain
from meshlib.agent.compare.projection import difference
from meshlib.agent.desired import FrontendKey, Place
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.programmer import Programmer
from tests.unit.agent.fake_kernel import FakeKernel, frontend

#: As kube-proxy 1.20 writes a ClusterIP, a node port, a load balancer with a Local policy and ranges, one without
#: endpoints.
OLD = """
*filter
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "shop/empty:h" -m tcp --dport 80 -j REJECT
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
*nat
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES ! -s 10.1.0.0/16 -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "shop/web:htt" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -d 203.0.113.5/32 -p tcp -m comment --comment "shop/web:htt" -m tcp --dport 80 -j KUBE-FW-A
-A KUBE-SERVICES -m comment --comment "kubernetes s" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-XLB-A
-A KUBE-NODEPORTS -s 127.0.0.0/8 -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-MARK-MASQ
-A KUBE-FW-A -s 198.51.100.0/24 -m comment --comment "shop/web:http loadbalancer IP" -j KUBE-XLB-A
-A KUBE-FW-A -m comment --comment "shop/web:http loadbalancer IP" -j KUBE-MARK-DROP
-A KUBE-XLB-A -s 10.1.0.0/16 -m comment --comment "Redirect pod" -j KUBE-SVC-A
-A KUBE-XLB-A -m comment --comment "masquerade LOCAL traffic" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-XLB-A -m comment --comment "route LOCAL traffic" -m addrtype --src-type LOCAL -j KUBE-SVC-A
-A KUBE-XLB-A -m comment --comment "Balancing rule 0 for shop/web:http" -j KUBE-SEP-1
-A KUBE-SVC-A -m comment --comment "shop/web:http" -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
-A KUBE-SVC-A -m comment --comment "shop/web:http" -j KUBE-SEP-2
-A KUBE-SEP-1 -s 10.1.0.1/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-1 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.1.0.1:8080
-A KUBE-SEP-2 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.1.0.2:8080
"""
#: As newer ones do, IPv6.
NEW = """
*nat
-A KUBE-SERVICES -d fd00::1/128 -p udp -m comment --comment "shop/dns:dns cluster IP" -m udp --dport 53 -j KUBE-SVC-B
-A KUBE-NODEPORTS -p udp -m comment --comment "shop/dns:dns" -m udp --dport 30053 -j KUBE-EXT-B
-A KUBE-EXT-B -m comment --comment "masquerade traffic for shop/dns:dns external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-B -j KUBE-SVC-B
-A KUBE-SVC-B -m comment --comment "shop/dns:dns -> [fd01::5]:5353" -j KUBE-SEP-3
-A KUBE-SEP-3 -s fd01::5/128 -m comment --comment "shop/dns:dns" -j KUBE-MARK-MASQ
-A KUBE-SEP-3 -p udp -m comment --comment "shop/dns:dns" -m udp -j DNAT --to-destination [fd01::5]:5353
"""
BOTH = frozenset({("10.1.0.1", 8080), ("10.1.0.2", 8080)})
LOCAL = frozenset({("10.1.0.1", 8080)})


def test_chains_of_1_20() -> None:
    """Only what a source outside reaches counts: with a Local policy the local endpoint alone."""
    assert project(OLD, ("192.0.2.1", "2001:db8::1"), 4) == {
        FrontendKey("TCP", "10.96.0.9", 80): frozenset(),
        FrontendKey("TCP", "10.96.0.1", 80): BOTH,
        FrontendKey("TCP", "203.0.113.5", 80): LOCAL,
        FrontendKey("TCP", "192.0.2.1", 30080): LOCAL,
    }


def test_newer_chains() -> None:
    """One chain more on the way of external traffic; addresses of IPv6 in brackets."""
    found = frozenset({("fd01::5", 5353)})
    assert project(NEW, ("2001:db8::1",), 6) == {
        FrontendKey("UDP", "fd00::1", 53): found,
        FrontendKey("UDP", "2001:db8::1", 30053): found,
    }


def test_chains_in_a_circle() -> None:
    """Rules that lead back end the walk."""
    text = "-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 80 -j KUBE-A\n-A KUBE-A -j KUBE-B\n-A KUBE-B -j KUBE-A\n"
    assert project(text, (), 4) == {FrontendKey("TCP", "10.96.0.1", 80): frozenset()}


@pytest.mark.parametrize(
    "line",
    [
        '-A KUBE-SVC-A --comment "torn',
        "-A KUBE-SVC-A -d nowhere",
        "-A KUBE-SEP-A -j DNAT --to-destination :80",
    ],
)
def test_what_is_not_understood_is_told(line: str) -> None:
    """A comparison that leaves rules out would be worth nothing."""
    with pytest.raises(Unreadable, match="not understood"):
        project(line, (), 4)


@given(st.text(alphabet=st.sampled_from("-AKUBESVCdpj \"'!:/.0123456789[]x\n")))
def test_any_text(text: str) -> None:
    """Text of any kind is projected or refused."""
    with contextlib.suppress(Unreadable):
        project(f"-A KUBE-SERVICES {text}", ("192.0.2.1",), 4)


def test_differences() -> None:
    """Missing on either side, other endpoints; node ports on more addresses are told apart."""
    one, two, three = (FrontendKey("TCP", f"10.96.0.{n}", 80) for n in (1, 2, 3))
    port = FrontendKey("TCP", "172.17.0.1", 30080)
    found = difference({one: BOTH, two: LOCAL, port: BOTH}, {one: BOTH, three: LOCAL}, {("TCP", 30080)})
    assert (found.same, found.only_theirs, found.only_ours, found.elsewhere) == (1, (two,), (three,), 1)
    assert difference({one: BOTH}, {one: LOCAL}).other_endpoints == ((one, BOTH, LOCAL),)
    assert not difference({one: BOTH, port: BOTH}, {one: BOTH}, {("TCP", 30080)})


def test_our_side_survives_the_socket() -> None:
    """Node ports stand at each of the node's addresses; as plain values and back it is the same."""
    place = Place(4, ("192.0.2.1", "192.0.2.2"))
    programmer = Programmer(FakeKernel(), place, Ledger(), lambda lines: None)
    served = [
        frontend("10.96.0.1", 80, "10.1.0.1", "10.1.0.2"),
        frontend("", 30080, "10.1.0.1"),
        frontend("10.96.0.9", 80),
    ]
    programmer.change({each.key: each for each in served}, 1, 0.0)
    side = ours(programmer)
    assert side.rules[FrontendKey("TCP", "192.0.2.2", 30080)] == LOCAL
    assert side.node_ports == {("TCP", 30080)}
    theirs = project(OLD, side.node_addresses, 4)
    found = difference(theirs, side.rules, side.node_ports)
    assert found.same == 4
    assert found.only_theirs == (FrontendKey("TCP", "203.0.113.5", 80),)
    assert from_plain(json.loads(json.dumps(to_plain(side)))) == side


@given(
    st.dictionaries(
        st.builds(
            FrontendKey,
            st.sampled_from(["TCP", "UDP"]),
            st.sampled_from(["10.96.0.1", "10.96.0.2"]),
            st.integers(1, 9),
        ),
        st.frozensets(st.tuples(st.sampled_from(["10.1.0.1", "10.1.0.2"]), st.integers(1, 3))),
    )
)
def test_what_is_written_is_read(rules: dict[FrontendKey, frozenset[tuple[str, int]]]) -> None:
    """Any rules, written the way kube-proxy does, are projected to themselves, and differ from nothing but others."""
    lines = []
    for number, (key, endpoints) in enumerate(rules.items()):
        where = f"-A KUBE-SERVICES -d {key.address}/32 -p {key.protocol.lower()} --dport {key.port}"
        lines.append(f"{where} -j KUBE-SVC-{number}" if endpoints else f"{where} -j REJECT")
        for index, (address, port) in enumerate(sorted(endpoints)):
            lines.append(f"-A KUBE-SVC-{number} -m statistic --probability 0.5 -j KUBE-SEP-{number}-{index}")
            lines.append(f"-A KUBE-SEP-{number}-{index} -p tcp -j DNAT --to-destination {address}:{port}")
    found = project("\n".join(lines), (), 4)
    assert found == rules
    assert not difference(found, rules)
    assert from_plain(to_plain(Ours(found))).rules == rules
