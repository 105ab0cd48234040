"""Every registered policy through a whole Mesh: from the text of a target, or an annotation, to counted requests."""

from __future__ import annotations

import re
import threading
from collections import Counter
from importlib import metadata
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from meshlib.errors import ConfigError, NoEndpoints
from meshlib.pickers.base import ContractClass
from meshlib.pickers.builtin import BUILTIN
from meshlib.runtime.config import load_config
from meshlib.runtime.handle import TargetHandle
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.registry import PICKER_GROUP, picker_builder
from meshlib.testing.manual import ManualResolver, snapshot

NAMES = sorted({*BUILTIN, *(entry.name for entry in metadata.entry_points(group=PICKER_GROUP))})
HASHES = [name for name in NAMES if picker_builder(name).contract is ContractClass.HASH]
CASES = [(name, {}) for name in NAMES] + [(name, {"hash_balance_factor": 125}) for name in HASHES]
TARGET = "k8s:///orders.shop:80"


def mesh_with(policy: str, settings: dict[str, Any], **more: Any) -> Mesh:
    code = {"picker": policy, "picker_settings": settings, "sync_timeout": 20}
    return Mesh(config=load_config(code, environ={}), **more)


def spread(handle: TargetHandle, requests: int, keys: bool = True) -> Counter[str]:
    """Requests one after the other, with ever new keys; how many went where. No latency samples: the real clock's would
    make the shares of policies that heed them depend on this machine's load."""
    found: Counter[str] = Counter()
    for number in range(requests):
        lease = handle.acquire(20, hash_key=f"key-{number}" if keys else None)
        found[lease.endpoint.authority] += 1
        lease.done()
    return found


def static(*weights: int) -> str:
    return "static:///" + ",".join(
        f"10.0.{n // 250}.{n % 250 + 1}:80;weight={weight}" for n, weight in enumerate(weights)
    )


@pytest.mark.parametrize(("policy", "settings"), CASES)
@pytest.mark.parametrize("keys", [True, False])
def test_a_static_list_of_any_size(policy: str, settings: dict[str, Any], keys: bool) -> None:
    """One, two and many endpoints: each gets requests, the one of weight 0 none, and nothing stays in flight."""
    with mesh_with(policy, settings) as mesh:
        for weights in ((1,), (1, 1), (1, 1, 0), (1,) * 40):
            handle = mesh.target(static(*weights))
            found = spread(handle, 80 * len(weights), keys)
            assert len(found) == sum(1 for weight in weights if weight), weights
            assert all(s.inflight == 0 for s in handle.balancer.subchannels)
        nobody = mesh.target(static(0, 0))
        with pytest.raises(NoEndpoints, match="weight 0"):
            nobody.acquire(20, hash_key="key")


@pytest.mark.parametrize(("policy", "settings"), CASES)
def test_weights_of_a_static_list(policy: str, settings: dict[str, Any]) -> None:
    """A weight of three draws about three times the requests; uniform policies heed no weight but 0."""
    with mesh_with(policy, settings) as mesh:
        found = spread(mesh.target(static(1, 3, 0)), 4000)
    assert sum(found.values()) == 4000
    share = found["10.0.0.2:80"] / 4000
    if picker_builder(policy).contract is ContractClass.UNIFORM:
        assert 0.45 < share < 0.55
    else:
        assert 0.65 < share < 0.85
    assert "10.0.0.3:80" not in found


@pytest.mark.parametrize(("policy", "settings"), CASES)
def test_a_set_that_comes_and_goes(policy: str, settings: dict[str, Any]) -> None:
    """From nothing to one, two, three hundred and back to nothing, with requests in flight all along."""
    resolver = ManualResolver("k8s")
    resolver.endpoints("shop/orders", [])
    with mesh_with(policy, settings, resolvers={"k8s": resolver}) as mesh:
        handle = mesh.target(TARGET)
        with pytest.raises(NoEndpoints):
            handle.acquire(20)
        held = []
        for count in (1, 2, 300, 2, 1):
            wanted = {f"10.0.{n // 250}.{n % 250 + 1}:80" for n in range(count)}
            resolver.endpoints("shop/orders", sorted(wanted))
            until(handle, wanted)
            assert set(spread(handle, 20)) <= wanted
            held.append(handle.acquire(20, hash_key="held"))
        everybody = {lease.subchannel for lease in held}
        assert sum(subchannel.inflight for subchannel in everybody) == len(held)
        resolver.endpoints("shop/orders", [])
        until(handle, set())
        with pytest.raises(NoEndpoints):
            handle.acquire(20)
        for lease in held:
            lease.finished()
        assert all(subchannel.inflight == 0 for subchannel in everybody)


