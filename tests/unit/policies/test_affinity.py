"""sessionAffinity ClientIP: one endpoint while used, a sliding timeout, and never one that left the set."""

from __future__ import annotations

import threading

import pytest

from meshlib.pickers.base import Picker, PickInfo
from meshlib.pickers.least_request import BUILDER as LEAST_REQUEST
from meshlib.pickers.random import BUILDER as RANDOM
from meshlib.policies.affinity import Affinity, AffinityPicker
from meshlib.testing.contracts import build, subchannels


@pytest.fixture
def affinity() -> Affinity:
    return Affinity(60.0, threading.Lock())


def test_sticks_while_it_is_used(affinity: Affinity) -> None:
    """The timeout slides: an hour of picks less than a minute apart goes to one endpoint."""
    picker = AffinityPicker(build(RANDOM, {}, subchannels(20)), affinity)
    first = picker.pick(PickInfo(now=0.0))
    assert all(picker.pick(PickInfo(now=59.9 * n)) is first for n in range(1, 60))


def test_chooses_anew_after_the_timeout(affinity: Affinity) -> None:
    """After a pause as long as the timeout the choice is free: over many pauses, many endpoints."""
    members = subchannels(20)
    picker = AffinityPicker(build(RANDOM, {}, members), affinity)
    seen = {picker.pick(PickInfo(now=60.0 * n)) for n in range(200)}
    assert seen == set(members)


def test_survives_updates_and_leaves_with_its_endpoint(affinity: Affinity) -> None:
    """A new picker keeps the endpoint while it is in the set, chooses another when it left or its weight became 0."""
    members = subchannels(5)
    first = AffinityPicker(build(RANDOM, {}, members), affinity).pick(PickInfo(now=0.0))
    again = AffinityPicker(build(RANDOM, {}, members, seed=5), affinity).pick(PickInfo(now=1.0))
    assert again is first
    rest = [m for m in members if m is not first]
    second = AffinityPicker(build(RANDOM, {}, rest), affinity).pick(PickInfo(now=2.0))
    assert second in rest
    back = AffinityPicker(build(RANDOM, {}, members), affinity).pick(PickInfo(now=3.0))
    assert back is second, "the one that came back has no claim"


def test_excluded_endpoint_is_passed_over_and_the_new_one_kept(affinity: Affinity) -> None:
    """A retry goes elsewhere, and later requests stay there; everybody excluded: None, and the affinity stays."""
    members = subchannels(3)
    picker = AffinityPicker(build(RANDOM, {}, members), affinity)
    first = picker.pick(PickInfo(now=0.0))
    assert first is not None
    second = picker.pick(PickInfo(now=0.1, exclude={first}))
    assert second not in (first, None)
    assert picker.pick(PickInfo(now=0.2)) is second
    assert picker.pick(PickInfo(now=0.3, exclude=set(members))) is None
    assert picker.pick(PickInfo(now=0.4)) is second


def test_counts_like_the_picker_it_wraps(affinity: Affinity) -> None:
    """Sticky picks of a counting policy are counted too, exactly, under threads."""
    members = subchannels(3)
    picker: Picker = AffinityPicker(build(LEAST_REQUEST, {}, members), affinity)
    assert picker.counts
    assert not AffinityPicker(build(RANDOM, {}, members), affinity).counts

    def work() -> None:
        for _ in range(500):
            picker.pick(PickInfo(now=1.0))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(m.inflight for m in members) == [0, 0, 4000]


def test_two_targets_do_not_share(affinity: Affinity) -> None:
    """Each ServicePort has an affinity of its own."""
    members = subchannels(50)
    one = AffinityPicker(build(RANDOM, {}, members, seed=1), affinity).pick(PickInfo(now=0.0))
    other = AffinityPicker(build(RANDOM, {}, members, seed=2), Affinity(60.0, threading.Lock())).pick(
        PickInfo(now=0.0)
    )
    assert one is not other
