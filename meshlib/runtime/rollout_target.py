"""The gate of one target, and its counts. See ``rollout``, which owns it."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshlib.errors import NotSynced
from meshlib.model.endpoint import EndpointSet
from meshlib.model.events import EntrySkipped, ModeChanged
from meshlib.model.service import ROLLOUT_MODE, Service
from meshlib.model.target import Target, TargetDefaults
from meshlib.policies.rollout import Decision, Mode, Way, decide, following, in_share
from meshlib.runtime.config import Config
from meshlib.runtime.config.rollout import annotated_mode, wish_for
from meshlib.runtime.observed import addresses
from meshlib.runtime.observing import emit
from meshlib.runtime.totals import BOOK

if TYPE_CHECKING:
    from meshlib.runtime.handle import TargetHandle
    from meshlib.runtime.rollout import Rollout

#: How the sources that are annotations begin.
_SERVICE = "Service "

Later = list[Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one target since the process began (a forked child begins anew), by the way they took.

    ``mesh``: those that endpoints were given by this process, each repetition on another endpoint included.
    ``observed_picks``: requests in mode observe that would have gone to a pod; ``observed_refusals``: those that would
    not, by reason: ``not_synced``, ``denied``, ``no_endpoints``, ``no_local_endpoints``, ``service_not_found``,
    ``unknown_port``, ``service_address`` (meshlib would have stood back), ``failed``. ``observed_reached``: where the
    bare way led, as far as the client can tell: ``endpoint`` (of the set), ``service`` (its own address),
    ``elsewhere``.
    """

    mesh: int
    bare_off: int
    bare_observe: int
    bare_percent: int
    observed_picks: int
    observed_refusals: Mapping[str, int]
    observed_reached: Mapping[str, int]


class TargetRollout:
    """One target of one Mesh. Any thread.

    ``gate``: None when every request is the mesh's; else this object, whose ``way`` decides and counts.
    """

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_annotations",
        "_handles",
        "_lock",
        "_owner",
        "_point",
        "_reached",
        "_refusals",
        "_service",
        "_told",
        "_ways",
        "decision",
        "gate",
        "target",
    )

    def __init__(self, target: Target, owner: Rollout) -> None:
        self.target = target
        self.gate: TargetRollout | None = self
        self.decision = Decision(Mode.ON, 100.0, "default", "")
        self._owner = owner
        self._annotations: Mapping[str, str] = {}
        self._service = ""
        self._told: set[str] = set()
        self._addresses: tuple[EndpointSet | None, frozenset[tuple[str, int]]] = (None, frozenset())
        self._handles: weakref.WeakSet[TargetHandle] = weakref.WeakSet()
        self._begin_counts()

    def _begin_counts(self) -> None:
        self._lock = threading.Lock()
        self._point = self._owner.clock.random()
        self._ways: Counter[Way] = Counter()
        self._refusals: Counter[str] = Counter()  #: "": a pick
        self._reached: Counter[str] = Counter()

    # -- for clients ---------------------------------------------------------------------------------------------

    def way(self) -> Way:
        """Decide and count one request. Never blocks on anything but a short lock, never raises."""
        self._owner.begin()
        decision = self.decision
        if decision.mode is Mode.ON:
            if decision.everything:
                return Way.MESH
            with self._lock:
                point = self._point = following(self._point)
                if in_share(point, decision.percent):
                    return Way.MESH
                self._ways[Way.BARE_PERCENT] += 1
            return Way.BARE_PERCENT
        if decision.source.startswith(_SERVICE):
            self._keep_watching()
        way = Way.BARE_OFF if decision.mode is Mode.OFF else Way.BARE_OBSERVE
        with self._lock:
            self._ways[way] += 1
        return way

    @property
    def lowered(self) -> bool:
        """Whether no request is the mesh's: the mode is below on."""
        return self.decision.mode is not Mode.ON

    def observed(self, refusal: str) -> None:
        """Count what a pick would have come to: "" for a pod, else why not."""
        with self._lock:
            self._refusals[refusal] += 1

    def reached(self, where: str) -> None:
        """Count where the bare way led."""
        with self._lock:
            self._reached[where] += 1

    def addresses_of(self, members: EndpointSet) -> frozenset[tuple[str, int]]:
        """Address and port of each, remembered until there is another set."""
        known, found = self._addresses
        if known is not members:
            found = addresses(members)
            self._addresses = members, found
        return found

    # -- for status pages and metrics ----------------------------------------------------------------------------

    def counts(self) -> Counts:
        carried = BOOK.target(str(self.target)).read(self._owner.clock.now())
        with self._lock:
            ways, refusals, reached = self._ways.copy(), self._refusals.copy(), self._reached.copy()
        picks = refusals.pop("", 0)
        return Counts(
            mesh=carried.requests + carried.inflight,
            bare_off=ways[Way.BARE_OFF],
            bare_observe=ways[Way.BARE_OBSERVE],
            bare_percent=ways[Way.BARE_PERCENT],
            observed_picks=picks,
            observed_refusals=dict(refusals),
            observed_reached=dict(reached),
        )

    # -- inside --------------------------------------------------------------------------------------------------

    def used_by(self, handle: TargetHandle) -> None:
        with self._lock:
            self._handles.add(handle)

    def annotated(self, service: Service | None) -> None:
        """What discovery says about the Service; None: there is none. On the control thread."""
        annotations = dict(service.annotations) if service is not None else {}
        text, known = annotations.get(ROLLOUT_MODE), self._annotations.get(ROLLOUT_MODE)
        if text == known:
            return
        before = self.decision
        self._annotations = annotations
        self._service = str(service.key) if service is not None else self._service
        self._owner.decide_again(self)
        if self.decision != before:
            emit(ModeChanged(str(self.target), str(self.decision), self.decision.reason))

    def decide(self, config: Config, defaults: TargetDefaults, looked: bool, later: Later) -> None:
        """Decide anew, under the owner's lock. ``looked``: at the file, in this process. ``later`` gets what is to be
        done without that lock."""
        wish = wish_for(config, self.target, defaults)
        mode, ignored = annotated_mode(self._annotations, wish)
        if ignored and ignored not in self._told:
            self._told.add(ignored)
            skipped = EntrySkipped(f"{_SERVICE}{self._service}", f"annotation {ROLLOUT_MODE}", ignored)
            later.append(lambda: emit(skipped))
        before = self.decision
        self.decision = decide(wish, mode, f"{_SERVICE}{self._service}: annotation {ROLLOUT_MODE}")
        self.gate = None if looked and self.decision.everything else self
        if before.mode is Mode.ON and self.lowered:
            later.extend(handle.release for handle in self._users())
        elif self.decision.everything and not before.everything:
            later.extend(handle.leave_service_address for handle in self._users())

    def _users(self) -> list[TargetHandle]:
        with self._lock:  # other threads add
            return list(self._handles)

    def _keep_watching(self) -> None:
        """An annotation holds it back, so discovery must go on: it tells when that ends (in a forked child, say)."""
        for handle in self._users():
            if handle.live is None:
                with contextlib.suppress(NotSynced):
                    handle.try_start()

    def close_gate(self) -> None:
        self.gate = self

    def after_fork(self) -> None:
        """In a forked child: nothing was counted yet."""
        self.gate = self
        self._begin_counts()

    def __repr__(self) -> str:
        return f"<TargetRollout {self.target} {self.decision}: {self.decision.reason}>"
