"""Mesh and its handles: from a target string to a lease, in threads, coroutines and after close."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from meshlib.discovery.dns import lookup
from meshlib.errors import (
    ConfigError,
    MeshClosed,
    MeshError,
    NoEndpoints,
    NotSynced,
    TargetError,
)
from meshlib.model.events import EndpointsChanged, EntrySkipped, Event, SourceFailed
from meshlib.model.service import ServiceType, TrafficPolicy
from meshlib.model.slices import EndpointSlice, SliceEndpoint
from meshlib.model.target import TargetDefaults
from meshlib.model.update import DoesNotExist, Failure, Snapshot
from meshlib.pickers.base import Picker, PickerBuilder, PickerContext
from meshlib.pickers.round_robin import BUILDER
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime import place, process, registry
from meshlib.runtime.config import load_config
from meshlib.runtime.default import ready
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.observing import subscribe
from meshlib.testing.manual import ManualResolver, snapshot

TARGET = "k8s:///orders.shop:80"


@pytest.fixture
def resolver() -> ManualResolver:
    return ManualResolver("k8s")


@pytest.fixture
def mesh(resolver: ManualResolver) -> Iterator[Mesh]:
    with Mesh(config=config(), resolvers={"k8s": resolver}) as made:
        yield made


def config(**code: Any) -> Any:
    # the bound is for what never comes; a busy machine must not spend it on what does
    return load_config({"sync_timeout": 30, "picker": "round_robin", **code}, environ={})


def addresses(handle: TargetHandle, count: int = 4) -> set[str]:
    found = set()
    for _ in range(count):
        lease = handle.acquire(5)
        found.add(lease.endpoint.authority)
        lease.done()
    return found


def test_a_lease_counts_its_request_once(mesh: Mesh, resolver: ManualResolver) -> None:
    """In flight from the pick to done(); a second done() changes nothing; the sample is taken at responded()."""
    resolver.endpoints("shop/orders", ["10.0.0.1:8080"])
    handle = mesh.target(TARGET)
    lease = handle.acquire(5)
    assert lease.subchannel.inflight == 1
    lease.responded()
    lease.done()
    lease.done()
    assert (lease.subchannel.inflight, lease.subchannel.requests, lease.subchannel.failures) == (0, 1, 0)
    assert lease.subchannel.ewma >= 0


def test_equal_targets_share_one_handle(mesh: Mesh) -> None:
    """State is per (Mesh, target): two spellings of one target meet."""
    assert mesh.target(TARGET) is mesh.target("kubernetes:///orders.shop:80")
    assert mesh.target(TARGET) is not mesh.target(TARGET, authority="orders.example.com")


def test_nothing_starts_before_the_first_use(mesh: Mesh, resolver: ManualResolver) -> None:
    """A Mesh and its handles are free; the first acquire starts the watch."""
    handle = mesh.target(TARGET)
    assert not resolver.watched
    assert handle.try_acquire() is None
    resolver.endpoints("shop/orders", ["10.0.0.1:8080"])
    assert addresses(handle) == {"10.0.0.1:8080"}
    assert len(resolver.watched) == 1


def test_a_thread_waits_for_the_first_knowledge(mesh: Mesh, resolver: ManualResolver) -> None:
    """acquire blocks until the set is known, and then picks from it."""
    handle = Mesh(config=config(sync_timeout=30), resolvers={"k8s": resolver}).target(TARGET)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(handle.acquire().endpoint.address))
    thread.start()
    resolver.endpoints("shop/orders", ["10.0.0.1:8080"])
    thread.join(10)
    assert found == ["10.0.0.1"]
    handle.mesh.close()


def test_three_loops_wait_for_the_first_knowledge(resolver: ManualResolver) -> None:
    """Coroutines of any loop wait without blocking their loop."""
    with Mesh(config=config(sync_timeout=30), resolvers={"k8s": resolver}) as mesh:
        handle = mesh.target(TARGET)
        found: list[str] = []
        waiting = threading.Barrier(4)

        async def call() -> None:
            task = asyncio.ensure_future(handle.acquire_async())
            await asyncio.sleep(0)
            waiting.wait(10)
            found.append((await task).endpoint.address)

        threads = [threading.Thread(target=lambda: asyncio.run(call())) for _ in range(3)]
        for thread in threads:
            thread.start()
        waiting.wait(10)
        resolver.endpoints("shop/orders", ["10.0.0.1:8080"])
        for thread in threads:
            thread.join(10)
        assert found == ["10.0.0.1"] * 3


def test_an_unknown_target_is_not_synced_after_the_bound(resolver: ManualResolver) -> None:
    """Silence from the control plane and a name that DNS does not know: a clear error, not a hang."""
    with Mesh(config=config(sync_timeout=0.2), resolvers={"k8s": resolver}) as mesh:
        with pytest.raises(NotSynced, match=r"orders\.shop"):
            mesh.target(TARGET).acquire()


def test_the_discovery_error_is_the_cause(mesh: Mesh, resolver: ManualResolver) -> None:
    """The error that a user sees leads to what to repair."""
    resolver.publish("shop/orders", Failure(OSError("connection refused"), hopeless=True))
    with pytest.raises(NotSynced, match="connection refused") as caught:
        mesh.target(TARGET).acquire(5)
    assert isinstance(caught.value.__cause__, OSError)


def test_an_empty_service_fails_at_once(mesh: Mesh, resolver: ManualResolver) -> None:
    """A set that is known to be empty is no reason to wait."""
    resolver.endpoints("shop/orders", [])
    with pytest.raises(NoEndpoints):
        mesh.target(TARGET).acquire(60)
    with pytest.raises(NoEndpoints):
        mesh.target(TARGET).try_acquire()


def test_exclusion_ends_with_none(mesh: Mesh, resolver: ManualResolver) -> None:
    """try_acquire with all endpoints excluded gives None, so that a client knows it has tried them all."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80", "10.0.0.2:80"])
    handle = mesh.target(TARGET)
    first = handle.acquire(5)
    second = handle.try_acquire(exclude={first.subchannel})
    assert second is not None
    assert second.subchannel is not first.subchannel
    assert handle.try_acquire(exclude={first.subchannel, second.subchannel}) is None


