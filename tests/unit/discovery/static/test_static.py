"""The static resolver publishes what the target lists, once."""

from __future__ import annotations

import asyncio

from meshlib.discovery.static.resolver import BUILDER
from meshlib.model.target import StaticAddress, Target
from meshlib.model.update import DoesNotExist, Snapshot
from tests.unit.discovery.virtual import World, closes, run


def watch_once(target: Target) -> World:
    """Watch, let the loop turn, close."""

    async def body() -> World:
        world = World()
        resolver = BUILDER.build(world.context())
        subscription = resolver.watch(target, world.publish)
        assert not world.updates, "nothing is published before watch() returns"
        await asyncio.sleep(100)
        assert subscription.describe()["source"] == "static"
        closes(subscription)
        await resolver.close()
        return world

    return run(body())


def test_one_snapshot_with_weights_and_ports() -> None:
    """Addresses, ports and weights arrive as written, in one update and for good."""
    world = watch_once(Target.parse("static:///10.0.0.1:80,10.0.0.2:81;weight=3,127.0.0.1:80"))
    assert len(world.updates) == 1
    found = {(e.authority, e.weight) for e in world.eligible().endpoints}
    assert found == {("10.0.0.1:80", 1), ("10.0.0.2:81", 3), ("127.0.0.1:80", 1)}


def test_slices_have_one_family_each() -> None:
    """Mixed families become one slice per family and port, so a slice never lies about its family."""
    world = watch_once(Target.parse("static:///10.0.0.1:80,[fd00::1]:80,[fd00::2]:81"))
    shape = {
        (s.family, s.ports[0].port, tuple(e.address for e in s.endpoints)) for s in world.snapshot.slices
    }
    assert shape == {(4, 80, ("10.0.0.1",)), (6, 80, ("fd00::1",)), (6, 81, ("fd00::2",))}


def test_repeated_address_sums_its_weights() -> None:
    """A target built in code may repeat an address: it counts once, with both shares."""
    target = Target(
        scheme="static", addresses=(StaticAddress("10.0.0.1", 80), StaticAddress("10.0.0.1", 80, 4))
    )
    world = watch_once(target)
    assert [(e.address, e.weight) for e in world.eligible().endpoints] == [("10.0.0.1", 5)]


def test_no_address_does_not_exist() -> None:
    """A target without addresses (made in code) is told as such instead of failing inside."""
    world = watch_once(Target(scheme="static"))
    assert isinstance(world.last, DoesNotExist)


def test_closed_before_the_first_turn() -> None:
    """A subscription closed at once never publishes."""

    async def body() -> list[tuple[float, object]]:
        world = World()
        resolver = BUILDER.build(world.context())
        resolver.watch(Target.parse("static:///10.0.0.1:80"), world.publish).close()
        await asyncio.sleep(1)
        return list(world.updates)

    assert run(body()) == []


def test_equal_targets_give_equal_snapshots() -> None:
    """Equal facts are equal values, so that re-reading a configuration changes nothing."""
    first, second = (watch_once(Target.parse("static:///10.0.0.1:80,10.0.0.2:80")).last for _ in range(2))
    assert isinstance(first, Snapshot)
    assert first == second
