"""``make soak``: churn for ten minutes; memory, threads and descriptors must stay flat.

    python -m tests.soak                    ten minutes, 200 endpoints
    python -m tests.soak --seconds 60       less: with fewer pods, or connections are still being opened at the end

Exits with 1 when something grew, when an answer went to the wrong caller, when too many requests failed, or when
something was left behind at the end.
"""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import meshlib
from meshlib.runtime.mesh import Mesh
from tests.soak.cluster import SERVICES, Cluster
from tests.soak.gauges import MIB, Sample, Trend, sample, trends
from tests.soak.traffic import Tally, Traffic

SECONDS = 600.0
#: Of each Service.
PODS = 100
#: Seconds between two changes.
CHURN = 0.2
#: Samples of a run. Enough for medians of thirds, few enough not to be what is measured.
SAMPLES = 200
#: Pods crash, reset and answer 503 all the time, and what was sent to them is not sent twice: so many requests may
#: fail. Without balancing away from them it would be several times as many.
FAILED_SHARE = 0.03
#: What may be left open when everything was closed: gRPC's own poller and its wake-up descriptors stay.
LEFT_THREADS, LEFT_DESCRIPTORS = 8, 24


@dataclass(frozen=True)
class Outcome:
    """``after``: when everything was closed, against ``before`` anything was opened."""

    trends: Sequence[Trend]
    tally: Tally
    changes: int
    in_flight: int
    before: Sample
    after: Sample

    def complaints(self) -> list[str]:
        """Why this run was not good; empty: it was."""
        found = [
            f"{trend.name} grew from {_amount(trend.name, trend.early)} to {_amount(trend.name, trend.late)}, "
            f"the bound is {_amount(trend.name, trend.bound)}"
            for trend in self.trends
            if not trend.flat
        ]
        tally = self.tally
        found += tally.wrong[:5]
        found += [f"a worker ended: {''.join(traceback.format_exception(error))}" for error in tally.broken]
        failed, fine = sum(tally.errors.values()), sum(tally.fine.values())
        if failed > FAILED_SHARE * (failed + fine):
            found.append(f"{failed} of {failed + fine} requests failed: {dict(tally.errors)}")
        if self.in_flight:
            found.append(f"{self.in_flight} requests are still counted as in flight")
        for name, left in (("threads", LEFT_THREADS), ("descriptors", LEFT_DESCRIPTORS)):
            more = getattr(self.after, name) - getattr(self.before, name)
            if more > left:
                found.append(f"{more} {name} were left behind, {left} may be")
        return found


def soak(seconds: float, tell: Callable[[str], None], pods: int = PODS, churn: float = CHURN) -> Outcome:
    """Run it. ``tell`` gets a line of progress now and then."""
    before = sample()
    samples: list[Sample] = []
    with Cluster(pods, churn) as cluster:
        table = {
            "discovery": {"k8s": {"api_server": cluster.api_server}},
            "address": {"allow_loopback": True},
            "sync_timeout": 10.0,
            "sidecar": "ignore",
        }
        with Mesh(config=meshlib.load_config(table, environ={})) as mesh:
            with Traffic(mesh) as traffic:
                start = time.monotonic()
                for number in range(1, SAMPLES + 1):
                    time.sleep(max(0.0, start + number * seconds / SAMPLES - time.monotonic()))
                    samples.append(sample())
                    if number % (SAMPLES // 20) == 0:
                        tell(
                            _progress(time.monotonic() - start, cluster.changes(), samples[-1], traffic.tally)
                        )
            in_flight = sum(
                subchannel.inflight for handle in mesh.handles for subchannel in handle.balancer.subchannels
            )
        changes = cluster.changes()
    gc.collect()
    return Outcome(trends(samples), traffic.tally, changes, in_flight, before, sample())


def _progress(seconds: float, changes: int, now: Sample, tally: Tally) -> str:
    return (
        f"{seconds:4.0f} s  {changes:5d} changes  {sum(tally.fine.values()):8d} answers  "
        f"{sum(tally.errors.values()):5d} errors  {now.memory / MIB:6.1f} MiB  {now.threads:3d} threads  "
        f"{now.descriptors:4d} descriptors"
    )


def _amount(name: str, value: float) -> str:
    return f"{value / MIB:.1f} MiB" if name == "memory" else f"{value:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--pods", type=int, default=PODS, help="of each of the two Services")
    options = parser.parse_args()
    print(f"{options.pods * len(SERVICES)} endpoints, {options.seconds:.0f} s")
    outcome = soak(options.seconds, lambda line: print(line, flush=True), options.pods)
    print("\nanswers: " + ", ".join(f"{kind} {count}" for kind, count in outcome.tally.fine.most_common()))
    print("errors:  " + ", ".join(f"{kind} {count}" for kind, count in outcome.tally.errors.most_common()))
    for trend in outcome.trends:
        early, late, highest, bound = (
            _amount(trend.name, value) for value in (trend.early, trend.late, trend.highest, trend.bound)
        )
        print(f"{trend.name:12s} {early} -> {late} (highest {highest}, bound {bound})")
    complaints = outcome.complaints()
    for complaint in complaints:
        print(f"NOT GOOD: {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    raise SystemExit(main())