@pytest.mark.parametrize("policy", HASHES)
def test_a_bound_on_the_load_holds_through_a_mesh(policy: str) -> None:
    """One hot key, 40 requests at once over four endpoints at 125 %: nobody carries more than ceil(1.25 x 10)."""
    with mesh_with(policy, {"hash_balance_factor": 125}) as mesh:
        handle = mesh.target(static(1, 1, 1, 1))
        leases = [handle.acquire(20, hash_key="hot") for _ in range(40)]
        assert max(s.inflight for s in handle.balancer.subchannels) == 13
        for lease in leases:
            lease.done()


def test_the_table_of_the_manual_is_true() -> None:
    """docs/policies.md: every built-in policy has its row, and each takes the settings of its row and no others."""
    text = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()
    rows: dict[str, set[str]] = {}
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) == 6 and "`" in cells[1]:
            for name in re.findall(r"`(\w+)`", cells[1]):
                rows[name] = set(re.findall(r"`(\w+)`", cells[4]))
    assert rows.keys() == BUILTIN.keys()
    values = {
        "slow_start_window": 30,
        "min_ring_size": 2048,
        "max_ring_size": 4096,
        "table_size": 4099,
        "hash_balance_factor": 125,
    }
    assert set().union(*rows.values()) == values.keys()
    for name, allowed in rows.items():
        for setting, value in values.items():
            if setting in allowed:
                picker_builder(name).parse_config({setting: value}, "")
            else:
                with pytest.raises(ConfigError, match=setting):
                    picker_builder(name).parse_config({setting: value}, "")


def test_an_annotation_changes_the_policy_under_load() -> None:
    """Tenants edit the annotation while four threads send: no request is lost, every count returns to zero, and the
    policy that needs exact counts has them at the end."""
    resolver = ManualResolver("k8s")
    members = [f"10.0.0.{n}:80" for n in range(1, 9)]
    config = load_config({"sync_timeout": 20}, environ={})
    stop = threading.Event()
    errors: list[BaseException] = []
    sent = [0] * 4

    def publish(policy: str, settings: str = "{}") -> None:
        annotations = (("meshlib.dev/picker", policy), ("meshlib.dev/picker-settings", settings))
        resolver.publish("shop/orders", snapshot("shop/orders", members, annotations=annotations))

    def send(thread: int) -> None:
        try:
            while not stop.is_set():
                held = [handle.acquire(20, hash_key=f"{thread}-{n}") for n in range(3)]
                sent[thread] += len(held)
                for lease in held:
                    lease.finished()
        except BaseException as error:
            errors.append(error)

    with Mesh(config=config, resolvers={"k8s": resolver}) as mesh:
        publish("random")
        handle = mesh.target(TARGET)
        threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        policies = cycle([*((name, "{}") for name in BUILTIN), ("maglev", '{"hash_balance_factor": 150}')])
        for _ in range(24):
            before = handle.state
            publish(*next(policies))
            wait_for_other(handle, before)
        before = handle.state
        publish("random")
        wait_for_other(handle, before)
        before = handle.state
        publish("least_connections")
        wait_for_other(handle, before)
        stop.set()
        for thread in threads:
            thread.join(20)
        assert not errors
        assert sum(sent) == sum(s.requests for s in handle.balancer.subchannels)
        assert all(s.inflight == 0 for s in handle.balancer.subchannels)
        held = [handle.acquire(20) for _ in range(24)]
        assert {s.inflight for s in handle.balancer.subchannels} == {3}
        for lease in held:
            lease.done()


def until(handle: TargetHandle, wanted: set[str]) -> None:
    """What is published, not what the balancer is about to publish."""
    pause = threading.Event()
    for _ in range(4000):
        state = handle.state
        picker = state.picker
        if state.settled and {s.endpoint.authority for s in (picker.subchannels if picker else ())} == wanted:
            return
        pause.wait(0.005)
    raise AssertionError("the set did not come")


def wait_for_other(handle: TargetHandle, before: object) -> None:
    pause = threading.Event()
    for _ in range(4000):
        if handle.state is not before:
            return
        pause.wait(0.005)
    raise AssertionError("the state did not change")