def test_pick_as_a_context(mesh: Mesh, resolver: ManualResolver) -> None:
    """with target.pick(): in flight inside, over outside, an exception counts as a failure."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    handle = mesh.target(TARGET)
    with handle.pick(timeout=5) as endpoint:
        subchannel = handle.balancer.subchannels[0]
        assert endpoint.authority == "10.0.0.1:80"
        assert subchannel.inflight == 1
    with pytest.raises(ValueError, match="app"), handle.pick():
        raise ValueError("app")
    assert (subchannel.inflight, subchannel.requests, subchannel.failures) == (0, 2, 1)


def test_cancellation_in_a_pick_is_not_the_endpoints_fault(mesh: Mesh, resolver: ManualResolver) -> None:
    """A cancelled block leaves no count and no failure."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    handle = mesh.target(TARGET)

    async def scenario() -> None:
        async def call() -> None:
            async with handle.pick(timeout=5):
                await asyncio.sleep(3600)

        task = asyncio.ensure_future(call())
        while not handle.balancer.subchannels or not handle.balancer.subchannels[0].inflight:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    subchannel = handle.balancer.subchannels[0]
    assert (subchannel.inflight, subchannel.failures) == (0, 0)


def test_a_blocking_pick_on_a_running_loop_is_refused(mesh: Mesh) -> None:
    """It would stop the loop; the error says what to write instead."""

    async def scenario() -> None:
        with pytest.raises(MeshError, match="async with"), mesh.target(TARGET).pick():
            pass

    asyncio.run(scenario())


