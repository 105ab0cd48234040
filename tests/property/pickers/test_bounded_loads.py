"""Bounded loads: whatever arrives and ends, nobody is above the bound when it is picked, and the total is right."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.pickers.base import PickInfo
from meshlib.pickers.bounded_loads import BoundedHashPicker
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime.registry import picker_builder
from meshlib.testing.contracts import build, subchannels

POLICIES = ["ring_hash", "maglev", "rendezvous"]
#: Small tables: the bound does not depend on their size, and thousands of them are built here.
SMALL = {"ring_hash": {"min_ring_size": 16}, "maglev": {"table_size": 31}, "rendezvous": {}}


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    weights=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    factor=st.integers(100, 300),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=80),
)
def test_no_pick_goes_above_the_bound(
    policy: str, weights: list[int], factor: int, steps: list[tuple[bool, int]]
) -> None:
    """Every pick stays within ceil(c x weighted mean of the load with it), at any mix of few keys and of ends."""
    members = subchannels(weights)
    picker = build(picker_builder(policy), {**SMALL[policy], "hash_balance_factor": factor}, members)
    assert isinstance(picker, BoundedHashPicker)
    out: list[Subchannel] = []
    for begins, number in steps:
        if begins or not out:
            chosen = picker.pick(PickInfo(hash_key=f"key-{number % 3}"))
            assert chosen is not None
            out.append(chosen)
            bound = ceil(factor / 100 * len(out) * chosen.endpoint.weight / sum(weights))
            assert chosen.inflight <= bound
        else:
            out.pop(number % len(out)).end()
        picker._load.catch_up()
        assert picker._load.total == len(out) == sum(m.inflight for m in members)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_hot_key_spills_in_its_own_order(policy: str) -> None:
    """A single key: first its owner, then the next in its walk, each up to 1.5 times the mean."""
    members = subchannels(4)
    picker = build(picker_builder(policy), {"hash_balance_factor": 150}, members)
    assert isinstance(picker, BoundedHashPicker)
    table = picker.unbounded.table
    assert table is not None
    walk = list(table.walk(picker.unbounded.hashed(PickInfo(hash_key="hot"))))
    for _ in range(40):
        picker.pick(PickInfo(hash_key="hot"))
    loads = [member.inflight for member in walk]
    assert loads[0] == 15
    assert loads == sorted(loads, reverse=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_pressure_the_owner_is_picked(policy: str) -> None:
    """Sequential requests always go to the owner: the bound then never binds."""
    members = subchannels(6)
    free = build(picker_builder(policy), {}, members)
    bounded = build(picker_builder(policy), {"hash_balance_factor": 125}, members)
    for number in range(200):
        info = PickInfo(hash_key=f"key-{number}")
        chosen = bounded.pick(info)
        assert chosen is free.pick(info)
        assert chosen is not None
        chosen.end()


@pytest.mark.parametrize("policy", POLICIES)
def test_load_is_carried_over_an_update(policy: str) -> None:
    """After members left and joined, the total is that of those that are in the set."""
    members = subchannels(5)
    first = build(picker_builder(policy), {"hash_balance_factor": 150}, members[:4])
    out = [first.pick(PickInfo(hash_key=str(n))) for n in range(40)]
    second = build(picker_builder(policy), {"hash_balance_factor": 150}, members[1:], previous=first)
    assert isinstance(second, BoundedHashPicker)
    assert second._load.total == sum(m.inflight for m in members[1:])
    for subchannel in out:
        assert subchannel is not None
        subchannel.end()
    second._load.catch_up()
    assert second._load.total == 0
    assert members[0].on_load is None


def test_with_the_free_ones_excluded_a_full_one_is_better_than_none() -> None:
    """A retry that excludes everybody with room goes to the first in order all the same."""
    members = subchannels(2)
    picker = build(picker_builder("rendezvous"), {"hash_balance_factor": 100}, members)
    first = picker.pick(PickInfo(hash_key="a"))
    other = next(m for m in members if m is not first)
    assert picker.pick(PickInfo(hash_key="a", exclude={other})) is first
