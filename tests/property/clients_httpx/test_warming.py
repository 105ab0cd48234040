"""Connections opened ahead: the rule, and the bounds of a plan whatever happens to it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshlib.clients.httpx.warming import AT_ONCE, IN_ALL, MANY, PER_ENDPOINT, SPREAD, Plan, wanted

COUNTS = st.lists(st.integers(0, 50), max_size=150)


@given(COUNTS, st.integers(0, 20_000))
def test_a_joiner_gets_no_more_than_its_peers_and_its_share(carried: list[int], members: int) -> None:
    """At least half of the peers carry as much, and a set of joiners alone gets what traffic uses, but for rounding."""
    got = wanted(carried, members)
    assert 0 <= got <= PER_ENDPOINT
    if got:
        assert members <= MANY
        assert sum(count >= got for count in carried) * 2 >= len(carried)
        assert (got - 1) * members < sum(carried)


def test_the_rule_by_example() -> None:
    """Hardly any traffic, traffic to few, an even load, a doubled set, one that replaces a single address."""
    assert wanted([0] * 99 + [1], 101) == 0
    assert wanted([5, 5, 0, 0, 0], 6) == 0
    assert wanted([1, 1, 1, 1, 1], 6) == 1
    assert wanted([4, 4, 4], 6) == 2
    assert wanted([50], 10) == 5
    assert wanted([3, 3, 3], MANY + 1) == 0
    assert wanted([], 3) == 0


@given(st.data())
def test_a_plan_keeps_its_bounds_and_ends(data: st.DataObject) -> None:
    """Whatever comes in whatever order: never too many at once or in all, none for who left, and nothing stays."""
    plan: Plan[int] = Plan(lambda: data.draw(st.floats(0, 1, exclude_max=True)))
    delayed: list[int] = []
    opening: list[int] = []
    asked: dict[int, int] = {}

    def begin(keys: list[int]) -> None:
        for key in keys:
            assert plan.want(key) == asked[key] > 0
        opening.extend(keys)
        assert len(opening) <= AT_ONCE

    for _ in range(data.draw(st.integers(1, 30))):
        step = data.draw(st.sampled_from(["join", "due", "ended", "left", "stop"]))
        if step == "join":
            each = data.draw(st.integers(0, PER_ENDPOINT))
            joiners = data.draw(st.lists(st.integers(0, 9), unique=True, max_size=6))
            known = set(delayed) | set(opening)
            for delay, key in plan.joined(joiners, each):
                assert 0 <= delay < SPREAD
                assert key in joiners
                asked[key] = each
                delayed.append(key)
                assert key not in known or not plan.want(key) or plan.want(key) == each
        elif step == "due" and delayed:
            begin(plan.due(delayed.pop(data.draw(st.integers(0, len(delayed) - 1)))))
        elif step == "ended" and opening:
            begin(plan.ended(opening.pop(), data.draw(st.booleans())))
        elif step == "left":
            plan.left(data.draw(st.integers(0, 9)))
        elif step == "stop":
            plan.stop()
            delayed.clear()  # the driver's timers are cancelled
        assert plan.planned <= IN_ALL
    while delayed or opening:
        begin(plan.due(delayed.pop()) if delayed else plan.ended(opening.pop(), True))
    assert (plan.planned, plan.joiners()) == (0, [])
