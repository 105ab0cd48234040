"""Metrics: kube-proxy's names and ours, and what they say after real steps of an engine."""

from __future__ import annotations

import errno

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshlib.agent.backends.base import Probe
from meshlib.agent.compile.compiler import DesiredChange
from meshlib.agent.desired import Action, Frontend, Route
from meshlib.agent.engine.ledger import Ledger
from meshlib.agent.engine.leftovers import Departed
from meshlib.agent.engine.node import Step
from meshlib.agent.engine.programmer import Programmer
from meshlib.agent.engine.sweep import Swept
from meshlib.agent.flows.forgetter import Forgotten
from meshlib.agent.modes import Chosen
from meshlib.agent.objects import ObjectKey
from meshlib.agent.ops.metrics import Metrics
from meshlib.agent.status import Status, status_of
from tests.unit.agent.fake_kernel import PLACE, FakeKernel, frontend
from tests.unit.agent.test_sweep import World, facts

#: What kube-proxy exposes and dashboards use, as far as it has a meaning here.
PARITY = {
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "kubeproxy_sync_full_proxy_rules_duration_seconds",
    "kubeproxy_sync_partial_proxy_rules_duration_seconds",
    "kubeproxy_network_programming_duration_seconds",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_endpoint_changes",
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "kubeproxy_sync_proxy_rules_service_changes",
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    "kubeproxy_sync_proxy_rules_nftables_sync_failures",
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "kubeproxy_proxy_healthz",
    "kubeproxy_proxy_livez",
    "kubeproxy_conntrack_reconciler_deleted_entries",
    "kubeproxy_conntrack_reconciler_sync_duration_seconds",
}


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a page by its name and labels, as Prometheus would read it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.page().decode())
        for sample in family.samples
    }


def make(status: Status | None = None, mode: str = "nftables") -> Metrics:
    chosen = Chosen(mode, {}, {"ipvs": Probe(False, "no module", ()), mode: Probe(True, "there")})
    return Metrics(chosen, lambda: status or Status(), lambda: 5000.0)


def test_names() -> None:
    """All of kube-proxy's names are there, and the page is what Prometheus reads."""
    families = {family.name for family in text_string_to_metric_families(make().page().decode())}
    assert families >= PARITY, PARITY - families


@pytest.mark.parametrize(
    ("mode", "name"),
    [("nftables", "nftables_sync_failures"), ("iptables", "iptables_restore_failures"), ("ipvs", "")],
)
def test_names_of_a_mode(mode: str, name: str) -> None:
    """Failed writes have the name that kube-proxy gives them in that mode, and no other mode's."""
    page = make(mode=mode).page().decode()
    found = {each for each in ("nftables_sync_failures", "iptables_restore_failures") if each in page}
    assert found == ({name} if name else set())


def test_a_life() -> None:
    """An engine's steps: writes, latencies, objects, drift, and what was forgotten."""
    world = World()
    metrics = make(mode="fake")
    world.engine._on_change = metrics.change
    world.engine._on_step = metrics.step
    world.tell(facts("10.1.0.1"))
    found = samples(make(status_of(world.engine), "fake"))
    four = ("ip_family", "IPv4")
    assert found["meshlib_agent_objects", (four, ("kind", "service"), ("state", "wanted"))] == 1
    assert found["meshlib_agent_objects", (four, ("kind", "service"), ("state", "applied"))] == 1
    assert (
        found["meshlib_agent_generation", (four,)] == found["meshlib_agent_generation_applied", (four,)] == 1
    )
    assert found["meshlib_agent_mode_info", (("mode", "fake"), ("version", _version()))] == 1
    assert found["meshlib_agent_synced", ()] == 1
    counted = samples(metrics)
    assert counted["kubeproxy_sync_proxy_rules_duration_seconds_count", (four,)] == 1
    assert counted["kubeproxy_conntrack_reconciler_deleted_entries_total", (four,)] == 1
    assert counted["meshlib_agent_drift_total", (four, ("what", "missing"))] == 0
    assert counted["kubeproxy_sync_proxy_rules_last_timestamp_seconds", (four,)] == 5000.0
    world.engine.pause(True)
    world.tell(facts("10.1.0.2"))
    assert samples(metrics)["kubeproxy_sync_proxy_rules_endpoint_changes_pending", ()] == 1
    world.engine.pause(False)
    world.engine.step()
    assert samples(metrics)["kubeproxy_sync_proxy_rules_endpoint_changes_pending", ()] == 0
    assert samples(metrics)["kubeproxy_sync_proxy_rules_endpoint_changes_total", (four,)] == 1
    # Somebody removes an object: the next audit finds and mends it.
    gone = next(key for key in world.kernel.state if key.kind == "destination")
    del world.kernel.state[gone]
    world.now += 60.0
    world.engine.step()
    counted = samples(metrics)
    assert counted["meshlib_agent_drift_total", (four, ("what", "missing"))] == 1
    assert gone in world.kernel.state


