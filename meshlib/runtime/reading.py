"""Reading: all metrics of this process, put together from what its parts count anyway, when somebody asks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from meshlib import __version__
from meshlib.model.slices import EndpointSlice
from meshlib.observe import catalogue
from meshlib.observe.catalogue import Metric, Reading, target_label
from meshlib.policies.rollout import Mode
from meshlib.runtime import process
from meshlib.runtime.balancer import Balancer, Way
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.observing import TALLY
from meshlib.runtime.totals import BOOK, Sum, TargetTotals, open_connections

_Labels = tuple[str, ...]
_Found = defaultdict[Metric, dict[_Labels, float]]


def read(*, endpoints: bool = False) -> Reading:
    """Everything that the catalogue has a value for now; ``endpoints``: what is told per endpoint, too.

    From any thread. Costs a look at every endpoint (10,000: a few milliseconds, in which other threads run).
    """
    found: _Found = defaultdict(dict)
    found[catalogue.BUILD_INFO][(__version__,)] = 1
    found[catalogue.PROCESSES][()] = 1
    tally = TALLY.read()
    for metric, counts in tally.items():
        found[metric].update(counts)
    now = SYSTEM.now()
    for totals in BOOK.targets:
        _add_target(found, totals, now)
        if endpoints:
            _add_endpoints(found, totals)
    _add_rollouts(found)
    _add_connections(found, tally.get(catalogue.OPENED, {}))
    return found


def _add_target(found: _Found, totals: TargetTotals, now: float) -> None:
    label, balancers, total = totals.label, totals.balancers, totals.read(now)
    _begin_at_zero(found, totals)
    _add_requests(found, label, total)
    if not balancers:
        return  # every Mesh that used it was closed
    for way in Way:
        found[catalogue.TARGETS][label, way.value] = 0
    for balancer in balancers:
        found[catalogue.TARGETS][label, balancer.way.value] += 1
        _add_source(found, label, balancer, now)
    # One process, one view: a second Mesh with the same target sees the same endpoints.
    for state, count in max(
        (states_of(each) for each in balancers), key=lambda states: states["eligible"]
    ).items():
        found[catalogue.ENDPOINTS][label, state] = count
    found[catalogue.ENDPOINTS][label, "draining"] = total.draining
    if total.latency is not None:
        found[catalogue.ENDPOINT_LATENCY][(label,)] = total.latency


def _begin_at_zero(found: _Found, totals: TargetTotals) -> None:
    """What may happen to a target is there before it does: an increase from nothing is none to Prometheus."""
    label = totals.label
    zeros: list[tuple[Metric, _Labels]] = [
        (catalogue.PICKS, (label, "failed")),
        (catalogue.PICKS_QUEUED, (label,)),
        *((catalogue.ENDPOINT_UPDATES, (label, op)) for op in ("added", "removed")),
        *((catalogue.FALLBACKS, (label, way.value)) for way in (Way.SERVICE, Way.DNS)),
    ]
    for resolver in {resolver_of(each) for each in totals.balancers}:
        zeros.append((catalogue.SKIPPED, (resolver,)))
        if resolver == "k8s":
            zeros += [(catalogue.WATCH_RESTARTS, (resolver, kind)) for kind in ("reopened", "relisted")]
    for metric, labels in zeros:
        found[metric].setdefault(labels, 0)


def _add_requests(found: _Found, label: str, total: Sum) -> None:
    picks = found[catalogue.PICKS]
    picks[label, "picked"] = total.picks
    found[catalogue.REQUESTS][label, "mesh"] = total.picks
    attempts = found[catalogue.ATTEMPTS]
    attempts[label, "ok"] = total.requests - total.failures
    attempts[label, "failed"] = total.failures
    found[catalogue.INFLIGHT][(label,)] = total.inflight


def _add_source(found: _Found, label: str, balancer: Balancer, now: float) -> None:
    key = (label, resolver_of(balancer))
    failing, ages = found[catalogue.RESOLVER_FAILING], found[catalogue.DATA_AGE]
    failing[key] = failing.get(key, 0) + (balancer.last_error is not None)
    if balancer.snapshot is not None:
        ages[key] = max(ages.get(key, 0.0), now - balancer.updated_at)


def _add_endpoints(found: _Found, totals: TargetTotals) -> None:
    requests, inflight = found[catalogue.ENDPOINT_REQUESTS], found[catalogue.ENDPOINT_INFLIGHT]
    for one in totals.each():
        ok, failed = (totals.label, one.authority, "ok"), (totals.label, one.authority, "failed")
        requests[ok] = requests.get(ok, 0) + one.requests - one.failures
        requests[failed] = requests.get(failed, 0) + one.failures
        inflight[ok[:2]] = inflight.get(ok[:2], 0) + one.inflight


def _add_rollouts(found: _Found) -> None:
    counted: Counter[tuple[Metric, _Labels]] = Counter()
    for mesh in process.users():
        for target in mesh.rollout.targets:
            label, counts, decision = target_label(str(target.target)), target.counts(), target.decision
            for mode in Mode:
                # One process, one voice, however many Meshes it has.
                known = found[catalogue.MODE].get((label, mode.value), 0)
                found[catalogue.MODE][label, mode.value] = max(known, float(mode is decision.mode))
            if decision.mode is Mode.ON:
                found[catalogue.MODE_PERCENT][(label,)] = decision.percent
            for way in ("bare_off", "bare_observe", "bare_percent"):
                counted[catalogue.REQUESTS, (label, way)] += getattr(counts, way)
            for outcome, count in {"picked": counts.observed_picks, **counts.observed_refusals}.items():
                counted[catalogue.OBSERVED, (label, outcome)] += count
            for where in ("endpoint", "service", "elsewhere"):
                counted[catalogue.OBSERVED_REACHED, (label, where)] += counts.observed_reached.get(where, 0)
    for (metric, labels), count in counted.items():
        found[metric][labels] = BOOK.never_less(metric, labels, count)


def _add_connections(found: _Found, opened: Mapping[_Labels, int]) -> None:
    for protocol, count in open_connections().items():
        begun = opened.get((protocol,), 0)
        found[catalogue.CONNECTIONS][(protocol,)] = count
        found[catalogue.OPENED][(protocol,)] = begun
        found[catalogue.CLOSED][(protocol,)] = BOOK.never_less(catalogue.CLOSED, (protocol,), begun - count)
        found[catalogue.REFUSED].setdefault((protocol,), 0)


def resolver_of(balancer: Balancer) -> str:
    """The kind of source that a target has: its scheme, and the DNS ones as one."""
    scheme = balancer.target.scheme
    return "dns" if scheme == "dns+srv" else scheme


def states_of(balancer: Balancer) -> dict[str, int]:
    """Endpoints by state, as discovery lists them for the target's Service."""
    snapshot, eligible = balancer.snapshot, len(balancer.set.endpoints)
    listed: Counter[str] = Counter()
    for slice_ in snapshot.slices if snapshot is not None else ():
        listed += _conditions(slice_)
    return {
        "eligible": eligible if snapshot is not None else 0,
        "unready": listed["unready"],
        "terminating": listed["terminating"],
        "elsewhere": max(0, listed["ready"] - eligible),
    }


def _conditions(slice_: EndpointSlice) -> Counter[str]:
    """A slice's endpoints by condition. Slices do not change, but a hundred entries are soon looked through."""
    return Counter(
        "ready" if one.ready else "terminating" if one.terminating else "unready" for one in slice_.endpoints
    )
