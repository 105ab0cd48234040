"""What this process believes, as plain immutable data: its targets, their endpoints, and the settings in force.

Nothing here starts, waits for or changes anything; every function may be called from any thread.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from meshlib import __version__
from meshlib.model.eligibility import Explained
from meshlib.observe.catalogue import target_label
from meshlib.pickers.subchannel import DECAY, Subchannel
from meshlib.runtime import process
from meshlib.runtime.balancer import Balancer, Way
from meshlib.runtime.clock import SYSTEM
from meshlib.runtime.config.values import config_values
from meshlib.runtime.observing import counters
from meshlib.runtime.recent import RECENT
from meshlib.runtime.report_form import (
    EndpointReport,
    MeshReport,
    PickerReport,
    ProcessReport,
    RolloutReport,
    TargetReport,
    TotalsReport,
)
from meshlib.runtime.totals import BOOK

if TYPE_CHECKING:
    from meshlib.model.target import Target
    from meshlib.runtime.handle import Live, TargetHandle
    from meshlib.runtime.mesh import Mesh
    from meshlib.runtime.rollout import TargetRollout

#: Endpoints that a report lists of one target unless it is told otherwise: the size meshlib is built for.
MAX_ENDPOINTS = 10_000
#: A latency estimate fades by ``exp(-age / DECAY)``. This long after the last sample that counted, seconds, what is
#: left of it (a four-hundredth) says that the endpoint rests, and nothing about its speed.
LATENCY_MEANS = 6 * DECAY
#: Libraries whose version is told when the process has loaded them, by the module's name.
LIBRARIES = ("httpx", "httpx2", "grpc")
#: Characters of the command line that are told.
MAX_PROGRAM = 200


def report(endpoints: int = MAX_ENDPOINTS) -> ProcessReport:
    """Everything at once, with at most ``endpoints`` of each target: for programs. With thousands of endpoints that
    takes a while, and the status socket asks for the parts instead."""
    owners = meshes()
    return msgspec.structs.replace(
        describe_process(owners),
        targets=tuple(_whole(index, handle, endpoints) for index, handle in handles(owners)),
    )


def meshes() -> tuple[Mesh, ...]:
    """The Meshes that are in use in this process."""
    from meshlib.runtime.mesh import Mesh  # it starts the status socket, so it imports us

    return tuple(sorted((user for user in process.users() if isinstance(user, Mesh)), key=id))


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A target that was asked for and that the roll-out (mode off) did not let be used: there is no handle for it."""

    rollout: TargetRollout
    live: None = None

    @property
    def target(self) -> Target:
        return self.rollout.target

    @property
    def authority(self) -> str:
        return self.rollout.target.authority


def handles(owners: Sequence[Mesh]) -> Iterator[tuple[int, TargetHandle | HeldBack]]:
    """Every target with the index of its Mesh, by name."""
    for index, mesh in enumerate(owners):
        used = mesh.handles
        known = {handle.target for handle in used}
        others = [HeldBack(rollout) for rollout in mesh.rollout.targets if rollout.target not in known]
        every: list[TargetHandle | HeldBack] = [*used, *others]
        for handle in sorted(every, key=lambda handle: (str(handle.target), handle.authority)):
            yield index, handle


def describe_process(owners: Sequence[Mesh]) -> ProcessReport:
    """The report without its targets."""
    runtime = process.current()
    return ProcessReport(
        pid=os.getpid(),
        parent=os.getppid(),
        uid=os.geteuid(),
        program=" ".join(sys.orig_argv)[:MAX_PROGRAM],
        versions=_versions(),
        at=SYSTEM.wall(),
        started=runtime.started_at if runtime is not None else None,
        sidecar=runtime.mesh_present if runtime is not None else "",
        events=counters(),
        recent=RECENT.snapshot(),
        meshes=tuple(
            MeshReport(
                mesh.config.file,
                mesh.rollout.problem,
                mesh.config.warnings,
                tuple(config_values(mesh.config)),
            )
            for mesh in owners
        ),
    )


def describe_target(mesh: int, handle: TargetHandle | HeldBack) -> TargetReport:
    """One target without its endpoints."""
    live = handle.live
    if live is None or isinstance(handle, HeldBack):
        return TargetReport(
            mesh=mesh,
            target=str(handle.target),
            authority=handle.authority,
            started=False,
            rollout=_rollout(handle),
            totals=_totals(handle),
        )
    balancer = live.balancer
    snapshot, subchannels = balancer.snapshot, balancer.subchannels
    in_flight, requests, failures = _sums(subchannels)
    return TargetReport(
        mesh=mesh,
        target=str(handle.target),
        authority=handle.authority,
        started=True,
        rollout=_rollout(handle),
        way=balancer.way.value,
        reason=balancer.reason,
        error=_error(live),
        synced=snapshot is not None or not balancer.wants_dns,
        stale=snapshot is not None and balancer.last_error is not None,
        source=snapshot.source if snapshot is not None else "",
        version=snapshot.version if snapshot is not None else "",
        skipped=snapshot.skipped if snapshot is not None else 0,
        age=live.now() - balancer.updated_at if snapshot is not None else None,
        verdict=balancer.set.verdict.value,
        locality=balancer.set.locality.value,
        picker=_picker(handle, balancer),
        members=len(subchannels),
        listed=sum(len(each.endpoints) for each in snapshot.slices) if snapshot is not None else 0,
        in_flight=in_flight,
        requests=requests,
        failures=failures,
        totals=_totals(handle),
        details=_details(live),
    )


