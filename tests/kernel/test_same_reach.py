"""The differential: the same snapshots, written by different backends, give one table of reachability."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshlib.agent.backends.iptables import IptablesBackend
from meshlib.agent.backends.nftables import NftablesBackend
from meshlib.agent.desired import Desired
from meshlib.agent.objects import Operation, Verb
from tests.kernel.lab.expected import reachability
from tests.kernel.lab.lab import MANY, Lab, Programmed
from tests.kernel.lab.prober import SILENCE, Answered, Denied, Silent
from tests.kernel.lab.runs import Runs
from tests.kernel.lab.snapshots import NAMES, snapshot

#: By client and frontend: who answers, and what each endpoint saw; or how it fails.
Table = dict[tuple[str, str], object]


def observed(lab: Lab, desired: Desired) -> Table:
    """What is found, without asking the model for more than how many endpoints to wait for."""
    table: Table = {}
    for client in lab.clients(desired.place.family):
        for key, expected in reachability(desired, client).items():
            seen: set[tuple[str, int, str]] = set()
            failure: object = None
            for _ in range(MANY):
                outcome = lab.probe(client.space, key.address, key.port, key.protocol, patience=SILENCE)
                if not isinstance(outcome, Answered):
                    # A datagram of the node's own that is refused or dropped looks alike to its sender.
                    failure = "lost" if client.is_node and key.protocol == "UDP" else outcome
                    break
                own = (client.address, *(desired.place.node_addresses if client.is_node else ()))
                seen.add(
                    (outcome.endpoint, outcome.port, "client" if outcome.source in own else outcome.source)
                )
                if len({each[:2] for each in seen}) >= len(expected.endpoints):
                    break
            table[client.space, str(key)] = frozenset(seen) if failure is None else failure
    return table


@pytest.mark.acceptance(35, 38, 39, 40, 62, 63, 66, 73, 74, 75, 76)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("name", NAMES)
def test_nftables_and_iptables(
    lab: Lab, family: int, name: str, protocol: str, nftables: Callable[..., NftablesBackend]
) -> None:
    """One after the other on the same node: not a single cell differs, nor from silence to refusal."""
    desired = snapshot(name, lab.place(family), protocol)
    backend = nftables(family)
    Programmed(backend, desired.place).program(desired)
    first = observed(lab, desired)
    backend.cleanup()
    lab.forget_flows()
    other = IptablesBackend(family, Runs(lab), ("-nft",))
    Programmed(other, desired.place).program(desired)
    try:
        second = observed(lab, desired)
    finally:
        there = other.dump(family)
        order = sorted(there, key=lambda key: -other.kinds.index(key.kind))
        assert not other.apply(tuple(Operation(Verb.REMOVE, key, there[key]) for key in order), 0.0)
        lab.forget_flows()
    assert first == second
    assert len(first) >= 4 * len(desired.frontends)
    kinds = {type(cell) for cell in first.values()}
    assert frozenset in kinds
    if name != "every kind":
        assert kinds & {Silent, Denied, str}
