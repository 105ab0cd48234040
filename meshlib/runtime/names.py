"""UrlTable: which URLs are ours right now (decision D1): the pure ``model.hosts``, joined with what is known, cached.

``find`` is on the way of every request: one dictionary look-up and a glance at a published state, no lock, no waiting.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cachetools import TTLCache

from meshlib.errors import MeshError, NotSynced, ServiceNotFound, UnknownPort
from meshlib.model.hosts import HostKind, HostMatch, match_host
from meshlib.model.target import Target
from meshlib.policies.rollout import Mode, Way
from meshlib.runtime.config import Config, alias_targets
from meshlib.runtime.observed import Observed
from meshlib.runtime.under_test import under_test

if TYPE_CHECKING:
    from meshlib.runtime.handle import TargetHandle
    from meshlib.runtime.mesh import Mesh
    from meshlib.runtime.rollout import TargetRollout

#: Hosts remembered; a crawler that visits more starts over (each entry is rebuilt in microseconds).
MAX_ENTRIES = 4096
#: How long "no such Service" is believed for a short name, seconds, before a use asks DNS again. A Service created
#: under a short name that was tried before is picked up this late; until then its calls take the bare path.
NEGATIVE_TTL = 30.0

_BARE_PATH = (UnknownPort, ServiceNotFound)


class _Entry:
    """One (scheme, host, port): whose it is. ``rollout`` and ``target`` of a short name are set once DNS has found its
    Service, ``handle`` of any when the roll-out first lets it be used."""

    __slots__ = ("asking", "handle", "kind", "off_under", "rollout", "target", "targets")

    def __init__(self, match: HostMatch) -> None:
        self.kind = match.kind
        self.targets = match.targets
        self.target: Target | None = None
        self.rollout: TargetRollout | None = None
        self.handle: TargetHandle | None = None
        self.asking = False
        self.off_under: Config | None = (
            None  #: with this configuration nobody asks: mode off for whatever it may mean
        )


class UrlTable:
    """Belongs to one Mesh. ``find`` may be called from any thread."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str, int | None], _Entry] = {}
        self._absent: TTLCache[_Entry, bool] = TTLCache(MAX_ENTRIES, NEGATIVE_TTL, timer=mesh.now)
        self._aliases = alias_targets(mesh.config, mesh.defaults)
        under_test.tables.add(self)

    def find(self, scheme: str, host: str, port: int | None) -> TargetHandle | Observed | None:
        """One request: whose it is; decided and counted."""
        entry = self._entries.get((scheme, host, port)) or self._make(scheme, host, port)
        rollout = entry.rollout
        if rollout is not None and rollout.gate is not None:
            way = rollout.way()
            if way is Way.BARE_OBSERVE:
                return self._observed(entry)
            if way is not Way.MESH:
                return None
        try:
            return self._ours(entry)
        except NotSynced:
            if self._insists(entry):
                raise
            return None

    def serving(self, scheme: str, host: str, port: int | None) -> TargetHandle | None:
        """Whose it is while the mode is on, whatever share of it; counts nothing."""
        entry = self._entries.get((scheme, host, port)) or self._make(scheme, host, port)
        if entry.rollout is not None and entry.rollout.lowered:
            return None
        try:
            return self._ours(entry)
        except NotSynced:
            if self._insists(entry):
                raise
            return None

    def _insists(self, entry: _Entry) -> bool:
        """Whether it is an error that the control thread cannot be started: the bare path may need less than that."""
        return self._mesh.strict and entry.kind is not HostKind.SHORT and not under_test.off

    def _ours(self, entry: _Entry) -> TargetHandle | None:
        handle = entry.handle
        if handle is None and entry.target is not None:
            handle = self._handle(entry)
        if entry.kind is HostKind.SHORT:
            if handle is None:
                self._ask(entry)
                return None
            if not handle.state.settled:
                return (
                    None  # until it is known, the bare path: no request waits for a name that may not be ours
                )
        if handle is None or entry.kind is HostKind.ALIAS:
            return handle
        return self._unless_bare(handle)

    def _handle(self, entry: _Entry) -> TargetHandle | None:
        if entry.handle is None and entry.target is not None:
            entry.handle = self._mesh.target(entry.target)
        return entry.handle

    def _observed(self, entry: _Entry) -> Observed | None:
        """Start watching, and count what a pick would come to. A setting that is wrong for this target is said by the
        first request in mode on; here it only means that there is nothing to watch."""
        try:
            handle = self._handle(entry)
        except MeshError:
            handle = None
        if handle is None:
            if entry.rollout is not None:
                entry.rollout.observed("failed")
            return None
        return Observed(handle)

    def match(self, scheme: str, host: str, port: int | None) -> HostMatch:
        """The pure answer, with its reason (``meshlib check-url``)."""
        mesh = self._mesh
        aliases = self._aliases
        if (stand_ins := mesh.stand_ins) is not None:
            aliases = {**aliases, **stand_ins.aliases}
        return match_host(scheme, host, port, mesh.defaults, aliases, mesh.config.short_names)

    def forget(self) -> None:
        """Look every host up anew. For tests, which change what hosts mean."""
        with self._lock:
            self._entries.clear()
            self._absent.clear()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        for entry in self._entries.values():
            entry.asking = False  # whoever asked stayed in the parent

    def _unless_bare(self, handle: TargetHandle) -> TargetHandle | None:
        """A cluster host that meshlib cannot serve takes the bare path, where DNS and the kernel decide (D2, D3)."""
        state = handle.state
        if state.error is not None and not self._mesh.strict:
            error = state.error()
            if isinstance(error, _BARE_PATH) or (isinstance(error, NotSynced) and not handle.synced):
                return None
        return handle

    def _ask(self, entry: _Entry) -> None:
        """Have DNS asked in the background, as the pod's own resolver would be: no API server is asked about names that
        are not Services, such as ``example.com`` under ndots:5."""
        if entry.off_under is not None:
            self._mesh.rollout.begin()  # that file has to be looked at, or nothing would end this
        config = self._mesh.config
        if entry.off_under is config:
            return
        with self._lock:
            if entry.asking or entry in self._absent:
                return
            asks = self._mesh.rollout.may_ask(entry.targets)
            entry.off_under = None if asks else config
            if not asks:
                return
            entry.asking = True
        try:
            self._mesh.find_first(entry.targets, lambda found: self._answered(entry, found))
        except BaseException:
            entry.asking = False  # the next use asks
            raise

    def _answered(self, entry: _Entry, found: Target | None) -> None:
        if self._mesh.closed:
            return
        rollout = self._mesh.rollout.target(found) if found is not None else None
        if rollout is not None and found is not None and rollout.decision.mode is not Mode.OFF:
            self._mesh.target(found).try_start()
        with self._lock:
            entry.rollout = rollout
            entry.target = found
            entry.asking = False
            if found is None:
                self._absent[entry] = True

    def _make(self, scheme: str, host: str, port: int | None) -> _Entry:
        match = self.match(scheme, host, port)
        sure = match.target  # of an alias or a cluster host; a short name has to be asked for
        entry = _Entry(match)
        if sure is not None:
            entry.target, entry.rollout = sure, self._mesh.rollout.target(sure)
        with self._lock:
            if len(self._entries) >= MAX_ENTRIES:
                self._entries.clear()
            return self._entries.setdefault((scheme, host, port), entry)