def test_removed_endpoints_are_told_to_clients(mesh: Mesh, resolver: ManualResolver) -> None:
    """A bound method is called with each Subchannel that left; it is held weakly."""

    class Client:
        def __init__(self) -> None:
            self.gone: list[Subchannel] = []
            self.called = threading.Event()

        def on_removed(self, subchannel: Subchannel) -> None:
            self.gone.append(subchannel)
            self.called.set()

    resolver.endpoints("shop/orders", ["10.0.0.1:80", "10.0.0.2:80"])
    handle = mesh.target(TARGET)
    client, dropped = Client(), Client()
    handle.on_removed(client.on_removed)
    handle.on_removed(dropped.on_removed)
    reference = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert reference() is None
    addresses(handle)
    resolver.endpoints("shop/orders", ["10.0.0.2:80"])
    assert client.called.wait(10)
    assert [s.endpoint.address for s in client.gone] == ["10.0.0.1"]
    assert client.gone[0].removed


def test_bad_targets_and_settings_are_refused_where_they_are_written(resolver: ManualResolver) -> None:
    """A wrong target, scheme or picker setting fails when the handle is made, naming the place."""
    bad = config(picker="peak_ewma", picker_settings={"no_such_setting": 1})
    with (
        Mesh(config=bad, resolvers={"k8s": resolver}) as mesh,
        pytest.raises(ConfigError, match="no_such_setting"),
    ):
        mesh.target(TARGET)
    with Mesh(config=config(), resolvers={"k8s": resolver}) as mesh:
        with pytest.raises(TargetError):
            mesh.target("k8s:///orders.shop:http:80")
        with pytest.raises(ConfigError, match="nosuch"):
            mesh.target("nosuch:///orders")


@pytest.mark.parametrize("wrong", [{"picker": "round_robin"}, "meshlib.toml", True])
def test_settings_that_were_not_loaded_say_how(wrong: Any) -> None:
    """A dictionary or a file's name in place of a Config is the likely mistake; nothing is started for it."""
    with pytest.raises(
        ConfigError, match=rf"Mesh\(config=\): .*load_config\(\) makes, not {type(wrong).__name__}"
    ):
        Mesh(config=wrong)
    with Mesh(config=load_config({"picker": "round_robin"}, environ={})) as mesh:
        assert mesh.config.picker == "round_robin"


def test_a_bad_annotation_falls_back_to_the_default(mesh: Mesh, resolver: ManualResolver) -> None:
    """What a tenant writes cannot break a caller: it is skipped, and the set is used."""
    made = snapshot("shop/orders", ["10.0.0.1:80"], annotations=(("meshlib.dev/picker", "no_such_picker"),))
    resolver.publish("shop/orders", made)
    assert addresses(mesh.target(TARGET)) == {"10.0.0.1:80"}


def test_an_annotation_chooses_the_picker(resolver: ManualResolver) -> None:
    """Where nothing local is set, the Service's own choice counts."""
    made = snapshot("shop/orders", ["10.0.0.1:80"], annotations=(("meshlib.dev/picker", "random"),))
    resolver.publish("shop/orders", made)
    plain = load_config({"sync_timeout": 5}, environ={})
    with Mesh(config=plain, resolvers={"k8s": resolver}) as mesh:
        handle = mesh.target(TARGET)
        handle.acquire(5).done()
        assert "Random" in type(handle.state.picker).__name__


def test_session_affinity_keeps_to_one_endpoint(mesh: Mesh, resolver: ManualResolver) -> None:
    """sessionAffinity ClientIP: all picks of this process stay with one endpoint while it is there."""
    members = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
    resolver.endpoints("shop/orders", members, session_affinity_seconds=60)
    handle = mesh.target(TARGET)
    (chosen,) = addresses(handle, 20)
    rest = [member for member in members if member != chosen]
    changed = threading.Event()
    handle.on_removed(_Signal(changed).fire)
    signal = _Signal(changed)
    handle.on_removed(signal.fire)
    resolver.endpoints("shop/orders", rest, session_affinity_seconds=60)
    assert changed.wait(10)
    (after,) = addresses(handle, 20)
    assert after in rest


class _Signal:
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def fire(self, subchannel: Subchannel) -> None:
        self.event.set()


