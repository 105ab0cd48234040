"""The file resolver in virtual time: what is published when, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from meshlib.discovery.file.resolver import FileResolver, FileSubscription
from meshlib.errors import ConfigError
from meshlib.model.events import EntrySkipped, SourceFailed, SourceRecovered
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure, Snapshot
from tests.unit.discovery.file.test_folder import SERVICE, slice_
from tests.unit.discovery.virtual import World, closes, run

#: Longer than a poll, so that one look has happened; two of them make a second look certain.
LOOK = 0.3


class Stage:
    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.file = folder / "shop.yaml"
        self.resolver = FileResolver(world.context())

    def watch(self, name: str = "shop/orders", path: Path | None = None) -> FileSubscription:
        return self.resolver.watch(
            Target.parse(f"file://{path or self.folder}#{name}:http"), self.world.publish
        )

    async def look(self, times: int = 1) -> None:
        await asyncio.sleep(LOOK * times)

    @property
    def addresses(self) -> list[str]:
        return [e.authority for e in self.world.eligible("http").endpoints]


Play = Callable[[Stage], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Play], World]:
    """Runs the coroutine function in virtual time and closes everything after it."""

    def start(body: Play) -> World:
        async def scene() -> World:
            stage = Stage(tmp_path, World())
            await body(stage)
            await stage.resolver.close()
            published = len(stage.world.updates)
            await asyncio.sleep(10)
            assert len(stage.world.updates) == published, "published after close"
            assert not stage.world.tasks, "tasks left behind"
            return stage.world

        return run(scene())

    return start


def test_edits_are_followed(play: Callable[[Play], World]) -> None:
    """More at the next look, less at the one after it, nothing while nothing changes."""

    async def body(stage: Stage) -> None:
        stage.file.write_text(SERVICE + "---\n" + slice_("127.0.0.2"))
        subscription = stage.watch()
        assert not stage.world.updates, "nothing is published before watch() returns"
        await stage.look()
        assert stage.addresses == ["127.0.0.2:8080"]
        stage.file.write_text(SERVICE + "---\n" + slice_("127.0.0.2", "127.0.0.3"))
        await stage.look()
        assert stage.addresses == ["127.0.0.2:8080", "127.0.0.3:8080"]
        stage.file.write_text(SERVICE + "---\n" + slice_("127.0.0.3"))
        await stage.look(2)
        assert stage.addresses == ["127.0.0.3:8080"]
        await stage.look(100)
        assert len(stage.world.updates) == 3
        told = subscription.describe()
        assert told["stale"] is False
        assert told["age"] > 20

    play(body)


def test_broken_edit(play: Callable[[Play], World]) -> None:
    """The set stays, one Failure and one event name file and line; mending it publishes the set again."""

    async def body(stage: Stage) -> None:
        stage.file.write_text(SERVICE + "---\n" + slice_("127.0.0.2"))
        subscription = stage.watch()
        await stage.look()
        good = SERVICE + "---\n" + slice_("127.0.0.2")
        stage.file.write_text(good + "\tbroken\n")
        await stage.look(10)
        assert stage.addresses == ["127.0.0.2:8080"]
        (failure,) = stage.world.failures
        assert f"shop.yaml:{len(good.splitlines()) + 1}:" in str(failure.error)
        (event,) = stage.world.of(SourceFailed)
        assert event.stale
        assert subscription.describe()["stale"] is True
        stage.file.write_text(SERVICE + "---\n" + slice_("127.0.0.2"))
        await stage.look()
        assert isinstance(stage.world.last, Snapshot)
        assert len(stage.world.of(SourceRecovered)) == 1

    play(body)


def test_a_late_subscription_to_a_broken_file_gets_the_last_good_set(play: Callable[[Play], World]) -> None:
    """Who comes after the broken edit gets the set in force and then what is wrong."""

    async def body(stage: Stage) -> None:
        stage.file.write_text(SERVICE + "---\n" + slice_("127.0.0.2"))
        stage.watch()
        await stage.look()
        stage.file.write_text("[")
        await stage.look(3)
        stage.world.updates.clear()
        stage.watch()
        await stage.look()
        assert [type(update) for _, update in stage.world.updates] == [Snapshot, Failure]

    play(body)


def test_missing_file_then_written(play: Callable[[Play], World]) -> None:
    """A missing path is a hopeless Failure at once (only its author can help), and works as soon as it is there."""

    async def body(stage: Stage) -> None:
        missing = stage.folder / "later"
        stage.watch(path=missing)
        await stage.look()
        assert isinstance(stage.world.last, Failure)
        assert stage.world.last.hopeless
        assert str(missing) in str(stage.world.last.error)
        missing.mkdir()
        (missing / "a.yaml").write_text(SERVICE)
        await stage.look()
        assert isinstance(stage.world.last, Snapshot)

    play(body)


def test_missing_service_names_what_there_is(play: Callable[[Play], World]) -> None:
    """A readable folder without the Service: DoesNotExist, listing the Services it has; added later, it is found."""

    async def body(stage: Stage) -> None:
        stage.file.write_text(SERVICE)
        stage.watch("shop/basket")
        await stage.look()
        assert isinstance(stage.world.last, DoesNotExist)
        assert "shop/orders" in stage.world.last.reason
        (stage.folder / "basket.yaml").write_text(SERVICE.replace("orders", "basket"))
        await stage.look()
        assert isinstance(stage.world.last, Snapshot)

    play(body)


def test_missing_service_while_a_file_is_broken_is_not_absence(play: Callable[[Play], World]) -> None:
    """The Service may stand in the file that cannot be read: a Failure, not DoesNotExist."""

    async def body(stage: Stage) -> None:
        stage.file.write_text(SERVICE)
        (stage.folder / "broken.yaml").write_text("[")
        stage.watch("shop/basket")
        await stage.look()
        assert isinstance(stage.world.last, Failure)

    play(body)


def test_skipped_entries_are_told_once(play: Callable[[Play], World]) -> None:
    """An unreadable entry is told when it appears, not at every look, and again only if it changes."""

    async def body(stage: Stage) -> None:
        stage.file.write_text(SERVICE + "---\n" + slice_("127.0.0.2", "nonsense"))
        stage.watch()
        await stage.look(10)
        assert len(stage.world.of(EntrySkipped)) == 1
        assert stage.world.snapshot.skipped == 1
        stage.file.write_text(SERVICE + "---\n" + slice_("127.0.0.2", "nonsense", "127.0.0.3"))
        await stage.look(10)
        assert len(stage.world.of(EntrySkipped)) == 1

    play(body)


def test_targets_share_one_poll(play: Callable[[Play], World]) -> None:
    """Twenty targets of one folder are one task; the last to close ends it, and a new one starts it again."""

    async def body(stage: Stage) -> None:
        stage.file.write_text(SERVICE)
        subscriptions = [stage.watch() for _ in range(20)]
        await stage.look()
        assert len(stage.world.updates) == 20
        assert len([task for task in stage.world.tasks if not task.done()]) == 1
        for subscription in subscriptions:
            closes(subscription)
        await stage.look()
        assert not stage.world.tasks
        stage.watch()
        await stage.look()
        assert len(stage.world.updates) == 21

    play(body)


@pytest.mark.parametrize(
    "settings", [{"poll": 0}, {"poll": "1"}, {"poll": True}, {"pol": 1}, {"poll": float("inf")}]
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    """A setting that cannot be used is refused by its full name."""

    async def body() -> None:
        with pytest.raises(ConfigError, match=r"discovery\.file\.pol"):
            FileResolver(World(settings).context())

    run(body())
