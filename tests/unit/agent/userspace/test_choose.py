"""Userspace: choosing endpoints."""

from __future__ import annotations

import gc
import random
from collections import Counter
from typing import Any

import pytest

from meshlib.agent.backends.userspace.choose import Chooser, Choosers, Clients
from meshlib.agent.backends.userspace.room import Room, room_for
from meshlib.agent.backends.userspace.translate import Served
from meshlib.agent.desired import Action, PortKey, Route, Target
from meshlib.model.service import ServiceKey
from meshlib.pickers.subchannel import Subchannel

OWNER = PortKey(ServiceKey("shop", "web"), "http", "TCP")
A, B, C = (Target(f"10.1.0.{number}", 8080) for number in (1, 2, 3))


class World:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.shared = Choosers(random.Random(7).random, lambda: self.now)

    def chooser(self, *targets: Target, before: Chooser | None = None, **more: Any) -> Chooser:
        served = Served(OWNER, Route(Action.FORWARD if targets else Action.REJECT, targets), **more)
        return Chooser(served, self.shared, before)


def where(chooser: Chooser, peer: str = "192.0.2.1", end: bool = True) -> str:
    found = chooser.pick(peer)
    assert found is not None
    if end:
        found.end()
    return found.endpoint.address


def test_takes_turns_and_goes_on_after_a_change() -> None:
    """Each endpoint as often as each other, a successor where its predecessor was."""
    world = World()
    chooser = world.chooser(A, B, C)
    seen = Counter(where(chooser) for _ in range(30))
    assert set(seen.values()) == {10}
    first = where(chooser)
    after = world.chooser(A, B, C, before=chooser)
    assert where(after) != first


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "dh"])
def test_weights(scheduler: str) -> None:
    """In proportion, whatever the scheduler of the turns."""
    chooser = World().chooser(A, B._replace(weight=3), scheduler=scheduler)
    assert Counter(where(chooser) for _ in range(40)) == {A.address: 10, B.address: 30}


@pytest.mark.parametrize("scheduler", ["lc", "wlc", "sed", "nq"])
def test_least_connections(scheduler: str) -> None:
    """The one with the fewest that are open; counts are shared by all frontends of the port."""
    world = World()
    chooser = world.chooser(A, B, scheduler=scheduler)
    other = world.chooser(A, B, scheduler=scheduler)
    assert {where(chooser, end=False), where(other, end=False)} == {A.address, B.address}


@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_hashing(scheduler: str) -> None:
    """A client goes where its address says; clients spread."""
    chooser = World().chooser(A, B, scheduler=scheduler)
    assert len({where(chooser) for _ in range(20)}) == 1
    assert len({where(chooser, f"192.0.2.{number}") for number in range(30)}) == 2


def test_affinity_is_of_the_service_and_ends_on_time() -> None:
    """Frontends of one port share it; it slides with use; a removed endpoint ends it."""
    world = World()
    chooser, other = (world.chooser(A, B, C, affinity_seconds=10) for _ in range(2))
    stuck = where(chooser)
    for _ in range(6):
        world.now += 9.0
        assert {where(chooser), where(other)} == {stuck}
    rest = [target for target in (A, B, C) if target.address != stuck]
    smaller = world.chooser(*rest, before=chooser, affinity_seconds=10)
    moved = where(smaller)
    assert moved != stuck
    assert where(smaller) == moved
    found = set()
    for _ in range(20):
        world.now += 10.0
        found.add(where(smaller))
    assert found == {target.address for target in rest}


def test_clients_are_bounded() -> None:
    """The one that was silent for longest is forgotten first."""
    world = World()
    chooser = world.chooser(A, B, C, affinity_seconds=10)
    clients = Clients(most=2)
    chooser._clients = clients
    first = where(chooser, "a")
    where(chooser, "b")
    assert where(chooser, "a") == first
    where(chooser, "c")
    assert len(clients) == 2
    assert where(chooser, "a") == first


def test_nobody_left() -> None:
    """What was tried is not chosen again; without endpoints nobody is."""
    world = World()
    chooser = world.chooser(A, B)
    tried: set[Subchannel] = set()
    for _ in range(2):
        found = chooser.pick("x", tried)
        assert found is not None
        assert found not in tried
        assert found in chooser
        tried.add(found)
    assert chooser.pick("x", tried) is None
    empty = world.chooser()
    assert empty.pick("x") is None
    assert empty.action("x") is Action.REJECT


def test_nothing_is_kept_of_what_went() -> None:
    """Endpoints and clients of a Service go with its last frontend."""
    world = World()
    chooser = world.chooser(A, affinity_seconds=10)
    where(chooser)
    assert len(world.shared._subchannels) == len(world.shared._clients) == 1
    del chooser
    gc.collect()
    assert len(world.shared._subchannels) == len(world.shared._clients) == 0


def test_room() -> None:
    """Never more than there is; who waits is told once."""
    room = Room(3)
    told: list[int] = []
    assert room.take(2)
    assert not room.take(2)
    room.wait(lambda: told.append(room.taken))
    room.give(2)
    room.give(0)
    assert told == [0]
    assert room_for(1024) == 768
    assert room_for(10) == 64
