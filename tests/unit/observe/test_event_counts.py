"""Events as counts: each kind under its metric, and no text of a tenant in a label."""

from __future__ import annotations

import threading

import pytest

from meshlib.errors import DiscoveryError
from meshlib.model.endpoint import Endpoint
from meshlib.model.events import (
    EndpointsChanged,
    EntrySkipped,
    Event,
    FallbackEnded,
    FellBack,
    SourceFailed,
    WatchRestarted,
)
from meshlib.observe import Observer
from meshlib.observe.catalogue import (
    ENDPOINT_UPDATES,
    FALLBACKS,
    SKIPPED,
    SOURCE_FAILURES,
    WATCH_RESTARTS,
    Metric,
)

ONE = Endpoint(address="10.0.0.1", port=80)
STATIC = "static:///10.0.0.1:80,10.0.0.2:80"


@pytest.mark.parametrize(
    ("event", "counted"),
    [
        (
            EndpointsChanged("orders", (ONE, ONE), (ONE,), 2, "file x"),
            {ENDPOINT_UPDATES: {("orders", "added"): 2, ("orders", "removed"): 1}},
        ),
        (
            EndpointsChanged(STATIC, (ONE,), (), 1, "static"),
            {ENDPOINT_UPDATES: {("static:///(2 addresses)", "added"): 1}},
        ),
        (FellBack("orders", "dns", "no answer"), {FALLBACKS: {("orders", "dns"): 1}}),
        (FallbackEnded("orders"), {}),
        (
            SourceFailed("kubernetes https://10.0.0.1", DiscoveryError("x"), stale=True),
            {SOURCE_FAILURES: {("k8s", "DiscoveryError"): 1}},
        ),
        (
            SourceFailed("connections to 10.0.0.1:80", OSError(), stale=True),
            {SOURCE_FAILURES: {("other", "OSError"): 1}},
        ),
        (EntrySkipped("file /etc/shop.yaml", "line 3", "no port"), {SKIPPED: {("file",): 1}}),
        (WatchRestarted("kubernetes x", True, "410"), {WATCH_RESTARTS: {("k8s", "relisted"): 1}}),
        (WatchRestarted("kubernetes x", False, "eof"), {WATCH_RESTARTS: {("k8s", "reopened"): 1}}),
    ],
)
def test_an_event_is_counted_under_its_metric(
    event: Event, counted: dict[Metric, dict[tuple[str, ...], int]]
) -> None:
    """With the kind of the source and the target, and neither addresses nor paths."""
    observer = Observer(lambda: 0.0, threading.Lock)
    observer(event)
    assert observer.tally.read() == counted
    observer.after_fork()
    assert observer.tally.read() == {}