def test_after_close_every_use_says_so(resolver: ManualResolver) -> None:
    """close() ends the watch and the control thread; a late call gets MeshClosed."""
    mesh = Mesh(config=config(), resolvers={"k8s": resolver})
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    handle = mesh.target(TARGET)
    addresses(handle)
    mesh.close()
    mesh.close()
    with pytest.raises(MeshClosed):
        handle.try_acquire()
    with pytest.raises(MeshClosed):
        mesh.target(TARGET)


def test_the_last_mesh_stops_the_thread(resolver: ManualResolver) -> None:
    """Two Meshes share one control thread; it ends with the second."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    one = Mesh(config=config(), resolvers={"k8s": resolver})
    two = Mesh(config=config(), resolvers={"k8s": resolver})
    for mesh in (one, two):
        addresses(mesh.target(TARGET))
    one.close()
    assert control_threads() == 1
    two.close()
    assert control_threads() == 0


def test_a_dropped_mesh_takes_its_thread_with_it(resolver: ManualResolver) -> None:
    """No close(), no reference: after a collection the watch and the thread are gone."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    mesh: Mesh | None = Mesh(config=config(), resolvers={"k8s": resolver})
    assert mesh is not None
    addresses(mesh.target(TARGET))
    runtime = process._runtime
    assert runtime is not None
    thread = runtime.control._thread
    mesh = None
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_ready_waits_until_every_target_is_known(mesh: Mesh, resolver: ManualResolver) -> None:
    """A set or a known no both count; silence is NotSynced after the timeout."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    resolver.publish("shop/gone", DoesNotExist("no such Service"))
    asyncio.run(ready([TARGET, "k8s:///gone.shop:80"], mesh=mesh, timeout=5))
    with pytest.raises(NotSynced, match="silent"):
        asyncio.run(ready(["k8s:///silent.shop:80", "k8s:///later.shop:80"], mesh=mesh, timeout=0.3))
    assert "later" in {target.name for target in resolver.watched}


def test_status_shows_the_way_and_the_endpoints(mesh: Mesh, resolver: ManualResolver) -> None:
    """What people see: source, way, counters per endpoint."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    handle = mesh.target(TARGET)
    addresses(handle)
    status = handle.status()
    assert (status["way"], status["source"], status["stale"]) == ("pods", "manual", False)
    assert status["endpoints"][0]["requests"] == 4
    assert status["age"] >= 0


def control_threads() -> int:
    return sum(thread.name == "meshlib-control" for thread in threading.enumerate())


# -- whose URL is it (decision D1) ---------------------------------------------------------------------------------


def test_a_cluster_host_is_ours(mesh: Mesh, resolver: ManualResolver) -> None:
    """The full form of a Service name needs no confirmation."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    handle = mesh.for_url("http", "orders.shop.svc.cluster.local", None)
    assert handle is not None
    assert addresses(handle) == {"10.0.0.1:80"}
    assert mesh.for_url("http", "orders.shop.svc.cluster.local", None) is handle


def test_foreign_hosts_start_nothing(mesh: Mesh, resolver: ManualResolver) -> None:
    """An ordinary URL costs no look-up and no watch."""
    assert mesh.for_url("https", "example.com", None) is None
    assert mesh.for_url("http", "127.0.0.1", 8080) is None
    assert not resolver.watched


@pytest.mark.parametrize("port", [80, 81])
def test_a_port_that_the_service_does_not_list_takes_the_bare_path(
    mesh: Mesh, resolver: ManualResolver, port: int
) -> None:
    """Decision D2: transparent use leaves unknown ports to DNS and the kernel."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    url = ("http", "orders.shop.svc", port)
    asyncio.run(ready(f"orders.shop.svc:{port}", mesh=mesh))
    assert (mesh.for_url(*url) is None) is (port == 81)


