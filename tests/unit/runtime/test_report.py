"""The report of a process: what it says of targets, endpoints and settings, and that looking changes nothing."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshlib.model.endpoint import Endpoint
from meshlib.pickers.subchannel import Subchannel
from meshlib.runtime import process
from meshlib.runtime.config import load_config
from meshlib.runtime.mesh import Mesh
from meshlib.runtime.report import LATENCY_MEANS, member_rows, report
from meshlib.runtime.report_form import ProcessReport, TargetReport

MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: orders-a, uid: a}, zone: eu-1}
- {addresses: [10.0.0.2], conditions: {ready: false}, targetRef: {kind: Pod, name: orders-b, uid: b}}
- {addresses: [10.0.0.3], conditions: {ready: true}, targetRef: {kind: Pod, name: orders-c, uid: c}}
"""


#: A busy machine may take its time: a first call must not give up on it.
CODE = {"status_socket": "off", "picker": "round_robin", "sync_timeout": 60.0}


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh(config=load_config(CODE, environ={})) as made:
        yield made


def target_of(mesh: Mesh, found: ProcessReport, text: str) -> TargetReport:
    index = next(at for at, each in enumerate(found.meshes) if settings(each)["picker"] == "round_robin")
    return next(each for each in found.targets if each.mesh == index and each.target == text)


def settings(each: Any) -> dict[str, Any]:
    return {value.key: value.value for value in each.configuration}


def test_a_target_with_its_endpoints(mesh: Mesh, tmp_path: Path) -> None:
    """Members come first with what they got, then who may not receive traffic and why."""
    (tmp_path / "shop.yaml").write_text(MANIFESTS)
    handle = mesh.target(f"file://{tmp_path}#shop/orders:http")
    for failed in (False, True, False):
        lease = handle.acquire()
        lease.responded(failed)
        lease.done(failed)
    held = handle.acquire()
    found = target_of(mesh, report(), str(handle.target))
    held.done()
    assert (found.started, found.way, found.reason, found.error, found.synced, found.stale) == (
        *(True, "pods", "", ""),
        *(True, False),
    )
    assert (found.members, found.listed, found.in_flight, found.requests, found.failures) == (2, 3, 1, 3, 1)
    assert (found.totals.in_flight, found.totals.requests, found.totals.failures) == (1, 3, 1)
    assert found.source.startswith("file")
    assert found.age is not None
    assert found.picker is not None
    assert (found.picker.name, found.picker.source) == ("round_robin", "code: picker")
    one, three, two = found.endpoints
    assert [one.address, three.address] == ["10.0.0.1", "10.0.0.3"]
    assert {one.state, three.state} == {"ready"}
    assert one.requests + three.requests == 3
    assert math.isclose(one.share + three.share, 1.0)
    assert (one.name, one.zone, one.port) == ("orders-a", "eu-1", 8080)
    assert (two.address, two.state, two.reason, two.name) == ("10.0.0.2", "out", "not ready", "orders-b")


def test_not_more_endpoints_than_asked_for(mesh: Mesh, tmp_path: Path) -> None:
    """What is left out is counted, entries without traffic included."""
    (tmp_path / "shop.yaml").write_text(MANIFESTS)
    handle = mesh.target(f"file://{tmp_path}#shop/orders:http")
    handle.acquire().done()
    found = target_of(mesh, report(endpoints=1), str(handle.target))
    assert ([each.address for each in found.endpoints], found.left_out) == (["10.0.0.1"], 2)


def test_an_error_is_what_calls_get(mesh: Mesh, tmp_path: Path) -> None:
    """A Service that is not there: the way is `error`, with the words that callers see."""
    (tmp_path / "shop.yaml").write_text(MANIFESTS)
    mesh.target(f"file://{tmp_path}#shop/orders:http").acquire().done()
    absent = mesh.target(f"file://{tmp_path}#shop/nobody:http")
    with pytest.raises(Exception, match="nobody") as caught:
        absent.acquire()
    found = target_of(mesh, report(), str(absent.target))
    assert (found.way, found.error, found.members) == ("error", str(caught.value), 0)
    assert found.synced


def test_looking_starts_nothing(mesh: Mesh) -> None:
    """A target that nobody used is listed as that, and is as unused afterwards."""
    used = mesh.target("static:///127.0.0.2:80")
    used.acquire().done()
    unused = mesh.target("static:///127.0.0.9:80")
    found = target_of(mesh, report(), str(unused.target))
    assert not found.started
    assert found.endpoints == ()
    assert unused.live is None