def member_rows(
    balancer: Balancer, subchannels: Sequence[Subchannel], requests: int, now: float
) -> tuple[EndpointReport, ...]:
    """Rows of members. ``requests``: those of all members, for the shares; ``now``: monotonic seconds."""
    fallback = balancer.way.value if balancer.way in (Way.SERVICE, Way.DNS) else ""
    return tuple(
        EndpointReport(
            address=endpoint.address,
            port=endpoint.port,
            name=endpoint.name,
            node=endpoint.node,
            zone=endpoint.zone,
            weight=endpoint.weight,
            state=fallback or ("ready" if endpoint.ready else "terminating"),
            in_flight=each.inflight,
            requests=each.requests,
            failures=each.failures,
            share=each.requests / requests if requests else 0.0,
            latency=_latency(each, now),
        )
        for each in subchannels
        for endpoint in (each.endpoint,)
    )


def has_others(balancer: Balancer) -> bool:
    """Whether ``other_rows`` may find any. Quick, unlike that."""
    snapshot = balancer.snapshot
    if snapshot is None:
        return False
    listed = sum(len(each.endpoints) for each in snapshot.slices)
    return balancer.way is not Way.PODS or listed > len(balancer.subchannels)


def other_rows(balancer: Balancer) -> tuple[EndpointReport, ...]:
    """Rows of the slices' entries that may not receive traffic, with the reason in words."""
    among = {(each.endpoint.address, each.endpoint.port) for each in balancer.subchannels}
    return tuple(
        _other(line, balancer)
        for line in balancer.explain_each()
        if (line.endpoint.address, line.endpoint.port) not in among
    )


def _other(line: Explained, balancer: Balancer) -> EndpointReport:
    endpoint = line.endpoint
    return EndpointReport(
        address=endpoint.address,
        port=endpoint.port,
        name=endpoint.name,
        node=endpoint.node,
        zone=endpoint.zone,
        weight=endpoint.weight,
        state="out",
        # It would do, and yet nobody is sent there: what keeps the whole target from its pods, or the host asked for.
        reason=(balancer.reason or "another host was asked for") if line.eligible else line.reason,
    )


def _whole(mesh: int, handle: TargetHandle | HeldBack, endpoints: int) -> TargetReport:
    found, live = describe_target(mesh, handle), handle.live
    if live is None:
        return found
    rows = (
        *member_rows(live.balancer, live.balancer.subchannels, found.requests, live.now()),
        *other_rows(live.balancer),
    )
    return msgspec.structs.replace(found, endpoints=rows[:endpoints], left_out=max(0, len(rows) - endpoints))


def _error(live: Live) -> str:
    state, last = live.cell.state, live.balancer.last_error
    if state.error is not None:
        return str(state.error())
    return str(last) if last is not None else ""


def _picker(handle: TargetHandle, balancer: Balancer) -> PickerReport:
    service = balancer.snapshot.service if balancer.snapshot is not None else None
    annotations = dict(service.annotations) if service is not None else {}
    chosen = handle.mesh.config.for_target(str(handle.target), annotations)
    return PickerReport(chosen.picker, chosen.where)


def _rollout(handle: TargetHandle | HeldBack) -> RolloutReport:
    decision, counts = handle.rollout.decision, handle.rollout.counts()
    return RolloutReport(
        mode=decision.mode.value,
        percent=decision.percent,
        source=decision.source,
        reason=decision.reason,
        requests={
            "mesh": counts.mesh,
            "bare_off": counts.bare_off,
            "bare_observe": counts.bare_observe,
            "bare_percent": counts.bare_percent,
        },
        observed=counts.observed_picks,
        refusals=counts.observed_refusals,
        reached=counts.observed_reached,
    )


def _totals(handle: TargetHandle | HeldBack) -> TotalsReport:
    text = str(handle.target)
    if (
        target_label(text) != text
    ):  # counted together with others; what never changes is known from its members
        live = handle.live
        members = live.balancer.subchannels if live is not None else ()
        return TotalsReport(*_sums(members), draining=0)
    found = BOOK.target(text).read(SYSTEM.now())
    return TotalsReport(found.inflight, found.requests, found.failures, found.draining)


def _sums(subchannels: Sequence[Subchannel]) -> tuple[int, int, int]:
    """In flight, ended requests, and failures among them."""
    return (
        sum(each.inflight for each in subchannels),
        sum(each.requests for each in subchannels),
        sum(each.failures for each in subchannels),
    )


def _details(live: Live) -> Mapping[str, Any]:
    try:
        plain: dict[str, Any] = msgspec.to_builtins(live.watch.describe(), str_keys=True, enc_hook=str)
        return plain
    except Exception as error:  # a plugin's resolver may raise anything, ours while it changes under our eyes
        return {"problem": f"the resolver could not describe itself: {error!r}"}


def _latency(subchannel: Subchannel, now: float) -> float | None:
    rank = subchannel.rank  # one number that holds the estimate and its time: both cannot be read at once
    if rank == -math.inf or now - subchannel.ewma_at > LATENCY_MEANS:
        return None
    return math.exp(rank - now / DECAY)


def _versions() -> dict[str, str]:
    loaded = {name: sys.modules.get(name) for name in LIBRARIES}
    return {
        "meshlib": __version__,
        "python": platform.python_version(),
        **{
            "grpcio" if name == "grpc" else name: str(getattr(module, "__version__", "unknown"))
            for name, module in loaded.items()
            if module is not None
        },
    }