def test_an_absent_service_takes_the_bare_path(mesh: Mesh, resolver: ManualResolver) -> None:
    """The bare client's own error is what the caller would have seen."""
    resolver.publish("shop/orders", DoesNotExist("no such Service"))
    asyncio.run(ready("orders.shop.svc:80", mesh=mesh))
    assert mesh.for_url("http", "orders.shop.svc", None) is None


@pytest.fixture
def pod_mesh(resolver: ManualResolver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    """A Mesh as in a pod of namespace shop; DNS there knows the Service orders only."""
    asked: list[str] = []

    async def addresses(host: str, context: object, timeout: float) -> tuple[str, ...]:
        asked.append(host)
        return ("10.96.0.10",) if host == "orders.shop.svc.cluster.local" else ()

    monkeypatch.setattr(lookup, "addresses", addresses)
    defaults = TargetDefaults(
        namespace="shop",
        search=("shop.svc.cluster.local", "svc.cluster.local", "cluster.local"),
        ndots=5,
    )
    monkeypatch.setattr("meshlib.runtime.mesh.target_defaults", lambda config: defaults)
    with Mesh(config=config(sync_timeout=30), resolvers={"k8s": resolver}) as mesh:
        mesh.asked = asked  # type: ignore[attr-defined]
        yield mesh


def eventually(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not become true")


def test_a_short_name_is_ours_once_its_service_is_known(pod_mesh: Mesh, resolver: ManualResolver) -> None:
    """The bare path until DNS and then discovery know it; nobody waits."""
    assert pod_mesh.for_url("http", "orders", None) is None
    eventually(lambda: resolver.watched)
    assert pod_mesh.for_url("http", "orders", None) is None
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    eventually(lambda: pod_mesh.for_url("http", "orders", None))
    handle = pod_mesh.for_url("http", "orders", None)
    assert handle is not None
    assert addresses(handle) == {"10.0.0.1:80"}


def test_a_foreign_short_name_is_asked_of_dns_once_and_of_no_api(
    pod_mesh: Mesh, resolver: ManualResolver
) -> None:
    """example.com under ndots:5: the look-ups that the pod's resolver makes too, cached, and no watch."""
    asked = pod_mesh.asked  # type: ignore[attr-defined]
    assert pod_mesh.for_url("https", "example.com", None) is None
    eventually(lambda: len(asked) == 2)
    eventually(lambda: not pod_mesh._urls._entries["https", "example.com", None].asking)
    assert pod_mesh.for_url("https", "example.com", None) is None
    assert asked == ["example.com.shop.svc.cluster.local", "example.com.svc.cluster.local"]
    assert not resolver.watched


@pytest.mark.parametrize("error", [OSError(24, "out of files"), RuntimeError("no more threads")])
def test_a_control_thread_that_cannot_be_started_is_tried_again(
    pod_mesh: Mesh, resolver: ManualResolver, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Hosts take the bare path until then, which may need less; a target says why."""

    def fails(crashed: object) -> Any:
        raise error

    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(process, "ControlThread", fails)
        assert pod_mesh.for_url("http", "orders.shop.svc", None) is None
        assert pod_mesh.for_url("http", "orders", None) is None
        with pytest.raises(NotSynced, match=str(error.args[-1])) as caught:
            pod_mesh.target(TARGET).acquire(5)
        assert caught.value.__cause__ is error
        pod_mesh.strict = True
        with pytest.raises(NotSynced):
            pod_mesh.for_url("http", "orders.shop.svc", None)
        pod_mesh.strict = False
    for host in ("orders.shop.svc", "orders"):
        eventually(lambda host=host: pod_mesh.for_url("http", host, None))  # type: ignore[misc]
    assert addresses(pod_mesh.target(TARGET)) == {"10.0.0.1:80"}


def test_a_headless_service_by_host_takes_the_port_verbatim(mesh: Mesh, resolver: ManualResolver) -> None:
    """Decision D2: as DNS does today."""
    resolver.endpoints("shop/orders", ["10.0.0.1:9090"], type=ServiceType.HEADLESS)
    handle = mesh.for_url("http", "orders.shop.svc", 9090)
    assert handle is not None
    assert addresses(handle) == {"10.0.0.1:9090"}


def test_a_static_list_of_both_families_is_used_whole() -> None:
    """What was written by hand counts as written, whatever routes this host has."""
    with Mesh(config=config()) as mesh:
        handle = mesh.target("static:///10.0.0.1:80,[::1]:81")
        assert addresses(handle) == {"10.0.0.1:80", "[::1]:81"}


def test_one_resolver_serves_all_schemes_of_a_builder() -> None:
    """``dns`` and ``dns+srv`` share their settings and their look-ups."""
    both = ManualResolver("dns", "dns+srv")
    both.endpoints("orders.example", ["10.0.0.1:80"])
    both.endpoints("_http._tcp.orders.example", ["10.0.0.2:80"], port=80)
    with Mesh(config=config(), resolvers={"dns": both, "dns+srv": both}) as mesh:
        assert addresses(mesh.target("dns:///orders.example:80")) == {"10.0.0.1:80"}
        assert addresses(mesh.target("dns+srv:///_http._tcp.orders.example")) == {"10.0.0.2:80"}
        assert len(process._runtime._resolvers) == 1  # type: ignore[union-attr]


def test_an_annotation_gives_the_hash_key_live(resolver: ManualResolver) -> None:
    """The Service's own hash key counts while nothing local says otherwise, and follows its edits."""
    resolver.publish(
        "shop/orders",
        snapshot("shop/orders", ["10.0.0.1:80"], annotations=(("meshlib.dev/hash-key", "header:x-user"),)),
    )
    plain = load_config({"sync_timeout": 5}, environ={})
    with Mesh(config=plain, resolvers={"k8s": resolver}) as mesh:
        handle = mesh.target(TARGET)
        assert handle.hash_key is None
        handle.acquire(5).done()
        assert str(handle.hash_key) == "header:x-user"
        resolver.publish(
            "shop/orders",
            snapshot("shop/orders", ["10.0.0.1:80"], annotations=(("meshlib.dev/hash-key", "client"),)),
        )
        eventually(lambda: str(handle.hash_key) == "client")
    local = load_config({"sync_timeout": 5, "hash_key": "header:x-local"}, environ={})
    with Mesh(config=local, resolvers={"k8s": resolver}) as mesh:
        handle = mesh.target(TARGET)
        handle.acquire(5).done()
        assert str(handle.hash_key) == "header:x-local"


def test_ready_misses_no_news(mesh: Mesh, resolver: ManualResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discovery speaks just after ready() looked: it must not wait for the next news, which may never come."""
    handle = mesh.target(TARGET)
    looks: list[bool] = []
    real = TargetHandle.synced.fget
    assert real is not None

    def synced(self: TargetHandle) -> bool:
        looks.append(real(self))
        if len(looks) == 1:
            resolver.endpoints("shop/orders", ["10.0.0.1:80"])
            eventually(lambda: self.state.settled)
        return looks[-1]

    eventually(lambda: (handle.try_start(), resolver.watched)[1])
    monkeypatch.setattr(TargetHandle, "synced", property(synced))
    asyncio.run(asyncio.wait_for(ready(TARGET, mesh=mesh, timeout=600), 20))
    assert looks == [False, True]


def test_a_dropped_mesh_that_only_asked_for_short_names_ends_too(
    resolver: ManualResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no watch to close, but the thread is there for it all the same."""

    async def addresses(host: str, context: object, timeout: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(lookup, "addresses", addresses)
    mesh: Mesh | None = Mesh(config=config(), resolvers={"k8s": resolver})
    assert mesh is not None
    told = threading.Event()
    mesh.find_first((), lambda found: told.set())
    assert told.wait(10)
    runtime = process._runtime
    assert runtime is not None
    thread = runtime.control._thread
    mesh = None
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_mesh_closed_while_it_enters_leaves_no_thread(
    resolver: ManualResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close() came between the check and the registration: the thread that was started for it ends again."""
    mesh = Mesh(config=config(), resolvers={"k8s": resolver})
    enter = process.enter

    def late(user: Mesh) -> process.ProcessRuntime:
        mesh.close()
        return enter(user)

    monkeypatch.setattr(process, "enter", late)
    with pytest.raises(MeshClosed):
        mesh.find_first((), lambda found: None)
    assert control_threads() == 0


def test_an_answer_for_a_short_name_of_a_closed_mesh_is_dropped(pod_mesh: Mesh) -> None:
    """DNS answers after close(), while another Mesh keeps the thread: no task may end by an exception for it."""
    assert pod_mesh.for_url("http", "orders", None) is None
    entry = pod_mesh._urls._entries["http", "orders", None]
    found = entry.targets[0]
    pod_mesh.close()
    entry.handle = None  # the answer that this test gives late may have come in time as well
    pod_mesh._urls._answered(entry, found)
    assert entry.handle is None


def test_targets_started_at_once_share_what_is_learned_of_our_place(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One Place for a Mesh: what one target's slices tell about our node holds for the others."""
    made: list[int] = []
    second = threading.Event()

    def own_addresses(environ: object) -> tuple[str, ...]:
        made.append(1)
        second.wait(0.2)
        return ("10.0.0.9",)

    monkeypatch.setattr(place, "own_addresses", own_addresses)
    threads = [
        threading.Thread(target=mesh.target(f"k8s:///{name}.shop:80").try_start) for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1


class BrokenBuilder:
    """A plugin's picker that cannot cope with a set."""

    name = "broken"
    contract = BUILDER.contract

    def parse_config(self, settings: Mapping[str, object], where: str) -> object:
        return None

    def build(self, subchannels: Sequence[Subchannel], config: object, context: PickerContext) -> Picker:
        raise ZeroDivisionError("a plugin's mistake")


def test_a_picker_that_cannot_be_built_does_not_stop_the_news(
    resolver: ManualResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default takes its place, and it is said: one broken plugin must not end a resolver that serves others."""
    known = registry.picker_builder

    def builders(name: str) -> PickerBuilder:
        return BrokenBuilder() if name == "round_robin" else known(name)

    monkeypatch.setattr("meshlib.runtime.factory.picker_builder", builders)
    seen: list[Event] = []
    unsubscribe = subscribe(seen.append)
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    with Mesh(config=config(), resolvers={"k8s": resolver}) as mesh:
        handle = mesh.target(TARGET)
        assert addresses(handle) == {"10.0.0.1:80"}
        resolver.endpoints("shop/orders", ["10.0.0.2:80"])
        eventually(lambda: addresses(handle) == {"10.0.0.2:80"})
    unsubscribe()
    told = [e for e in seen if isinstance(e, EntrySkipped)]
    assert len(told) == 1
    assert "a plugin's mistake" in told[0].reason


def test_a_plain_pick_knows_the_client_as_its_key(resolver: ManualResolver) -> None:
    """``hash_key = "client"`` holds for ``with target.pick()`` too: one process, one endpoint."""
    resolver.endpoints("shop/orders", [f"10.0.0.{n}:80" for n in range(1, 21)])
    settings = config(picker="maglev", hash_key="client", sync_timeout=5)
    with Mesh(config=settings, resolvers={"k8s": resolver}) as mesh:
        seen = set()
        for _ in range(30):
            with mesh.target(TARGET).pick() as endpoint:
                seen.add(endpoint.authority)
        assert len(seen) == 1


def test_a_request_carried_over_a_fork_can_end(mesh: Mesh, resolver: ManualResolver) -> None:
    """Another thread held an endpoint's lock at the moment of the fork: the child must not wait for it for ever."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    handle = mesh.target(TARGET)
    lease = handle.acquire(5)
    lease.subchannel.lock.__enter__()  # that other thread, which the child does not have
    handle.after_fork()
    ending = threading.Thread(target=lease.done, daemon=True)
    ending.start()
    ending.join(10)
    assert not ending.is_alive()


def test_detecting_a_mesh_does_not_hold_up_the_first_calls(
    resolver: ManualResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that accepts and never answers, helper threads that are all stuck: targets start all the same."""
    stuck = threading.Event()

    def sidecar(environ: object) -> str:
        stuck.wait(60)
        return ""

    monkeypatch.setattr(place, "sidecar", sidecar)
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    with Mesh(config=config(sync_timeout=20), resolvers={"k8s": resolver}) as mesh:
        try:
            assert addresses(mesh.target(TARGET)) == {"10.0.0.1:80"}
            assert addresses(mesh.target("k8s:///orders.shop:80", authority="another")) == {"10.0.0.1:80"}
        finally:
            stuck.set()


def test_a_client_that_fails_to_let_go_disturbs_nobody(mesh: Mesh, resolver: ManualResolver) -> None:
    """Closing a connection raised: the other clients are told all the same, news keeps coming, and it is said."""

    class Broken:
        def gone(self, subchannel: Subchannel) -> None:
            raise OSError("closing failed")

    class Sound:
        def __init__(self) -> None:
            self.told: list[str] = []

        def gone(self, subchannel: Subchannel) -> None:
            self.told.append(subchannel.endpoint.authority)

    broken, sound = Broken(), Sound()
    seen: list[Event] = []
    unsubscribe = subscribe(seen.append)
    resolver.endpoints("shop/orders", ["10.0.0.1:80", "10.0.0.2:80"])
    handle = mesh.target(TARGET)
    handle.on_removed(broken.gone)
    handle.on_removed(sound.gone)
    assert addresses(handle) == {"10.0.0.1:80", "10.0.0.2:80"}
    resolver.endpoints("shop/orders", ["10.0.0.3:80"])
    eventually(lambda: len(sound.told) == 2)
    eventually(lambda: any(isinstance(e, EndpointsChanged) and e.total == 1 for e in seen))
    unsubscribe()
    assert sum(isinstance(e, SourceFailed) and "closing failed" in str(e.error) for e in seen) == 2


def test_our_place_learned_elsewhere_ends_an_error_of_strict_too(
    resolver: ManualResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Local policy on an unknown node is an error under ``strict``; another Service's slices then tell the node."""
    monkeypatch.setattr(place, "own_addresses", lambda environ: ("10.0.0.9",))

    def on_node(service: str, address: str) -> Snapshot:
        made = snapshot(
            service, [address], internal_traffic_policy=TrafficPolicy.LOCAL, cluster_ips=("10.96.0.10",)
        )
        (slice_,) = made.slices
        member = SliceEndpoint(address=slice_.endpoints[0].address, uid="uid", node="n1")
        found = EndpointSlice(
            namespace="shop",
            name=slice_.name,
            service=slice_.service,
            family=4,
            ports=slice_.ports,
            endpoints=(member,),
        )
        return replace(made, slices=(found,))

    resolver.publish("shop/orders", on_node("shop/orders", "10.0.0.1:80"))
    with Mesh(config=config(sync_timeout=20), strict=True, resolvers={"k8s": resolver}) as mesh:
        handle = mesh.target(TARGET)
        with pytest.raises(NotSynced, match="our own place is unknown"):
            handle.acquire(20)
        resolver.publish("shop/mine", on_node("shop/mine", "10.0.0.9:80"))
        mesh.target("k8s:///mine.shop:80").acquire(20).done()
        eventually(lambda: handle.state.picker)
        assert addresses(handle) == {"10.0.0.1:80"}


def test_a_seed_keeps_its_age(mesh: Mesh, resolver: ManualResolver) -> None:
    """What a forked child starts from is as old as it was in the parent."""
    resolver.endpoints("shop/orders", ["10.0.0.1:80"])
    handle = mesh.target(TARGET)
    handle.acquire(5).done()
    known_since = handle.balancer.updated_at
    resolver._last.clear()
    handle.after_fork()
    assert addresses(handle) == {"10.0.0.1:80"}
    assert handle.balancer.updated_at == known_since
