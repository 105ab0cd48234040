"""UrlTable: which URLs are ours right now (decision D1): the pure ``model.hosts``, joined with what is known, cached.

``find`` is on the way of every request: one dictionary look-up and a glance at a published state, no lock, no waiting.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cachetools import TTLCache

from meshlib.errors import NotSynced, ServiceNotFound, UnknownPort
from meshlib.model.hosts import HostKind, HostMatch, match_host
from meshlib.runtime.balancer import Way
from meshlib.runtime.config import alias_targets

if TYPE_CHECKING:
    from meshlib.runtime.handle import TargetHandle
    from meshlib.runtime.mesh import Mesh

#: Hosts remembered; a crawler that visits more starts over (each entry is rebuilt in microseconds).
MAX_ENTRIES = 4096
#: How long "no such Service" is believed for a short name, seconds, before a use asks again. A Service created under a
#: short name that was tried before is picked up this late; until then its calls take the bare path, which works.
NEGATIVE_TTL = 30.0

_BARE_PATH = (UnknownPort, ServiceNotFound)


class _Entry:
    """One (scheme, host, port): whose it is."""

    __slots__ = ("candidates", "kind")

    def __init__(self, match: HostMatch, handles: tuple[TargetHandle, ...]) -> None:
        self.kind = match.kind
        self.candidates = handles


class UrlTable:
    """Belongs to one Mesh. ``find`` may be called from any thread."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str, int | None], _Entry] = {}
        self._refused: TTLCache[_Entry, bool] = TTLCache(MAX_ENTRIES, NEGATIVE_TTL, timer=mesh.now)
        self._aliases = alias_targets(mesh.config, mesh.defaults)

    def find(self, scheme: str, host: str, port: int | None) -> TargetHandle | None:
        entry = self._entries.get((scheme, host, port)) or self._make(scheme, host, port)
        if entry.kind is HostKind.NOT_OURS:
            return None
        if entry.kind is HostKind.ALIAS:
            return entry.candidates[0]
        if entry.kind is HostKind.CLUSTER:
            return self._unless_bare(entry.candidates[0])
        return self._short(entry)

    def match(self, scheme: str, host: str, port: int | None) -> HostMatch:
        """The pure answer, with its reason (``meshlib check-url``)."""
        mesh = self._mesh
        return match_host(scheme, host, port, mesh.defaults, self._aliases, mesh.config.short_names)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def _unless_bare(self, handle: TargetHandle) -> TargetHandle | None:
        """A cluster host that meshlib cannot serve takes the bare path, where DNS and the kernel decide (D2, D3)."""
        state = handle.state
        if state.error is not None and not self._mesh.strict:
            error = state.error()
            if isinstance(error, _BARE_PATH) or (isinstance(error, NotSynced) and not handle.synced):
                return None
        return handle

    def _short(self, entry: _Entry) -> TargetHandle | None:
        """The first candidate that exists, asking in resolver order; None until it is known."""
        with self._lock:
            if entry in self._refused:
                return None
        for handle in entry.candidates:
            state = handle.state
            if not state.settled:
                return None
            if handle.synced:
                if state.error is None or not isinstance(state.error(), _BARE_PATH):
                    return handle
                if isinstance(state.error(), UnknownPort):
                    return None  # it exists, and DNS would give its address: the bare path
            elif handle.balancer.way is Way.DNS:
                return handle
            else:
                return None
        with self._lock:
            self._refused[entry] = True
        for handle in entry.candidates:
            self._mesh.release(handle)
        return None

    def _make(self, scheme: str, host: str, port: int | None) -> _Entry:
        match = self.match(scheme, host, port)
        entry = _Entry(match, tuple(self._mesh.target(target) for target in match.targets))
        with self._lock:
            if len(self._entries) >= MAX_ENTRIES:
                self._entries.clear()
            return self._entries.setdefault((scheme, host, port), entry)
