"""Events: plain facts about what meshlib did, sent to an injected sink. ``observe`` subscribes; nothing here logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meshlib.model.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class EndpointsChanged:
    """The eligible set of a target changed (one event per published change)."""

    target: str
    added: tuple[Endpoint, ...]
    removed: tuple[Endpoint, ...]
    total: int
    source: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SourceFailed:
    """A control plane could not be asked. ``stale`` tells that older data stays in use."""

    source: str
    error: Exception
    stale: bool
    retry_in: float | None = None


@dataclass(frozen=True, slots=True)
class SourceRecovered:
    """The control plane answers again after SourceFailed."""

    source: str


@dataclass(frozen=True, slots=True)
class EntrySkipped:
    """A piece of control-plane data was refused or unreadable; the rest of it is used."""

    source: str
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class FellBack:
    """Calls to a target take another path than the picked pods (D3). ``path`` says which, ``reason`` why."""

    target: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FallbackEnded:
    """Knowledge arrived: calls to the target are balanced again."""

    target: str


@dataclass(frozen=True, slots=True)
class WatchRestarted:
    """A watch was opened again or a list was repeated. ``relist`` tells which."""

    source: str
    relist: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """A Service's annotation changed how far the roll-out goes for a target. ``mode`` as in ``on at 5 %``."""

    target: str
    mode: str
    reason: str


@dataclass(frozen=True, slots=True)
class ConfigTaken:
    """The configuration file changed and was read. ``changes``: what took effect, as ``key: old -> new``;
    ``at_restart``: the keys whose change does not; ``without_effect``: those that another place overrides."""

    file: str
    changes: tuple[str, ...]
    at_restart: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RuntimeStarted:
    """The control thread of this process started (once per process, and once after each fork)."""

    pid: int


Event = (
    EndpointsChanged
    | SourceFailed
    | SourceRecovered
    | EntrySkipped
    | FellBack
    | FallbackEnded
    | WatchRestarted
    | ModeChanged
    | ConfigTaken
    | RuntimeStarted
)
EventSink = Callable[[Event], None]


def discard(event: Event) -> None:
    """A sink for callers that do not listen."""