def test_without_any_use_there_is_no_runtime() -> None:
    """A Mesh that did nothing is in no report, and a report makes no thread."""
    before = {thread.name for thread in threading.enumerate()}
    mesh = Mesh(config=load_config(environ={}))
    mesh.target("static:///127.0.0.2:80")
    assert mesh not in process.users()
    report()
    assert {thread.name for thread in threading.enumerate()} <= before


def test_the_process(mesh: Mesh) -> None:
    """Who and what it is, since when, and every setting with its source."""
    mesh.target("static:///127.0.0.2:80").acquire().done()
    found = report()
    assert (found.pid, found.parent, found.uid) == (os.getpid(), os.getppid(), os.geteuid())
    assert found.versions["meshlib"]
    assert found.started is not None
    assert found.started <= found.at
    assert found.events["runtime_started"] >= 1
    mine = next(each for each in found.meshes if settings(each)["picker"] == "round_robin")
    sources = {value.key: value.source for value in mine.configuration}
    assert sources["picker"] == "code: picker"
    assert sources["zone"] == "default"


def test_the_json_form_survives_the_way_there_and_back(mesh: Mesh) -> None:
    """Everything in a report has a JSON form."""
    mesh.target("static:///127.0.0.2:80").acquire().done()
    text = msgspec.json.encode(report())
    assert msgspec.json.encode(msgspec.json.decode(text, type=ProcessReport)) == text


def test_a_resolver_that_cannot_describe_itself_spoils_nothing(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin may raise anything: the report says so, and has the rest."""
    handle = mesh.target("static:///127.0.0.2:80")
    handle.acquire().done()
    assert handle.live is not None

    def broken() -> Any:
        raise RuntimeError("no words")

    monkeypatch.setattr(handle.live.watch, "describe", broken)
    found = target_of(mesh, report(), str(handle.target))
    assert "no words" in found.details["problem"]
    assert found.members == 1


@pytest.mark.parametrize(
    ("age", "expected"), [(0.0, 0.2), (10.0, 0.2 / math.e), (LATENCY_MEANS + 0.1, None)], ids=str
)
def test_a_latency_is_what_is_expected_now(mesh: Mesh, age: float, expected: float | None) -> None:
    """The estimate fades as the picker sees it, and is nothing once it says nothing any more."""
    handle = mesh.target("static:///127.0.0.2:80")
    handle.acquire().done()
    subchannel = Subchannel(Endpoint(address="10.0.0.1", port=80), threading.Lock())
    subchannel.observe(100.0, 0.2)
    (row,) = member_rows(handle.balancer, (subchannel,), 0, 100.0 + age)
    assert row.latency == (None if expected is None else pytest.approx(expected))


def test_no_sample_no_latency(mesh: Mesh) -> None:
    """An endpoint that answered nothing yet has none."""
    handle = mesh.target("static:///127.0.0.2:80")
    handle.acquire().done()
    (row,) = member_rows(
        handle.balancer, (Subchannel(Endpoint(address="10.0.0.1", port=80), threading.Lock()),), 0, 5.0
    )
    assert (row.latency, row.share) == (None, 0.0)


def test_the_roll_out_of_a_target(tmp_path: Path) -> None:
    """Mode, share, who says so, and the requests by way; also where nothing was started for it."""
    one_text, other_text = (f"file://{tmp_path}#shop/{name}:http" for name in ("one", "other"))
    code = {**CODE, "mode": "off", "target": {other_text: {"mode": "on", "percent": 40}}}
    with Mesh(config=load_config(code, environ={})) as mesh:
        held, shared = mesh.target(one_text), mesh.target(other_text)
        assert held.rollout.way().value == "bare_off"
        one = target_of(mesh, report(), str(held.target))
        assert (one.started, one.rollout.mode, one.rollout.source) == (False, "off", "code: mode")
        assert one.rollout.requests == {"mesh": 0, "bare_off": 1, "bare_observe": 0, "bare_percent": 0}
        other = target_of(mesh, report(), str(shared.target))
        assert (other.rollout.mode, other.rollout.percent) == ("on", 40.0)


def test_a_target_that_is_held_back_is_told() -> None:
    """Mode off from the start: nothing was ever made for the target, and yet its requests are counted and shown."""
    with Mesh(config=load_config({**CODE, "mode": "off"}, environ={})) as mesh:
        for _ in range(3):
            assert mesh.for_url("http", "held.shop.svc", None) is None
        found = target_of(mesh, report(), "held.shop.svc:80")
        assert (found.started, found.rollout.mode, found.rollout.requests["bare_off"]) == (False, "off", 3)
        assert mesh.handles == ()
