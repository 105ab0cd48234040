"""The order of policies: lowest usable priority, then weights and picker, then affinity around each pick."""

from __future__ import annotations

import threading
from random import Random

from meshlib.model.endpoint import Endpoint
from meshlib.pickers.base import Picker, PickerContext, PickInfo
from meshlib.pickers.least_connections import BUILDER as LEAST_CONNECTIONS
from meshlib.pickers.least_connections import LeastConnections
from meshlib.pickers.random import BUILDER as RANDOM
from meshlib.pickers.subchannel import Subchannel
from meshlib.policies.affinity import Affinity, AffinityPicker
from meshlib.policies.order import lowest_tier, plan


def members(*tiers: tuple[int, int]) -> list[Subchannel]:
    """A subchannel for each (priority, weight)."""
    return [
        Subchannel(
            Endpoint(address=f"10.0.0.{i}", port=80, priority=priority, weight=weight), threading.Lock()
        )
        for i, (priority, weight) in enumerate(tiers)
    ]


def context(previous: Picker | None = None) -> PickerContext:
    return PickerContext(random=Random(1).random, previous=previous, new_lock=threading.Lock)


def test_only_the_lowest_tier_is_picked() -> None:
    """Higher priorities get nothing while the lowest has a member."""
    several = members((10, 1), (10, 1), (20, 100))
    picker = plan(several, RANDOM, None, context())
    assert {picker.pick() for _ in range(200)} == set(several[:2])


def test_tier_without_weight_is_empty() -> None:
    """A tier whose members all have weight 0 gives way to the next."""
    several = members((0, 0), (1, 0), (1, 2), (2, 1))
    assert lowest_tier(several) == [several[1], several[2]]
    picker = plan(several, RANDOM, None, context())
    assert {picker.pick() for _ in range(50)} == {several[2]}


def test_nothing_to_pick() -> None:
    """No members, or none with a weight: a picker that gives None."""
    assert plan([], RANDOM, None, context()).pick() is None
    useless = members((0, 0), (1, 0))
    picker = plan(useless, RANDOM, None, context())
    assert picker.pick() is None
    assert list(picker.subchannels) == useless


def test_one_tier_is_passed_on_as_it_is() -> None:
    """The usual case copies nothing."""
    several = members((0, 1), (0, 0))
    assert lowest_tier(several) is several


def test_affinity_wraps_the_picker_and_hands_the_inner_one_on() -> None:
    """With affinity the pick sticks, and a successor continues the picker inside, not the wrapper."""
    several = members((0, 1), (0, 1), (0, 1))
    affinity = Affinity(60.0, threading.Lock())
    first = plan(several, LEAST_CONNECTIONS, None, context(), affinity)
    assert isinstance(first, AffinityPicker)
    assert len({first.pick(PickInfo(now=1.0)) for _ in range(20)}) == 1
    second = plan(several, LEAST_CONNECTIONS, None, context(first))
    assert isinstance(second, LeastConnections)
    assert isinstance(first.inner, LeastConnections)
    assert second._index is first.inner._index
    assert {second.pick(PickInfo(now=1.0)) for _ in range(2)} <= set(several)
