"""least_connections: ties, weights, many threads, and an index that stays small."""

from __future__ import annotations

import threading
from collections import Counter
from random import Random

import pytest

from meshlib.pickers.base import PickerContext, PickInfo
from meshlib.pickers.least_connections import BUILDER, LeastConnections
from meshlib.pickers.subchannel import Subchannel
from meshlib.testing.contracts import build, chi_square, chi_square_limit, send, subchannels


def test_ties_are_not_biased() -> None:
    """Sequential requests (all always tie) spread over ten endpoints as chance would have it."""
    members = subchannels(10)
    picker = build(BUILDER, {}, members)
    counted = Counter(send(picker, PickInfo()) for _ in range(10_000))
    assert chi_square(counted, members) <= chi_square_limit(9)  # type: ignore[arg-type]


def test_ties_follow_weights() -> None:
    """Sequential requests over unlike weights spread in their proportion, so that the light ones get theirs too."""
    members = subchannels([1, 2, 5, 8])
    picker = build(BUILDER, {}, members)
    counted = Counter(send(picker, PickInfo()) for _ in range(16_000))
    assert chi_square(counted, members) <= chi_square_limit(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [[1] * 7, [1, 2, 3, 4]])
def test_held_requests_level_out_exactly(weights: list[int]) -> None:
    """Requests that stay: after each full round everybody holds exactly the weight's share."""
    members = subchannels(weights)
    picker = build(BUILDER, {}, members)
    for rounds in range(1, 6):
        for _ in range(sum(weights)):
            picker.pick()
        assert [m.inflight for m in members] == [rounds * weight for weight in weights]


def test_exact_under_sixteen_threads() -> None:
    """Sixteen threads hold requests at once: the counts never differ by more than one, and end at zero."""
    members = subchannels(8)
    picker = build(BUILDER, {}, members)
    barrier = threading.Barrier(16)
    spread: list[int] = []

    def work() -> None:
        for _ in range(30):
            barrier.wait(30)
            held = [picker.pick() for _ in range(5)]
            if barrier.wait(30) == 0:
                spread.append(max(m.inflight for m in members) - min(m.inflight for m in members))
            barrier.wait(30)
            for subchannel in held:
                assert subchannel is not None
                subchannel.end()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spread == [0] * 30  # 80 requests over 8 endpoints
    assert [m.inflight for m in members] == [0] * 8


def test_joiner_takes_part_in_the_carried_index() -> None:
    """After an update the index knows the counts of those that stayed, and the joiner is the least busy."""
    members = subchannels(3)
    first = build(BUILDER, {}, members[:2])
    for _ in range(6):
        first.pick()
    second = build(BUILDER, {}, members, previous=first)
    assert [second.pick() for _ in range(3)] == [members[2]] * 3
    assert isinstance(first, LeastConnections)
    assert isinstance(second, LeastConnections)
    assert first._index is second._index


def test_counts_before_the_picker_are_known() -> None:
    """A picker built over subchannels that are busy already starts from their counts."""
    members = subchannels(2)
    for _ in range(3):
        members[0].begin()
    picker = build(BUILDER, {}, members)
    assert [picker.pick() for _ in range(3)] == [members[1]] * 3


def test_index_stays_small() -> None:
    """Weights of many kinds and loads of many levels leave no trail of empty groups."""
    random = Random(1)
    members = subchannels([random.randrange(1, 1000) for _ in range(20)])
    picker = build(BUILDER, {}, members)
    assert isinstance(picker, LeastConnections)
    out: list[Subchannel] = []
    for _ in range(20_000):
        if len(out) < 2000 and random.random() < 0.52:
            chosen = picker.pick()
            assert chosen is not None
            out.append(chosen)
        elif out:
            out.pop(random.randrange(len(out))).end()
    assert len(picker._index._heap) <= 4 * 20 + 65


def test_a_request_may_end_in_the_middle_of_a_pick() -> None:
    """A finalizer ends a request while its own thread picks: no lock to wait for, and the next pick knows of it."""
    members = subchannels(3)
    ended: list[Subchannel] = []

    def random() -> float:
        if out:
            ended.append(out.pop())
            ended[-1].end()
        return 0.0

    out: list[Subchannel] = []
    picker = BUILDER.build(members, None, PickerContext(random=random, new_lock=threading.Lock))
    out.extend(m for m in (picker.pick(), picker.pick(), picker.pick()) if m is not None)
    picking = threading.Thread(target=picker.pick, daemon=True)
    picking.start()
    picking.join(10)
    assert not picking.is_alive()
    assert len(ended) == 1
    assert picker.pick() is ended[0]
