"""The demo's story and its figures, on made-up traffic."""

from __future__ import annotations

import pytest

from meshlib.cli.demo.board import Board, Sample, quantile
from meshlib.cli.demo.story import DEAD, FIRST, JOINER, SLOW, chapters, summarize

HAPPENED = {"slow": 6.0, "stop": 14.0, "forget": 16.0, "join": 19.0, "recover": 24.0}


@pytest.mark.parametrize("seconds", [10.0, 30.0, 300.0])
def test_chapters_come_in_order_and_in_time(seconds: float) -> None:
    """Every event of every length of demo happens before its end, each after the one it rests on."""
    events = chapters(seconds)
    assert [chapter.event for chapter in events] == ["slow", "stop", "forget", "join", "recover"]
    assert [chapter.at for chapter in events] == sorted(chapter.at for chapter in events)
    assert events[-1].at < seconds


def board_with(*samples: Sample) -> Board:
    board = Board()
    for sample in samples:
        board.add(sample)
    return board


def test_summary() -> None:
    """Shares are of the right spans, times run from the event, failures are counted with their text."""
    board = board_with(
        *(Sample(1.0, "http", name, 0.01) for name in FIRST),
        *(Sample(10.0, "grpc", name, 0.02) for name in ("one", "one", "three", SLOW)),
        Sample(14.5, "http", DEAD, 0.01),
        Sample(15.0, "http", "", 5.0, "http: ReadError"),
        Sample(19.25, "grpc", JOINER, 0.01),
        Sample(28.0, "http", SLOW, 0.01),
        Sample(28.0, "http", "one", 0.01),
    )
    found = summarize(board, 30.0, HAPPENED)
    assert (found.requests, found.http, found.grpc, found.failed) == (13, 8, 5, 1)
    assert found.errors == ("http: ReadError",)
    assert (found.slow_share_before, found.slow_share_after, found.slow_share_recovered) == (0.25, 0.25, 0.5)
    assert (found.p99_before, found.p99_slow) == (0.01, 0.02)
    assert found.dead_received_for == 0.5
    assert found.joiner_waited == 0.25


def test_summary_of_what_did_not_happen() -> None:
    """No traffic to the joiner is None, not zero: the reader must see that it never came."""
    found = summarize(board_with(Sample(1.0, "http", "one", 0.01)), 30.0, HAPPENED)
    assert found.joiner_waited is None
    assert found.dead_received_for == 0.0
    assert found.slow_share_after == 0.0


def test_lines_are_of_the_window_only() -> None:
    """Shares and quantiles come from samples that ended in the span, and failures have no share."""
    board = board_with(
        Sample(1.0, "http", "a", 0.5),
        Sample(2.0, "http", "a", 0.1),
        Sample(2.5, "http", "b", 0.2),
        Sample(2.6, "http", "", 9.0, "failed"),
        Sample(3.0, "http", "b", 0.9),
    )
    a, b, c = board.lines(("a", "b", "c"), 2.0, 3.0)
    assert (a.count, a.share, a.p50) == (1, 0.5, 0.1)
    assert (b.count, b.share, b.p99) == (1, 0.5, 0.2)
    assert (c.count, c.share, c.p50) == (0, 0.0, 0.0)


def test_quantile() -> None:
    """Nearest rank; nothing gives nothing."""
    values = [float(n) for n in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (51.0, 100.0, 100.0)
    assert quantile([], 0.5) == 0.0
