"""The roll-out of a Mesh: which requests are handed a target, what is counted, and who may change that live."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from meshlib.discovery.dns import lookup
from meshlib.errors import AccessDenied, ConfigError, HeldBack, MeshClosed, NotSynced
from meshlib.model.events import ConfigTaken, EntrySkipped, Event, ModeChanged, SourceFailed
from meshlib.model.target import TargetDefaults
from meshlib.model.update import DoesNotExist, Failure
from meshlib.runtime import process
from meshlib.runtime import rollout as rollouts
from meshlib.runtime.config import load_config
from meshlib.runtime.explicit import UrlHandle
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.observed import Observed
from meshlib.runtime.observing import subscribe
from meshlib.runtime.rollout import TargetRollout
from meshlib.testing.manual import ManualResolver, snapshot

URL = ("http", "orders.shop.svc", None)
TARGET = "orders.shop.svc:80"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No meshlib.toml but the test's own, and no DNS server."""
    monkeypatch.chdir(tmp_path)

    async def nothing(host: str, context: object, timeout: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(lookup, "addresses", nothing)


@pytest.fixture
def resolver() -> ManualResolver:
    made = ManualResolver("k8s")
    made.endpoints("shop/orders", ["10.0.0.1:80"])
    return made


@pytest.fixture
def make(resolver: ManualResolver) -> Iterator[Callable[..., Mesh]]:
    """make(mode="off", ...): a Mesh with these settings; file= reads that file."""
    made: list[Mesh] = []

    def create(file: Path | None = None, **code: Any) -> Mesh:
        settings = {"sync_timeout": 5.0, "picker": "round_robin", **code}
        made.append(Mesh(config=load_config(settings, {}, file), resolvers={"k8s": resolver}))
        return made[-1]

    yield create
    for mesh in made:
        mesh.close()


@pytest.fixture
def events() -> Iterator[list[Event]]:
    seen: list[Event] = []
    end = subscribe(seen.append)
    yield seen
    end()


def rollout(mesh: Mesh, target: str = TARGET) -> TargetRollout:
    return mesh.target(target).rollout


def eventually(fact: Callable[[], Any]) -> None:
    pause = threading.Event()
    for _ in range(4000):
        if fact():
            return
        pause.wait(0.005)
    raise AssertionError("it did not become true")


def look(mesh: Mesh) -> None:
    """Two looks at the file, an hour after the one before."""
    watch: Any = mesh.rollout._file
    now = watch._now
    for later in (3600.0, 7200.0):
        watch._now = lambda later=later: now() + later
        mesh.rollout.look()
    watch._now = now


def known(mesh: Mesh) -> None:
    handle = mesh.target(TARGET)
    handle.try_start()
    eventually(lambda: handle.state.settled)


def test_on_is_a_look_at_one_attribute(make: Callable[..., Mesh]) -> None:
    """By default: the handle, no gate once the first use has looked at the file, and nothing counted here."""
    mesh = make()
    assert isinstance(mesh.for_url(*URL), TargetHandle)
    assert rollout(mesh).gate is None
    counts = rollout(mesh).counts()
    assert (counts.bare_off, counts.bare_observe, counts.bare_percent) == (0, 0, 0)


def test_off_discovers_nothing(make: Callable[..., Mesh], resolver: ManualResolver) -> None:
    """Requests are counted and go the bare way; neither a watch nor a question to DNS is started for them."""
    mesh = make(mode="off")
    mesh.defaults = TargetDefaults("shop", search=("shop.svc.cluster.local",), ndots=5)
    assert [mesh.for_url(*URL) for _ in range(3)] == [None] * 3
    assert mesh.for_url("http", "orders", None) is None
    assert mesh.serving_url(*URL) is None
    assert mesh.handles == ()
    assert not resolver.watched
    assert not any(entry.asking for entry in mesh._urls._entries.values())
    assert mesh.rollout.target(rollout(mesh).target).counts().bare_off == 3


def test_observe_picks_without_a_trace(make: Callable[..., Mesh]) -> None:
    """What would have been picked is counted; no endpoint is charged with a request, and the request is bare."""
    mesh = make(mode="observe", picker="least_connections")
    known(mesh)
    assert all(isinstance(mesh.for_url(*URL), Observed) for _ in range(5))
    counts = rollout(mesh).counts()
    assert (counts.bare_observe, counts.observed_picks, dict(counts.observed_refusals)) == (5, 5, {})
    (endpoint,) = mesh.target(TARGET).status()["endpoints"]
    assert (endpoint["inflight"], endpoint["requests"]) == (0, 0)


def test_observe_never_waits(make: Callable[..., Mesh], resolver: ManualResolver) -> None:
    """While nothing is known yet: counted as that, at once, and discovery has begun."""
    mesh = make(mode="observe", sync_timeout=60)
    url = ("http", "stock.shop.svc", None)
    assert isinstance(mesh.for_url(*url), Observed)
    assert rollout(mesh, "stock.shop.svc:80").counts().observed_refusals == {"not_synced": 1}
    eventually(lambda: resolver.watched)


@pytest.mark.parametrize(
    "update, port, reason",
    [
        (DoesNotExist("none"), 80, "service_not_found"),
        (snapshot("shop/orders", []), 80, "no_endpoints"),
        (snapshot("shop/orders", ["10.0.0.1:80"]), 81, "unknown_port"),
        (Failure(AccessDenied("403"), hopeless=True), 80, "denied"),
        (Failure(OSError("refused"), hopeless=True), 80, "not_synced"),
    ],
)
def test_observe_counts_would_be_errors(
    make: Callable[..., Mesh], resolver: ManualResolver, update: Any, port: int, reason: str
) -> None:
    """Each reason by its name, none of them raised."""
    resolver.publish("shop/orders", update)
    mesh = make(mode="observe", sync_timeout=0.0)
    handle = mesh.target(f"orders.shop.svc:{port}")
    handle.try_start()
    eventually(lambda: handle.state.settled)
    assert isinstance(mesh.for_url("http", "orders.shop.svc", port), Observed)
    assert handle.rollout.counts().observed_refusals == {reason: 1}


def test_observe_compares_where_the_bare_way_led(make: Callable[..., Mesh], resolver: ManualResolver) -> None:
    """An endpoint of the set, the Service's own address, or neither."""
    resolver.endpoints("shop/orders", ["10.0.0.1:8080", "10.0.0.2:8080"], cluster_ips=("10.96.0.7",))
    mesh = make(mode="observe")
    known(mesh)
    observed = mesh.for_url(*URL)
    assert isinstance(observed, Observed)
    for peer in (
        ("10.0.0.2", 8080),
        ("10.96.0.7", 80),
        ("10.96.0.7", 8080),
        ("10.0.0.2", 80),
        ("10.0.0.3", 8080),
    ):
        observed.reached(*peer)
    assert rollout(mesh).counts().observed_reached == {"endpoint": 1, "service": 1, "elsewhere": 3}


@pytest.mark.parametrize("percent, least, most", [(0, 0, 0), (5, 48, 52), (50, 498, 502), (100, 1000, 1000)])
def test_percent(make: Callable[..., Mesh], percent: int, least: int, most: int) -> None:
    """Of a thousand requests that many are the mesh's, and the others are counted."""
    mesh = make(percent=percent)
    known(mesh)
    ours = sum(mesh.for_url(*URL) is not None for _ in range(1000))
    assert least <= ours <= most
    assert rollout(mesh).counts().bare_percent == 1000 - ours
    assert rollout(mesh).decision.percent == percent


def test_counting_is_exact_under_threads(make: Callable[..., Mesh]) -> None:
    """No request is counted twice or not at all."""
    mesh = make(percent=30)
    known(mesh)
    ours: list[int] = []

    def work() -> None:
        ours.append(sum(mesh.for_url(*URL) is not None for _ in range(2000)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ours) + rollout(mesh).counts().bare_percent == 8000
    assert abs(sum(ours) - 2400) <= 5


def test_short_names_obey(
    make: Callable[..., Mesh], resolver: ManualResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once DNS has said which Service it is, that Service's mode holds; before, nobody asks for those that are off."""

    async def addresses(host: str, context: object, timeout: float) -> tuple[str, ...]:
        return ("10.96.0.10",) if host == "orders.shop.svc.cluster.local" else ()

    monkeypatch.setattr(lookup, "addresses", addresses)
    mesh = make(allow_targets=["orders"], mode="observe")
    mesh.defaults = TargetDefaults("shop", search=("shop.svc.cluster.local",), ndots=5)
    assert mesh.for_url("http", "stock", None) is None
    assert mesh.for_url("http", "orders", None) is None
    eventually(lambda: isinstance(mesh.for_url("http", "orders", None), Observed))
    assert not mesh._urls._entries["http", "stock", None].asking
    eventually(lambda: {str(target) for target in resolver.watched} == {TARGET})


def test_a_short_name_that_was_off_is_asked_for_later(
    make: Callable[..., Mesh], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that knows its Services by short names only learns of the file's change, too."""

    async def addresses(host: str, context: object, timeout: float) -> tuple[str, ...]:
        return ("10.96.0.10",) if host == "orders.shop.svc.cluster.local" else ()

    monkeypatch.setattr(lookup, "addresses", addresses)
    file = tmp_path / "meshlib.toml"
    file.write_text('mode = "off"')
    mesh = make()
    mesh.defaults = TargetDefaults("shop", search=("shop.svc.cluster.local",), ndots=5)
    assert [mesh.for_url("http", "orders", None) for _ in range(3)] == [None] * 3
    file.write_text('mode = "on"')
    eventually(lambda: isinstance(mesh.for_url("http", "orders", None), TargetHandle))


class TestAnnotation:
    """``meshlib.dev/mode`` of the Service, written by others."""

    def say(self, resolver: ManualResolver, mode: str | None) -> None:
        annotations = (("meshlib.dev/mode", mode),) if mode is not None else ()
        resolver.endpoints("shop/orders", ["10.0.0.1:80"], annotations=annotations)

    def test_it_lowers_and_lets_go(
        self, make: Callable[..., Mesh], resolver: ManualResolver, events: list[Event]
    ) -> None:
        """Live, both ways, with a line for each change."""
        mesh = make()
        known(mesh)
        self.say(resolver, "off")
        eventually(lambda: mesh.for_url(*URL) is None)
        assert rollout(mesh).decision.source == "Service shop/orders: annotation meshlib.dev/mode"
        self.say(resolver, "observe")
        eventually(lambda: isinstance(mesh.for_url(*URL), Observed))
        self.say(resolver, None)
        eventually(lambda: isinstance(mesh.for_url(*URL), TargetHandle))
        modes = [event.mode for event in events if isinstance(event, ModeChanged)]
        assert modes == ["off", "observe", "on at 100 %"]

    def test_it_goes_with_its_service(self, make: Callable[..., Mesh], resolver: ManualResolver) -> None:
        """A Service that is gone says nothing any more."""
        self.say(resolver, "off")
        mesh = make()
        known(mesh)
        assert rollout(mesh).lowered
        resolver.publish("shop/orders", DoesNotExist("deleted"))
        eventually(lambda: not rollout(mesh).lowered)

    @pytest.mark.parametrize(
        "text, local", [("on", "off"), ("on", "observe"), ("observe", "off"), ("ON!", "on")]
    )
    def test_it_never_raises_the_mode(
        self, make: Callable[..., Mesh], resolver: ManualResolver, events: list[Event], text: str, local: str
    ) -> None:
        """What asks for more is ignored, and said once however often it is published."""
        mesh = make(mode=local)
        known(mesh)
        for address in ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"):
            resolver.endpoints("shop/orders", [address], annotations=(("meshlib.dev/mode", text),))
            eventually(lambda: mesh.target(TARGET).status()["endpoints"][0]["address"] == address[:8])  # noqa: B023
        assert rollout(mesh).decision.mode.value == local
        said = [event.reason for event in events if isinstance(event, EntrySkipped)]
        assert len(said) == 1
        assert repr(text) in said[0]

    def test_a_forked_child_obeys_and_keeps_watching(
        self, make: Callable[..., Mesh], resolver: ManualResolver
    ) -> None:
        """It inherits what the Service says, and must learn when that ends."""
        self.say(resolver, "off")
        mesh = make()
        known(mesh)
        eventually(lambda: mesh.for_url(*URL) is None)
        mesh.after_fork()
        assert rollout(mesh).counts().bare_off == 0
        watches = len(resolver.watched)
        assert mesh.for_url(*URL) is None
        eventually(lambda: len(resolver.watched) >= watches and mesh.target(TARGET).live is not None)
        self.say(resolver, None)
        eventually(lambda: isinstance(mesh.for_url(*URL), TargetHandle))


class TestFile:
    """meshlib.toml, changed while the process runs."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return self.write(tmp_path / "settings.toml", "")

    def write(self, path: Path, text: str) -> Path:
        """As an editor that writes a new file and moves it into place, long ago."""
        fresh = path.with_name("fresh")
        fresh.write_text(text)
        fresh.replace(path)
        return path

    def look(self, mesh: Mesh) -> None:
        """As the control thread does once a second: twice, for the file was written just now."""
        look(mesh)

    def test_every_change_is_obeyed(self, make: Callable[..., Mesh], file: Path, events: list[Event]) -> None:
        """off, observe, a share, back on; one line for each; the settings that pages show follow."""
        mesh = make(file)
        known(mesh)
        assert isinstance(mesh.for_url(*URL), TargetHandle)
        self.look(mesh)
        for text, kind in (
            ('mode = "off"', None),
            ('mode = "observe"', Observed),
            ("percent = 0", None),
            ("allow_targets = []", None),
            ('allow_targets = ["orders.shop.svc"]', TargetHandle),
            (f'[target."{TARGET}"]\nmode = "off"', None),
            ("", TargetHandle),
        ):
            self.write(file, text)
            self.look(mesh)
            found = mesh.for_url(*URL)
            assert isinstance(found, kind) if kind else found is None, text
        assert len([event for event in events if isinstance(event, ConfigTaken)]) == 7
        assert rollout(mesh).gate is None

    def test_config_shows_what_is_in_force(self, make: Callable[..., Mesh], file: Path) -> None:
        """Mesh.config: the live keys with their source; the others as they were read at the start."""
        mesh = make(file)
        self.write(file, 'mode = "off"\nzone = "b"\n')
        self.look(mesh)
        assert (mesh.config.mode, mesh.config.source("mode")) == ("off", f"{file}: mode")
        assert (mesh.config.zone, mesh.config.file) == ("", str(file))

    def test_other_keys_wait_for_a_restart(
        self, make: Callable[..., Mesh], file: Path, events: list[Event]
    ) -> None:
        """They are named, once."""
        mesh = make(file)
        self.write(file, 'zone = "b"\nmode = "observe"\n')
        self.look(mesh)
        self.look(mesh)
        (taken,) = [event for event in events if isinstance(event, ConfigTaken)]
        assert (taken.changes, taken.at_restart) == (("mode: default -> observe",), ("zone",))

    def test_a_broken_file_changes_nothing(
        self, make: Callable[..., Mesh], file: Path, events: list[Event]
    ) -> None:
        """The last good one stays in force; said once per content, visible as long as it lasts; then it is over."""
        mesh = make(file)
        self.write(file, 'mode = "off"')
        self.look(mesh)
        self.write(file, "mode = off")
        self.look(mesh)
        self.look(mesh)
        assert mesh.for_url(*URL) is None
        assert "not valid TOML" in mesh.rollout.problem
        (failed,) = [event for event in events if isinstance(event, SourceFailed)]
        assert (failed.source, failed.stale) == (f"configuration {file}", True)
        assert str(file) in str(failed.error)
        self.write(file, 'mode = "off"')
        self.look(mesh)
        assert mesh.rollout.problem == ""
        assert isinstance(events[-1], ConfigTaken)

    @pytest.mark.parametrize("failure", [ConfigError("settings.toml", "too many open files"), MemoryError()])
    def test_what_could_not_be_read_is_taken_later(
        self, make: Callable[..., Mesh], file: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
    ) -> None:
        """A switch that is thrown while the process has no descriptors left counts when it has some again."""
        mesh = make(file)
        self.look(mesh)
        self.write(file, 'mode = "off"')

        def fails(config: object) -> NoReturn:
            raise failure

        with monkeypatch.context() as patched:
            patched.setattr(rollouts, "reload_config", fails)
            with contextlib.suppress(MemoryError):
                self.look(mesh)
        self.look(mesh)
        assert mesh.for_url(*URL) is None

    def test_a_fork_in_the_middle_of_a_look_loses_nothing(
        self, make: Callable[..., Mesh], file: Path
    ) -> None:
        """The parent had seen the change and not read it yet: the child, which has only the fork's thread, reads it."""
        mesh = make(file)
        self.look(mesh)
        self.write(file, 'mode = "off"')
        watch: Any = mesh.rollout._file
        wall = watch._wall
        watch._wall = lambda: wall() + 3600.0
        assert watch.changed()
        mesh.after_fork()
        assert mesh.for_url(*URL) is None

    def test_a_file_half_written_is_not_taken(self, make: Callable[..., Mesh], file: Path) -> None:
        """Emptied, to be filled again: an empty file is valid and means on, which nobody meant."""
        self.write(file, 'mode = "off"')
        mesh = make(file)
        self.look(mesh)
        file.write_text("")
        for _ in range(3):
            mesh.rollout.look()
        assert mesh.for_url(*URL) is None
        file.write_text('mode = "off" ')
        self.look(mesh)
        assert mesh.for_url(*URL) is None

    def test_code_wins_and_it_is_said(
        self, make: Callable[..., Mesh], file: Path, events: list[Event]
    ) -> None:
        """A kill switch that cannot work must say so at the first try."""
        mesh = make(file, mode="on")
        self.look(mesh)
        self.write(file, 'mode = "off"')
        self.look(mesh)
        assert isinstance(mesh.for_url(*URL), TargetHandle)
        (taken,) = [event for event in events if isinstance(event, ConfigTaken)]
        assert taken.without_effect == ("mode (code: mode wins)",)

    def test_the_first_use_looks(self, make: Callable[..., Mesh], file: Path) -> None:
        """A worker forked long after the file was read, and changed, does not begin with what it inherited."""
        mesh = make(file)
        self.write(file, 'mode = "off"')
        os.utime(file)
        mesh.rollout._file._wall = lambda: os.stat(file).st_ctime + 3600  # type: ignore[union-attr]
        assert mesh.for_url(*URL) is None
        self.write(file, 'mode = "observe"')
        mesh.after_fork()
        assert isinstance(mesh.for_url(*URL), Observed)

    def test_the_control_thread_looks(self, make: Callable[..., Mesh], file: Path) -> None:
        """Nobody calls look(): within seconds, on its own."""
        mesh = make(file)
        known(mesh)
        assert isinstance(mesh.for_url(*URL), TargetHandle)
        self.write(file, 'mode = "off"')
        eventually(lambda: mesh.for_url(*URL) is None)

    def test_a_look_that_fails_is_not_the_last(
        self, make: Callable[..., Mesh], file: Path, monkeypatch: pytest.MonkeyPatch, events: list[Event]
    ) -> None:
        """No helper thread to be had for once: reported, and the next look takes the change."""
        mesh = make(file)
        known(mesh)
        look, failed = mesh.rollout.look, threading.Event()

        def fails() -> None:
            monkeypatch.setattr(mesh.rollout, "look", look)
            failed.set()
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(mesh.rollout, "look", fails)
        self.write(file, 'mode = "off"')
        assert failed.wait(30)
        eventually(lambda: mesh.for_url(*URL) is None)
        failures = [event for event in events if isinstance(event, SourceFailed)]
        assert [event.source for event in failures if event.source == "configuration"] == ["configuration"]

    def test_no_thread_no_trouble(
        self, make: Callable[..., Mesh], file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where no control thread can be started, what was read stays in force and bare requests go on."""
        self.write(file, 'mode = "off"')
        mesh = make(file)

        def fails(crashed: object) -> Any:
            raise OSError(24, "out of files")

        process.leave(None)
        monkeypatch.setattr(process, "ControlThread", fails)
        monkeypatch.setattr(process, "_runtime", None)
        assert mesh.for_url(*URL) is None
        with pytest.raises(NotSynced):
            mesh.enter_runtime()


def test_lowering_closes_idle_connections(make: Callable[..., Mesh], tmp_path: Path) -> None:
    """Clients are told to drop what they keep to the endpoints; when all is on again, they just go on."""
    mesh = make()
    known(mesh)
    gone: list[str] = []

    class Client:
        def dropped(self, subchannel: Any) -> None:
            gone.append(subchannel.endpoint.authority)

    client = Client()
    mesh.target(TARGET).on_removed(client.dropped)
    (tmp_path / "meshlib.toml").write_text('mode = "off"')
    look(mesh)
    assert gone == ["10.0.0.1:80"]
    assert not mesh.target(TARGET).balancer.subchannels[0].removed


def test_a_call_that_waited_in_vain_goes_the_bare_way_if_the_mode_was_lowered_meanwhile(
    make: Callable[..., Mesh], tmp_path: Path
) -> None:
    """By host name, nothing is known, and nothing may be: what was waited for is not missed any more."""
    mesh = make(strict=True, sync_timeout=0.01)
    handle = UrlHandle(mesh.target("unknown.shop.svc:80"))
    with pytest.raises(NotSynced):
        handle.acquire(0.01)
    (tmp_path / "meshlib.toml").write_text('mode = "off"')
    look(mesh)
    with pytest.raises(HeldBack):
        handle.acquire(0.01)
    with pytest.raises(HeldBack):
        asyncio.run(handle.acquire_async(0.01))


def test_a_closed_mesh_is_no_trouble_in_off(make: Callable[..., Mesh]) -> None:
    """As if meshlib were not there; in mode on it is an error, as ever."""
    for mode in ("off", "on"):
        mesh = make(mode=mode)
        mesh.for_url(*URL)
        mesh.close()
        if mode == "off":
            assert mesh.for_url(*URL) is None
        else:
            with pytest.raises(MeshClosed):
                mesh.for_url("http", "other.shop.svc", None)


def test_a_dropped_mesh_is_not_kept(resolver: ManualResolver) -> None:
    """Neither the task that looks at the file nor the targets keep it."""
    mesh = Mesh(config=load_config({"mode": "observe"}, {}), resolvers={"k8s": resolver})
    assert mesh.for_url(*URL) is not None
    reference = weakref.ref(mesh)
    del mesh
    gc.collect()
    assert reference() is None
