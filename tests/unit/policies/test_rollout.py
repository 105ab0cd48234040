"""The roll-out's decisions: the lowest wins, and a share is a share of every kind of request."""

from __future__ import annotations

import itertools
import random

import pytest

from meshlib.policies.rollout import Mode, Wish, decide, following, in_share

ORDER = [Mode.OFF, Mode.OBSERVE, Mode.ON]


@pytest.mark.parametrize("local, annotated", [*itertools.product(ORDER, [None, *ORDER])])
def test_an_annotation_only_lowers(local: Mode, annotated: Mode | None) -> None:
    """Whatever is said where: never more than the local mode, and what the Service lowers names the Service."""
    found = decide(Wish(mode=local, mode_source="here"), annotated, "there")
    assert ORDER.index(found.mode) == min(ORDER.index(local), ORDER.index(annotated or Mode.ON))
    assert found.source == ("there" if found.mode is not local else "here")


@pytest.mark.parametrize("mode, annotated", [*itertools.product(ORDER, [None, *ORDER])])
def test_what_is_not_in_the_list_is_off(mode: Mode, annotated: Mode | None) -> None:
    """Neither a mode nor an annotation brings it back; the list is named."""
    found = decide(Wish(mode=mode, allowed=False, allowed_source="the list"), annotated, "there")
    assert (found.mode, found.source) == (Mode.OFF, "the list")


@pytest.mark.parametrize(
    "wish, everything, shown",
    [
        (Wish(), True, "on at 100 %"),
        (Wish(percent=99.9), False, "on at 99.9 %"),
        (Wish(percent=0), False, "on at 0 %"),
        (Wish(mode=Mode.OBSERVE), False, "observe"),
        (Wish(mode=Mode.OFF, percent=100), False, "off"),
    ],
)
def test_only_on_at_a_hundred_is_everything(wish: Wish, everything: bool, shown: str) -> None:
    """The one case in which nobody has to ask; and how each is shown."""
    found = decide(wish)
    assert (found.everything, str(found)) == (everything, shown)


def points(count: int, start: float) -> list[float]:
    found = [start]
    while len(found) < count:
        found.append(following(found[-1]))
    return found


def test_none_and_all_are_exact() -> None:
    """0 is nobody and 100 is everybody, whatever the point; the highest there is below 1 included."""
    seen = [*points(20_000, random.Random(1).random()), 0.0, 1.0 - 2**-53]
    assert all(0.0 <= point < 1.0 for point in seen)
    assert not any(in_share(point, 0.0) for point in seen)
    assert all(in_share(point, 100.0) for point in seen)


@pytest.mark.parametrize("percent", [0.1, 1.0, 5.0, 33.3, 50.0, 99.0])
@pytest.mark.parametrize("every", [1, 2, 3, 5, 10])
def test_a_share_is_kept_by_every_kind_of_request(percent: float, every: int) -> None:
    """Of all requests, and of each second, third, fifth, tenth one, from the first hundred on: within a few."""
    for start in (0.0, 0.25, 0.618, 0.999):
        seen = points(10_000 * every, start)[::every]
        for count in (100, 1000, 10_000):
            taken = sum(in_share(point, percent) for point in seen[:count])
            assert abs(taken - count * percent / 100) <= 5
