"""Events as counts of the catalogue."""

from __future__ import annotations

from meshlib.model.events import (
    EndpointsChanged,
    EntrySkipped,
    Event,
    FellBack,
    SourceFailed,
    WatchRestarted,
)
from meshlib.observe.catalogue import (
    ENDPOINT_UPDATES,
    FALLBACKS,
    SKIPPED,
    SOURCE_FAILURES,
    WATCH_RESTARTS,
    target_label,
)
from meshlib.observe.tally import Tally

#: How the texts of a source begin -> the label. The rest of such a text may be a path, a server's address or a name
#: that a tenant chose, which a label must not be.
_RESOLVERS = {
    "kubernetes": "k8s",
    "dns": "dns",
    "hosts": "dns",
    "file": "file",
    "static": "static",
    "configuration": "configuration",
}


def count(event: Event, tally: Tally) -> None:
    """Count one event, if it is one that a metric tells of."""
    match event:
        case EndpointsChanged():
            target = target_label(event.target)
            for op, endpoints in (("added", event.added), ("removed", event.removed)):
                if endpoints:
                    tally.add(ENDPOINT_UPDATES, target, op, amount=len(endpoints))
        case FellBack():
            tally.add(FALLBACKS, target_label(event.target), event.path)
        case SourceFailed():
            tally.add(SOURCE_FAILURES, resolver_label(event.source), type(event.error).__name__)
        case EntrySkipped():
            tally.add(SKIPPED, resolver_label(event.source))
        case WatchRestarted():
            tally.add(
                WATCH_RESTARTS, resolver_label(event.source), "relisted" if event.relist else "reopened"
            )
        case _:
            pass


def resolver_label(source: str) -> str:
    """The kind of a source, from the text that events carry."""
    return _RESOLVERS.get(source.partition(" ")[0], "other")