def test_refusals_have_their_errno() -> None:
    """Operations that the kernel refused are counted by name; the last success does not move."""
    kernel = FakeKernel(fault=lambda operation: errno.ENOMEM if operation.key.kind == "service" else 0)
    programmer = Programmer(kernel, PLACE, Ledger(), lambda lines: None)
    programmer.change({(f := frontend("10.96.0.1", 80)).key: f}, 1, 0.0)
    metrics = make()
    metrics.step(Step(4, programmer.write(0.0), 0.25))
    found = samples(metrics)
    four = ("ip_family", "IPv4")
    assert found["meshlib_agent_kernel_errors_total", (("errno", "ENOMEM"), four)] == 1
    assert found["kubeproxy_sync_proxy_rules_nftables_sync_failures_total", (four,)] == 1
    assert ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", (four,)) not in found
    metrics.departed(Departed("ipvs", 4, 7))
    assert samples(metrics)["meshlib_agent_leftovers_removed_total", (("mode", "ipvs"),)] == 7


@pytest.mark.acceptance(38)
def test_frontends_that_drop() -> None:
    """A Local policy without local endpoints counts by policy, and no longer once there is one or it goes."""
    metrics = make()
    plain = frontend("10.96.0.1", 80, "10.1.0.1")
    dropping = Frontend(plain.key, plain.kind, plain.owner, Route(Action.DROP))
    name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
    metrics.change(4, DesiredChange(frontends={plain.key: (None, dropping)}))
    assert samples(metrics)[name, (("traffic_policy", "internal"),)] == 1
    metrics.change(4, DesiredChange(frontends={plain.key: (dropping, plain)}))
    assert samples(metrics)[name, (("traffic_policy", "internal"),)] == 0
    metrics.change(4, DesiredChange(frontends={plain.key: (plain, dropping)}))
    metrics.change(4, DesiredChange(frontends={plain.key: (dropping, None)}))
    assert samples(metrics)[name, (("traffic_policy", "internal"),)] == 0


def test_latency_and_sweeps() -> None:
    """The time from the cause of a change is observed once per cause; a failed sweep is a failure, no write."""
    metrics = make()
    kernel = FakeKernel()
    programmer = Programmer(kernel, PLACE, Ledger(), lambda lines: None)
    metrics.step(Step(4, programmer.write(0.0), 0.25, (0.3, 2.0)))
    metrics.step(Step(4, programmer.write(0.0).__class__(), 0.0, swept=Swept(None, 0.1, "no")))
    metrics.step(Step(6, programmer.write(0.0), 0.1, swept=Swept(Forgotten(9, 4), 0.1)))
    found = samples(metrics)
    assert found["kubeproxy_network_programming_duration_seconds_count", (("ip_family", "IPv4"),)] == 2
    assert found["kubeproxy_network_programming_duration_seconds_sum", (("ip_family", "IPv4"),)] == 2.3
    assert found["meshlib_agent_sweep_failures_total", (("ip_family", "IPv4"),)] == 1
    assert found["kubeproxy_sync_proxy_rules_duration_seconds_count", (("ip_family", "IPv4"),)] == 1
    assert found["kubeproxy_conntrack_reconciler_deleted_entries_total", (("ip_family", "IPv6"),)] == 4
    metrics.probe("/healthz", 503)
    metrics.probe("/readyz", 200)
    assert samples(metrics)["kubeproxy_proxy_healthz_total", (("code", "503"),)] == 1
    assert ObjectKey("table", "t") in kernel.state


def _version() -> str:
    from meshlib import __version__

    return __version__
