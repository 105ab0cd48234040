"""RecentEvents: the last things that happened, bounded, counted, and free of what other tenants write."""

from __future__ import annotations

from meshlib.errors import DiscoveryError
from meshlib.model.endpoint import Endpoint
from meshlib.model.events import (
    EndpointsChanged,
    EntrySkipped,
    Event,
    FallbackEnded,
    FellBack,
    RuntimeStarted,
    SourceFailed,
    SourceRecovered,
    WatchRestarted,
)
from meshlib.runtime.recent import KEPT, RecentEvents


def told(*events: Event) -> list[str]:
    recent = RecentEvents(wall=lambda: 5.0)
    for event in events:
        recent(event)
    return [each.text for each in recent.snapshot()]


def test_each_kind_has_its_words() -> None:
    """A line of plain text for every kind of event."""
    one = Endpoint(address="10.0.0.1", port=80)
    assert told(
        EndpointsChanged("t", (one,), (), 1, "static", "why"),
        FellBack("t", "dns", "no rights"),
        FallbackEnded("t"),
        SourceFailed("api", DiscoveryError("refused\nmore"), stale=True),
        SourceRecovered("api"),
        EntrySkipped("api", "slice x", "bad address"),
        WatchRestarted("api", relist=True, reason="410"),
        RuntimeStarted(7),
    ) == [
        "t: 1 endpoints (+1 -0) from static: why",
        "t: calls go to dns: no rights",
        "t: calls are balanced again",
        "api: refused",
        "api: answers again",
        "api: skipped slice x: bad address",
        "api: listed again: 410",
        "RuntimeStarted(pid=7)",
    ]


def test_the_same_again_counts_up_and_is_the_latest() -> None:
    """A source that fails for hours pushes nothing else out."""
    times = iter([1.0, 2.0, 3.0])
    recent = RecentEvents(wall=lambda: next(times))
    recent(SourceRecovered("a"))
    recent(SourceRecovered("b"))
    recent(SourceRecovered("a"))
    assert [(each.text, each.times, each.at) for each in recent.snapshot()] == [
        ("b: answers again", 1, 2.0),
        ("a: answers again", 2, 3.0),
    ]


def test_only_the_last_ones_are_kept() -> None:
    """However much happens, so many are kept."""
    texts = told(*(SourceRecovered(f"source {number}") for number in range(KEPT + 5)))
    assert texts == [f"source {number}: answers again" for number in range(5, KEPT + 5)]


def test_foreign_text_is_cut_and_shown_not_sent() -> None:
    """Escape sequences and endless names of other tenants do no harm."""
    (text,) = told(EntrySkipped("api", "\x1b[2J", "x" * 10_000))
    assert "\x1b" not in text
    assert len(text) < 400


def test_a_forked_child_begins_anew() -> None:
    """What happened in the parent did not happen in the child."""
    recent = RecentEvents()
    recent(SourceRecovered("a"))
    recent.after_fork()
    assert recent.snapshot() == ()
