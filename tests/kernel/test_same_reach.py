"""The differential: the same snapshots, written by different backends, give one table of reachability."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshlib.agent.backends.iptables import IptablesBackend
from meshlib.agent.backends.nftables import NftablesBackend
from meshlib.agent.objects import Operation, Verb
from tests.kernel.lab.lab import Lab, Programmed
from tests.kernel.lab.observed import observed
from tests.kernel.lab.prober import Denied, Silent
from tests.kernel.lab.runs import Runs
from tests.kernel.lab.snapshots import NAMES, snapshot


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


@pytest.mark.acceptance(35, 38, 39, 74, 75, 76)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("name", NAMES)
def test_nftables_and_userspace(
    lab: Lab,
    family: int,
    name: str,
    protocol: str,
    nftables: Callable[..., NftablesBackend],
    userspace: Callable[..., Programmed],
) -> None:
    """The same endpoints answer, in every cell, or none does: what they see is the relay, and how a flow fails may be
    another way (see docs/node-agent-backends.md)."""
    desired = snapshot(name, lab.place(family), protocol)
    backend = nftables(family)
    Programmed(backend, desired.place).program(desired)
    first = observed(lab, desired)
    backend.cleanup()
    lab.forget_flows()
    userspace().program(desired)
    second = observed(lab, desired, refuses=False)
    differing = {key: (first[key], second[key]) for key in first if _who(first[key]) != _who(second[key])}
    assert differing == {}
    assert any(map(_who, first.values()))


def _who(cell: object) -> frozenset[tuple[str, int]]:
    """Which endpoints answered; none where it failed."""
    return (
        frozenset((address, port) for address, port, _ in cell)
        if isinstance(cell, frozenset)
        else frozenset()
    )
