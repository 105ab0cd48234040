"""round_robin and weighted_round_robin: exact turns, and the position that a successor goes on from."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import islice

import pytest

from meshlib.pickers.base import PickerContext, PickInfo
from meshlib.pickers.round_robin import BUILDER as ROUND_ROBIN
from meshlib.pickers.round_robin import Turns
from meshlib.pickers.weighted_round_robin import BUILDER as WEIGHTED
from meshlib.pickers.weighted_round_robin import MAX_PERIOD, schedule
from meshlib.testing.contracts import build, chi_square, chi_square_limit, subchannels


def test_each_in_turn_from_a_random_start() -> None:
    """The order of the list, over and over; where it starts depends on the random generator."""
    members = subchannels(4)
    starts = set()
    for seed in range(40):
        picker = build(ROUND_ROBIN, {}, members, seed=seed)
        picked = [picker.pick() for _ in range(8)]
        start = members.index(picked[0])  # type: ignore[arg-type]
        assert picked == [members[(start + n) % 4] for n in range(8)]
        starts.add(start)
    assert starts == {0, 1, 2, 3}


def test_successor_goes_on() -> None:
    """After an update the turn goes on, so that frequent updates do not favour anybody, even when the set changes."""
    members = subchannels(4)
    for builder in (ROUND_ROBIN, WEIGHTED):
        picker = build(builder, {}, members)
        counted = Counter()
        for seed in range(400):
            picker = build(builder, {}, members, seed=seed, previous=picker)
            counted[picker.pick()] += 1
        assert set(counted.values()) == {100}
    picker = build(ROUND_ROBIN, {}, members[:3])
    first = picker.pick()
    grown = build(ROUND_ROBIN, {}, members, previous=picker)
    following = members.index(first) + 1  # type: ignore[arg-type]
    assert grown.pick() is members[following % 3]


def test_frequent_changes_of_weights_keep_the_proportions() -> None:
    """A schedule that changes before each pick starts anywhere, so that nobody is favoured or starves."""
    members = subchannels([1, 1, 2, 4])
    picker = build(WEIGHTED, {}, members)
    counted = Counter()
    for seed in range(4000):
        several = members if seed % 2 else list(reversed(members))
        picker = build(WEIGHTED, {}, several, seed=seed, previous=picker)
        counted[picker.pick()] += 1
    assert chi_square(counted, members) <= chi_square_limit(3)


def test_turns_without_the_gil() -> None:
    """The iterator for free-threaded interpreters goes round like a cycle, and is empty for no members."""
    members = subchannels(3)
    assert list(islice(Turns(members), 7)) == [*members, *members, members[0]]
    assert list(Turns([])) == []


def test_threads_share_the_turns_exactly() -> None:
    """Ten threads, 1,000 picks each: no turn is lost or doubled (with the GIL)."""
    members = subchannels(10)
    picker = build(ROUND_ROBIN, {}, members)
    lists: list[list[object]] = [[] for _ in range(10)]

    def work(mine: list[object]) -> None:
        mine.extend(picker.pick() for _ in range(1000))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(s for mine in lists for s in mine) == Counter(dict.fromkeys(members, 1000))


def test_exclusion_takes_the_next_in_turn() -> None:
    """An excluded one is passed over for the one behind it."""
    members = subchannels(3)
    picker = build(ROUND_ROBIN, {}, members)
    picked = [picker.pick(PickInfo(exclude={members[1]})) for _ in range(30)]
    assert set(picked) == {members[0], members[2]}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([5, 1, 1], [0, 1, 0, 0, 0, 2, 0]),
        ([4, 1, 1, 1, 1], [0, 1, 0, 2, 0, 3, 0, 4]),
        ([1, 1, 1], [0, 1, 2]),
        ([2, 4], [1, 0, 1]),
        ([7], [0]),
        ([], []),
    ],
)
def test_schedule(weights: list[int], expected: list[int]) -> None:
    """One period, evenly spread, divided by the greatest common divisor; a rotation of it is as good."""
    found = schedule(weights)
    doubled = found + found
    assert any(doubled[k : k + len(found)] == expected for k in range(max(1, len(found)))), found


def test_weights_too_large_for_a_period_are_scaled() -> None:
    """Huge weights give a bounded schedule with shares right to a 65,536th, and nobody drops out."""
    weights = [1_000_003, 500_009, 7]
    found = schedule(weights)
    assert len(found) <= MAX_PERIOD + len(weights)
    counted = Counter(found)
    for index, weight in enumerate(weights):
        assert counted[index] >= 1
        assert abs(counted[index] / len(found) - weight / sum(weights)) < 2 / MAX_PERIOD


def test_weighted_turns_are_exactly_proportional_under_the_picker() -> None:
    """Any full period of picks, from any start, has exactly the weights."""
    members = subchannels([3, 5, 8, 0])
    picker = build(WEIGHTED, {}, members, seed=7)
    for _ in range(5):
        assert Counter(picker.pick() for _ in range(16)) == {members[0]: 3, members[1]: 5, members[2]: 8}


def test_counting_pickers_need_a_lock() -> None:
    """A context without locks is refused when a picker that needs one is built, not later under load."""
    from meshlib.pickers.least_connections import BUILDER

    with pytest.raises(RuntimeError, match="new_lock"):
        BUILDER.build(subchannels(1), None, PickerContext(random=lambda: 0.0))
