"""The form of a report: what ``runtime.report`` fills and ``meshlib status --json`` prints (docs/status.md).

Plain immutable data. Ages and latencies are seconds. ``SCHEMA`` grows when a field changes its meaning or goes, not
when one is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from meshlib.runtime.balancer import Way
from meshlib.runtime.config.values import Value
from meshlib.runtime.recent import RecentEvent

SCHEMA = 1


class EndpointReport(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One endpoint. ``state``: ``ready`` and ``terminating`` may receive traffic (as ``service-address`` and ``dns``,
    which stand for a fall-back); ``out`` may not, ``reason`` says why and the figures are 0.

    ``share`` is that of the requests that ended at the present endpoints, 0 to 1. ``latency`` is what the picker
    expects now (peak EWMA); None: no recent sample.
    """

    address: str
    port: int
    name: str = ""
    node: str = ""
    zone: str = ""
    weight: int = 1
    state: str
    reason: str = ""
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    share: float = 0.0
    latency: float | None = None


class PickerReport(msgspec.Struct, frozen=True):
    """The policy in force and the place it was chosen in."""

    name: str
    source: str


class TotalsReport(msgspec.Struct, frozen=True):
    """All that a process did with a target since it began, at endpoints that have left, too, and in whichever Mesh.

    ``draining``: endpoints that left and have requests in flight.
    """

    in_flight: int
    requests: int
    failures: int
    draining: int


class RolloutReport(msgspec.Struct, frozen=True):
    """How much of a target's traffic is meshlib's, by whom (``source``) and why, and what that came to.

    ``mode``: ``off``, ``observe`` or ``on``; ``percent`` counts in mode on. ``requests``: how many took which way since
    the process began. ``observed``: in mode observe, requests that would have gone to a pod; ``refusals``: those that
    would not, by reason; ``reached``: where the bare way led.
    """

    mode: str
    percent: float
    source: str
    reason: str
    requests: Mapping[str, int]
    observed: int
    refusals: Mapping[str, int]
    reached: Mapping[str, int]


class TargetReport(msgspec.Struct, frozen=True, kw_only=True):
    """One target of one Mesh. ``started``: discovery runs for it in this process; without that nothing is known here
    but ``rollout`` and ``totals``.

    ``way``: which way calls take (``pods``, ``service-address``, ``dns``, ``error``, ``unknown``) and ``reason`` why
    not to the pods. ``error``: what calls get, or what the source said last. ``age``: since the last change.
    ``members`` may receive traffic, ``listed`` counts the entries of the slices. ``in_flight``, ``requests`` and
    ``failures`` are sums over the members; ``totals`` never fall.
    ``details`` are in the resolver's own words. ``endpoints`` holds the members first; ``left_out``: how many not.
    """

    mesh: int
    target: str
    authority: str
    started: bool
    rollout: RolloutReport
    way: str = Way.UNKNOWN.value
    reason: str = ""
    error: str = ""
    synced: bool = False
    stale: bool = False
    source: str = ""
    version: str = ""
    skipped: int = 0
    age: float | None = None
    verdict: str = ""
    locality: str = ""
    picker: PickerReport | None = None
    members: int = 0
    listed: int = 0
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    totals: TotalsReport
    details: Mapping[str, Any] = msgspec.field(default_factory=dict)
    endpoints: tuple[EndpointReport, ...] = ()
    left_out: int = 0


class MeshReport(msgspec.Struct, frozen=True):
    """One Mesh. ``file``: the one that was read (empty: none); ``problem``: why that on disk is not in force (empty: it
    is); ``warnings``: what was ignored; and every setting with its place."""

    file: str
    problem: str
    warnings: tuple[str, ...]
    configuration: tuple[Value, ...]


class ProcessReport(msgspec.Struct, frozen=True, kw_only=True):
    """One process. ``at`` and ``started`` (when it began to use meshlib, or to do so again after a fork) are Unix
    seconds. ``versions`` names the client libraries that are loaded. ``sidecar``: the mesh found beside us, in words.

    ``events`` counts each kind since the process began, ``recent`` has the last ones in words, oldest first.
    ``TargetReport.mesh`` is an index into ``meshes``.
    """

    schema: int = SCHEMA
    pid: int
    parent: int
    uid: int
    program: str
    versions: Mapping[str, str]
    at: float
    started: float | None
    sidecar: str
    events: Mapping[str, int]
    recent: tuple[RecentEvent, ...]
    meshes: tuple[MeshReport, ...]
    targets: tuple[TargetReport, ...] = ()
