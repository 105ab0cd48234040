"""kube-proxy's side in ipvs mode, as ``agent compare`` reads it from a real kernel."""

from __future__ import annotations

from meshlib.agent.compare.ours import ours
from meshlib.agent.compare.projection import difference
from meshlib.agent.desired import FrontendKey
from meshlib.cli.agent import theirs
from tests.kernel.uml.node import Node, frontend
from tests.kernel.uml.space import Space, connect, said

A, B = "10.1.0.1", "10.1.0.2"


def test_virtual_servers_are_compared(space: Space) -> None:
    """The same virtual servers: no difference. A draining destination gets nothing new, so it does not count. Without
    kube-proxy's device whatever is there is not its."""
    space.address("10.0.0.1", A, B)
    space.echo(A, 8080)
    node = Node()
    node.want(frontend("10.96.0.10", 80, A, B), frontend("10.96.0.11", 80), frontend("", 30080, A))
    assert theirs.read(4, ("10.0.0.1",)).by == []
    space.shell("ip link add kube-ipvs0 type dummy")
    found = theirs.read(4, ("10.0.0.1",))
    assert found.by == ["ipvs"]
    mine = ours(node.programmer)
    assert found.rules == mine.rules
    assert FrontendKey("TCP", "10.0.0.1", 30080) in found.rules
    node.want(frontend("10.96.0.10", 80, A))
    with connect("10.96.0.10", 80) as flow:
        assert said(flow)[0] == A
        node.want(frontend("10.96.0.10", 80, B))
        rules = theirs.read(4, ()).rules
        assert rules == {FrontendKey("TCP", "10.96.0.10", 80): frozenset({(B, 8080)})}
        other = difference(rules, mine.rules, mine.node_ports)
        assert len(other.only_ours) == 2
        assert len(other.other_endpoints) == 1
    assert theirs.read(6, ()).rules == {}
