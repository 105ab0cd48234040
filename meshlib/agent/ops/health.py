"""Health: what probes are told. Pure.

The API server being away is no reason: the rules that are in the kernel go on working, and a restart would not help.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Times the sync period that a change may wait for the kernel before the agent counts as stuck (as kube-proxy's).
STALE_PERIODS = 2.0
#: Seconds that one write may take beyond that: iptables-restore with ten thousand Services is given two minutes.
LONGEST_WRITE = 120.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """What health is judged by. Seconds are monotonic."""

    now: float
    sync_period: float
    pending_since: float | None = None  #: of the oldest change that is not in the kernel
    synced: bool = False  #: the first full sync is done
    leaving: bool = False  #: the node is being removed (KEP-3836)
    paused: bool = False
    working_since: float | None = None  #: of the write (or reading) in progress; None: there is none


@dataclass(frozen=True, slots=True)
class Answer:
    """``ok`` becomes 200 or 503."""

    ok: bool
    reason: str


def livez(vitals: Vitals) -> Answer:
    """Whether the agent does its work: no change waits longer than it may. Before the first change all is well."""
    began = vitals.working_since
    if began is not None and vitals.now - began > STALE_PERIODS * vitals.sync_period + LONGEST_WRITE:
        # What it was given since then is in no figure yet.
        return Answer(False, f"the kernel does not answer for {vitals.now - began:.0f} s")
    since = vitals.pending_since
    if since is None or vitals.paused:
        return Answer(True, "paused" if vitals.paused else "everything that is known is in the kernel")
    waited = vitals.now - since
    if waited > STALE_PERIODS * vitals.sync_period:
        return Answer(False, f"a change waits for the kernel for {waited:.0f} s")
    return Answer(True, f"a change waits for the kernel for {waited:.1f} s")


def healthz(vitals: Vitals) -> Answer:
    """Whether load balancers may send new connections to this node: alive, and the node stays (KEP-3836)."""
    if vitals.leaving:
        return Answer(False, "the node is being removed")
    return livez(vitals)


def readyz(vitals: Vitals) -> Answer:
    """Whether the kernel has had everything once."""
    return Answer(vitals.synced, "in sync once" if vitals.synced else "the first sync is not done")
