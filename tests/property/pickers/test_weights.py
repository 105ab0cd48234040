"""Weights: schedule, alias table and ring sizes are exactly what they should be for any weights."""

from __future__ import annotations

from collections import Counter
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.pickers.alias import AliasTable
from meshlib.pickers.ring_hash import points_of
from meshlib.pickers.weighted_round_robin import MAX_PERIOD, schedule

weights = st.lists(st.integers(1, 200), min_size=1, max_size=12)


@given(weights)
def test_schedule_is_exactly_proportional(given_weights: list[int]) -> None:
    """Each appears weight / gcd times in one period."""
    divisor = gcd(*given_weights)
    assert Counter(schedule(given_weights)) == {i: w // divisor for i, w in enumerate(given_weights)}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_schedule_is_smooth(given_weights: list[int]) -> None:
    """After any number of turns each has had its share of them to within two turns."""
    turns = schedule(given_weights)
    counted: Counter[int] = Counter()
    for done, index in enumerate(turns, 1):
        counted[index] += 1
        for i, weight in enumerate(given_weights):
            assert abs(counted[i] - done * weight / sum(given_weights)) < 2


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_schedule_is_bounded(given_weights: list[int]) -> None:
    """Whatever the weights, the period is bounded and nobody is missing."""
    turns = schedule(given_weights)
    assert len(turns) <= MAX_PERIOD + len(given_weights)
    assert set(turns) == set(range(len(given_weights)))


@given(weights)
def test_alias_table_has_the_exact_probabilities(given_weights: list[int]) -> None:
    """The probability that the table gives to each index, added up from its columns, is the weight's share."""
    table = AliasTable(given_weights)
    size = len(given_weights)
    mass = [0.0] * size
    for column in range(size):
        keep = table._keep[column]
        mass[column] += keep / size
        mass[table._aliases[column]] += (1 - keep) / size
    assert mass == pytest.approx([weight / sum(given_weights) for weight in given_weights])


@given(weights, st.floats(0, 1, exclude_max=True))
def test_alias_table_draws_what_its_columns_say(given_weights: list[int], number: float) -> None:
    """A draw is the column of the random number or that column's alias, by the number's fraction."""
    table = AliasTable(given_weights)
    x = number * len(given_weights)
    column, fraction = int(x), x - int(x)
    expected = column if fraction < table._keep[column] else table._aliases[column]
    assert table.draw(lambda: number) == expected


@given(weights, st.integers(1, 5000), st.integers(1, 5000))
def test_ring_is_as_long_as_planned(given_weights: list[int], one: int, other: int) -> None:
    """Everybody has a point; the ring is not longer than its maximum (or the number of endpoints) and proportional."""
    low, high = sorted((one, other))
    points = points_of(given_weights, low, high)
    total = sum(given_weights)
    assert min(points) >= 1
    assert sum(points) <= max(high, 2 * len(given_weights)) + len(given_weights)
    if high >= total * low:
        assert sum(points) >= low
        for weight, count in zip(given_weights, points, strict=True):
            assert abs(count - sum(points) * weight / total) <= 1


def test_equal_weights_get_equal_points() -> None:
    """A42's example sizes: ten endpoints on a ring of at least 1,024 have 103 points each."""
    assert points_of([1] * 10, 1024, 4096) == [103] * 10
    assert points_of([1, 3], 1024, 4096) == [256, 768]
    assert points_of([1] * 3, 1024, 4096) == [342] * 3
