"""Metrics in Prometheus' format: kube-proxy's names, so that its dashboards and alerts go on working, and ours.

What happens is counted when it does (from the worker's thread); what is, is read from the agent's status when somebody
asks. Nothing is kept per Service or endpoint: the number of series does not grow with the cluster.
"""

from __future__ import annotations

import errno
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from meshlib import __version__
from meshlib.agent.compile.compiler import DesiredChange
from meshlib.agent.desired import Action, Frontend, FrontendKey, FrontendKind
from meshlib.agent.engine.leftovers import Departed
from meshlib.agent.engine.node import Step
from meshlib.agent.modes import Chosen
from meshlib.agent.objects import Failed
from meshlib.agent.status import FamilyStatus, Status

#: kube-proxy's buckets (exponential from 1 ms, 15 of them), with two below: we are often faster than its first.
_SYNC = (0.00025, 0.0005, *(0.001 * 2**n for n in range(15)))
#: kube-proxy's for the whole way from the cause of a change: 0.25 s steps to 1 s, then coarser up to 5 minutes.
_PROGRAMMING = (0.05, 0.1, 0.25, 0.5, 0.75, *range(1, 60), *range(60, 121, 5), *range(150, 301, 30))
_FAMILY = ("ip_family",)
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One agent's. ``page`` may be called from any thread, the methods that count from the worker's."""

    content_type = _TEXT_FORMAT

    def __init__(self, chosen: Chosen, status: Callable[[], Status], wall: Callable[[], float]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # kube-proxy has no such series, and they double the page
        self._wall = wall
        self._registry = registry = CollectorRegistry()
        self._dropping: dict[tuple[int, FrontendKey], str] = {}
        self._drops: Count[str] = Count()  # of the above, by policy; read while the worker writes
        self._pending: dict[int, Count[str]] = {}
        self._audited: set[str] = set()

        def histogram(name: str, text: str, buckets: Iterable[float] = _SYNC) -> Histogram:
            return Histogram(name, text, _FAMILY, buckets=tuple(buckets), registry=registry)

        def counter(name: str, text: str, labels: Iterable[str] = _FAMILY) -> Counter:
            return Counter(name, text, tuple(labels), registry=registry)

        def gauge(name: str, text: str, labels: Iterable[str] = _FAMILY) -> Gauge:
            return Gauge(name, text, tuple(labels), registry=registry)

        sync = "kubeproxy_sync_"
        self._sync = histogram(f"{sync}proxy_rules_duration_seconds", "Seconds of a write to the kernel.")
        self._full = histogram(
            f"{sync}full_proxy_rules_duration_seconds", "Seconds of a write that read the kernel first."
        )
        self._partial = histogram(
            f"{sync}partial_proxy_rules_duration_seconds", "Seconds of a write of differences alone."
        )
        self._programming = histogram(
            "kubeproxy_network_programming_duration_seconds",
            "Seconds from the cause of a change of endpoints until the kernel had it.",
            _PROGRAMMING,
        )
        self._last = gauge(f"{sync}proxy_rules_last_timestamp_seconds", "When the last write succeeded.")
        self._queued = gauge(
            f"{sync}proxy_rules_last_queued_timestamp_seconds", "When the last change came.", ()
        )
        self._changes = {
            what: counter(
                f"{sync}proxy_rules_{what}_changes", f"Changed frontends, by what changed: the {what}."
            )
            for what in ("endpoint", "service")
        }
        failures = {"nftables": "nftables_sync_failures", "iptables": "iptables_restore_failures"}
        self._sync_failures = (
            counter(f"{sync}proxy_rules_{failures[chosen.mode]}", "Writes that failed, wholly or in part.")
            if chosen.mode in failures
            else None
        )
        self._probes = {
            page: counter(f"kubeproxy_proxy_{page}", f"Answers of /{page}.", ("code",))
            for page in ("healthz", "livez")
        }
        self._forgotten = counter(
            "kubeproxy_conntrack_reconciler_deleted_entries", "Stale flows that were forgotten."
        )
        self._sweeps = histogram(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds", "Seconds of a look for stale flows."
        )
        own = "meshlib_agent_"
        self._operations = counter(
            f"{own}operations", "Kernel objects that were written, by what was done.", ("ip_family", "verb")
        )
        self._failures = counter(f"{own}sync_failures", "Writes that failed, wholly or in part.")
        self._refused = counter(
            f"{own}kernel_errors", "Operations that the kernel refused, by its errno.", ("ip_family", "errno")
        )
        self._drift = counter(
            f"{own}drift",
            "Objects that an audit found changed behind our back.",
            ("ip_family", "what"),
        )
        self._sweep_failures = counter(f"{own}sweep_failures", "Looks for stale flows that failed.")
        self._departed = counter(f"{own}leftovers_removed", "Objects of other modes that went.", ("mode",))
        registry.register(_State(chosen, status, self._drops, self._waiting))

    def page(self) -> bytes:
        """All of it, as text."""
        found: bytes = generate_latest(self._registry)
        return found

    def step(self, step: Step) -> None:
        """One write of one family."""
        family, written = f"IPv{step.family}", step.written
        if step.swept is not None:
            self._sweeps.labels(family).observe(step.swept.seconds)
            if step.swept.forgotten is not None:
                self._forgotten.labels(family).inc(step.swept.forgotten.deleted)
            else:
                self._sweep_failures.labels(family).inc()
        if step.seconds == 0.0 and not written.plan and written.error is None:
            return  # a repeated sweep, no write
        self._sync.labels(family).observe(step.seconds)
        (self._partial if written.drift is None else self._full).labels(family).observe(step.seconds)
        refused = {failure.operation.key for failure in written.failed}
        for verb, count in Count(each.verb.value for each in written.plan if each.key not in refused).items():
            self._operations.labels(family, verb).inc(count)
        self._count_failures(family, written.failed)
        if isinstance(written.error, OSError):
            self._refused.labels(family, _name(written.error.errno or 0)).inc()
        if written.drift is not None:
            for what in ("missing", "different", "surplus"):
                # The first look finds what an agent before us left; from then on it is somebody else's doing.
                found = len(getattr(written.drift, what)) if family in self._audited else 0
                self._drift.labels(family, what).inc(found)
            self._audited.add(family)
        for seconds in step.latencies:
            self._programming.labels(family).observe(seconds)
        if written.ok:
            self._last.labels(family).set(self._wall())
            self._pending[step.family] = Count()
        else:
            self._failures.labels(family).inc()
            if self._sync_failures is not None:
                self._sync_failures.labels(family).inc()

    def change(self, family: int, change: DesiredChange) -> None:
        """What will have to be written."""
        self._queued.set(self._wall())
        label, pending = f"IPv{family}", self._pending.setdefault(family, Count())
        for key, (old, new) in change.frontends.items():
            what = _what(old, new)
            self._changes[what].labels(label).inc()
            pending[what] += 1
            before = self._dropping.pop((family, key), None)
            if before is not None:
                self._drops[before] -= 1
            if new is not None and new.route.action is Action.DROP:
                self._dropping[family, key] = policy = _policy(new)
                self._drops[policy] += 1

    def probe(self, path: str, code: int) -> None:
        """A health page was asked for."""
        counter = self._probes.get(path.removeprefix("/"))
        if counter is not None:
            counter.labels(str(code)).inc()

    def departed(self, departed: Departed) -> None:
        """Something of another mode went."""
        self._departed.labels(departed.mode).inc(departed.removed)
        self._count_failures(f"IPv{departed.family}", departed.failed)

    def _waiting(self, what: str) -> int:
        return sum(pending[what] for pending in list(self._pending.values()))

    def _count_failures(self, family: str, failed: Iterable[Failed]) -> None:
        for number, count in Count(failure.errno for failure in failed).items():
            self._refused.labels(family, _name(number)).inc(count)


class _State(Collector):
    """What is, at the moment of asking."""

    def __init__(
        self,
        chosen: Chosen,
        status: Callable[[], Status],
        drops: Count[str],
        waiting: Callable[[str], int],
    ) -> None:
        self._chosen = chosen
        self._status = status
        self._drops = drops
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        mode = InfoMetricFamily(
            "meshlib_agent_mode", "The mode that programs this node, and the agent's version."
        )
        mode.add_metric([], {"mode": self._chosen.mode, "version": __version__})
        yield mode
        text = "Modes that were tried and do not work here."
        refused = InfoMetricFamily("meshlib_agent_mode_refused", text, labels=("mode",))
        for name, probe in self._chosen.probes.items():
            if name != self._chosen.mode:
                refused.add_metric([name], {"reason": probe.reason})
        yield refused
        for what in ("endpoint", "service"):
            yield GaugeMetricFamily(
                f"kubeproxy_sync_proxy_rules_{what}_changes_pending",
                "Changed frontends that are not in the kernel yet.",
                self._waiting(what),
            )
        dropping = GaugeMetricFamily(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Frontends that drop because a Local policy finds no endpoint on this node.",
            labels=("traffic_policy",),
        )
        for policy in ("internal", "external"):
            dropping.add_metric([policy], self._drops[policy])
        yield dropping
        yield from _flags(status)
        yield from _families(status)


def _flags(status: Status) -> Iterator[Metric]:
    for name, text, value in (
        ("synced", "1 once everything was in the kernel.", status.synced),
        ("paused", "1 while writing is paused.", status.paused),
        ("node_leaving", "1 while the node is being removed.", status.leaving),
    ):
        yield GaugeMetricFamily(f"meshlib_agent_{name}", text, float(value))


#: Name, what it is, and how a family's status says it.
_FIGURES: tuple[tuple[str, str, Callable[[FamilyStatus], float]], ...] = (
    ("frontends", "Addresses and ports that are served.", lambda each: each.frontends),
    ("objects_pending", "Kernel objects that wait to be written.", lambda each: each.pending),
    ("draining_endpoints", "Removed endpoints that keep connections.", lambda each: each.draining),
    ("foreign_objects", "Places that somebody else's object takes.", lambda each: len(each.foreign)),
    ("held_removals", "Removals that wait for a confirmation.", lambda each: each.held),
    ("generation", "How often the facts changed.", lambda each: each.generation),
    ("generation_applied", "The newest generation wholly in the kernel.", lambda each: each.in_kernel),
)


def _families(status: Status) -> Iterator[Metric]:
    for name, text, value in _FIGURES:
        metric = GaugeMetricFamily(f"meshlib_agent_{name}", text, labels=_FAMILY)
        for number, family in status.families.items():
            metric.add_metric([f"IPv{number}"], value(family))
        yield metric
    objects = GaugeMetricFamily(
        "meshlib_agent_objects", "Kernel objects by kind.", labels=("ip_family", "kind", "state")
    )
    for number, family in status.families.items():
        for state, counts in (("wanted", family.objects), ("applied", family.applied)):
            for kind, count in counts.items():
                objects.add_metric([f"IPv{number}", kind, state], count)
    yield objects


def _what(old: Frontend | None, new: Frontend | None) -> str:
    """Whether endpoints changed or the Service did."""
    if old is None or new is None or (old.route, old.inside) == (new.route, new.inside):
        return "service"
    return "endpoint"


def _policy(frontend: Frontend) -> str:
    return "internal" if frontend.kind is FrontendKind.CLUSTER_IP else "external"


def _name(number: int) -> str:
    """An errno by its name; 0: the operation was not tried."""
    return errno.errorcode.get(number, str(number)) if number else "not_tried"
