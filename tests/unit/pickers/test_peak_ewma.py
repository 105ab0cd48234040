"""peak_ewma in virtual time: failures, slow endpoints, joiners, missing and old samples (decision D6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from meshlib.pickers.base import PickInfo
from meshlib.pickers.peak_ewma import BUILDER, MEDIAN_AGE, PEERS, PeakEwma
from meshlib.pickers.subchannel import Subchannel
from meshlib.testing.contracts import build, subchannels
from meshlib.testing.simulation import Answer, simulate

#: Requests per second: sequential use, a busy client, and more than the endpoints' latency lets one connection carry.
RATES = [50, 500, 2000]


def noisy(seed: int, latency: Callable[[Subchannel, float], float]) -> Answer:
    """Answers that vary as real ones do: log-normal, with a standard deviation of about a third."""
    random = Random(seed)
    return lambda member, now: (latency(member, now) * random.lognormvariate(0.0, 0.3), False)


def share(counted: Counter[Subchannel], member: Subchannel) -> float:
    return counted[member] / counted.total()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("size", [2, 4, 10])
def test_endpoint_that_fails_at_once_gets_at_most_its_share(rate: int, size: int) -> None:
    """One endpoint fails in 1 ms while the others take 10 ms: never more than its share, and next to nothing later."""
    members = subchannels(size)
    picker = build(BUILDER, {}, members)
    random = Random(rate)

    def answer(member: Subchannel, now: float) -> tuple[float, bool]:
        return (0.001, True) if member is members[0] else (0.01 * random.lognormvariate(0, 0.3), False)

    first = simulate(picker, answer, random.random, rate=rate, start=0, end=1)
    assert share(first, members[0]) <= 1 / size
    later = simulate(picker, answer, random.random, rate=rate, start=1, end=60)
    assert share(later, members[0]) < 0.01


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_equals_share_when_one_request_follows_the_other(size: int, seed: int) -> None:
    """Nothing in flight, latencies that vary as they do: nobody of a few equals is left out of 60 requests."""
    members = subchannels(size)
    picker = build(BUILDER, {}, members, seed=seed)
    answer = noisy(seed, lambda member, now: 0.001)
    counted = simulate(picker, answer, Random(seed).random, rate=100, start=0, end=0.6)
    assert all(share(counted, member) > 0.1 / size for member in members)


def test_a_slow_first_answer_is_not_the_end() -> None:
    """Three times the latency at first, and then as fast as the others: it is seen again within the first second."""
    members = subchannels(3)
    for member in members:
        member.observe(0.0, 0.003 if member is members[0] else 0.001)
    answer = noisy(1, lambda member, now: 0.001)
    counted = simulate(build(BUILDER, {}, members), answer, Random(1).random, rate=300, start=0, end=1)
    assert share(counted, members[0]) > 0.02


@pytest.mark.parametrize("rate", RATES)
def test_one_of_four_turns_ten_times_slower(rate: int) -> None:
    """Share below 10 % within 2 s and as long as it lasts; at least three quarters of its share 40 s after its end."""
    members = subchannels(4)
    picker = build(BUILDER, {}, members)
    random = Random(rate).random
    answer = noisy(rate, lambda member, now: 0.1 if member is members[0] and 15 <= now < 45 else 0.01)
    before = simulate(picker, answer, random, rate=rate, start=0, end=15)
    assert share(before, members[0]) > 0.15
    simulate(picker, answer, random, rate=rate, start=15, end=17)
    for start in (17, 24, 31, 38):
        during = simulate(picker, answer, random, rate=rate, start=start, end=start + 7)
        assert share(during, members[0]) < 0.1
    simulate(picker, answer, random, rate=rate, start=45, end=85)
    after = simulate(picker, answer, random, rate=rate, start=85, end=100)
    assert share(after, members[0]) > 0.75 / 4


@pytest.mark.parametrize("rate", RATES)
def test_one_slow_and_one_failing_do_not_feed_each_other(rate: int) -> None:
    """Every sixth draw meets both bad ones of five; the one that fails less must not get it for that."""
    members = subchannels(5)
    picker = build(BUILDER, {}, members)
    random = Random(rate)

    def answer(member: Subchannel, now: float) -> tuple[float, bool]:
        if member is members[0]:
            return 0.001, True
        return (0.25 if member is members[1] else 0.005 * random.lognormvariate(0, 0.3)), False

    simulate(picker, answer, random.random, rate=rate, start=0, end=2)
    later = simulate(picker, answer, random.random, rate=rate, start=2, end=10)
    assert share(later, members[0]) < 0.01
    assert share(later, members[1]) < 0.01


def test_when_all_are_as_slow_nobody_is_bad() -> None:
    """The median is everybody's: all of them are used, alike."""
    members = subchannels(4)
    picker = build(BUILDER, {}, members)
    counted = simulate(picker, noisy(1, lambda m, now: 2.0), Random(1).random, rate=50, start=0, end=60)
    assert all(share(counted, member) == pytest.approx(0.25, abs=0.08) for member in members)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("failing", [True, False])
def test_a_bad_endpoint_stays_left_out_while_another_one_ramps(rate: int, failing: bool) -> None:
    """A rolling update keeps somebody ramping all the time; that must not bring traffic back to what is bad."""
    members = subchannels(4)
    bad, joiner = members[0], members[3]
    joiner.joined_at = 20.0
    random = Random(rate)

    def answer(member: Subchannel, now: float) -> tuple[float, bool]:
        if member is bad:
            return (0.001, True) if failing else (0.25, False)
        return 0.005 * random.lognormvariate(0, 0.3), False

    simulate(build(BUILDER, {}, members[:3]), answer, random.random, rate=rate, start=10, end=20)
    during = simulate(build(BUILDER, {}, members), answer, random.random, rate=rate, start=20, end=30)
    assert share(during, bad) < 0.02


@pytest.mark.parametrize("rate", [500, 2000])
def test_joiner_follows_the_slow_start_curve(rate: int) -> None:
    """A joiner's share follows ramp / (3 + ramp) within a tenth of the full share, then it is full."""
    members = subchannels(4)
    members[0].joined_at = 100.0
    answer = noisy(rate, lambda member, now: 0.01)
    random = Random(rate).random
    simulate(build(BUILDER, {}, members[1:]), answer, random, rate=rate, start=90, end=100)
    picker = build(BUILDER, {}, members)
    for second in range(10):
        counted = simulate(picker, answer, random, rate=4 * rate, start=100 + second, end=101 + second)
        ramp = max(0.1, min(1.0, (second + 0.5) / 10))
        assert share(counted, members[0]) == pytest.approx(ramp / (3 + ramp), abs=0.025)
    counted = simulate(picker, answer, random, rate=4 * rate, start=110, end=115)
    assert share(counted, members[0]) == pytest.approx(0.25, abs=0.05)


def test_nobody_ramps_when_all_are_new() -> None:
    """Four endpoints that joined together share alike from the first second."""
    members = subchannels(4)
    for member in members:
        member.joined_at = 100.0
    answer = noisy(1, lambda member, now: 0.01)
    counted = simulate(build(BUILDER, {}, members), answer, Random(1).random, rate=2000, start=100, end=101)
    assert all(share(counted, member) == pytest.approx(0.25, abs=0.05) for member in members)


def test_slow_start_can_be_switched_off() -> None:
    """``slow_start_window = 0``: a joiner gets its share at once, even when its clock is a little ahead."""
    members = subchannels(4)
    members[0].joined_at = 100.1
    answer = noisy(1, lambda member, now: 0.01)
    picker = build(BUILDER, {"slow_start_window": 0}, members)
    counted = simulate(picker, answer, Random(1).random, rate=2000, start=100, end=101)
    assert share(counted, members[0]) == pytest.approx(0.25, abs=0.05)


def test_without_samples_requests_in_flight_decide() -> None:
    """Nobody has answered yet: two choices keep the counts of ten endpoints within four of each other."""
    members = subchannels(10)
    picker = build(BUILDER, {}, members)
    for _ in range(200):
        assert picker.pick(PickInfo(now=1.0)) is not None
    assert max(m.inflight for m in members) - min(m.inflight for m in members) <= 4


def test_ties_are_random() -> None:
    """Of two without samples and requests each is picked about half of the time."""
    members = subchannels(2)
    counted: Counter[Subchannel] = Counter()
    for seed in range(400):
        chosen = build(BUILDER, {}, members, seed=seed).pick(PickInfo(now=1.0))
        assert chosen is not None
        chosen.end()
        counted[chosen] += 1
    assert 140 < counted[members[0]] < 260


def test_endpoint_without_sample_counts_as_the_median_of_its_peers() -> None:
    """Preferred to a peer slower than the median, left for a faster one."""
    members = subchannels(6)
    for member, latency in zip(members, (0.001, 0.01, 0.011, 0.012, 0.1), strict=False):
        member.observe(0.0, latency)
    unknown = members[5]
    for peer, expected in ((members[0], members[0]), (members[4], unknown)):
        picker = build(BUILDER, {}, [peer, unknown])
        assert isinstance(picker, PeakEwma)
        picker._median = (0.011, 1.0)
        counted: Counter[Subchannel] = Counter()
        for _ in range(400):
            chosen = picker.pick(PickInfo(now=1.0))
            assert chosen is not None
            chosen.end()
            counted[chosen] += 1
        assert share(counted, expected) > 0.98
    picker = build(BUILDER, {}, members)
    assert isinstance(picker, PeakEwma)
    assert picker._peers(0.0, 9.9) == 0.011
    members[0].observe(MEDIAN_AGE / 2, 0.5)
    members[1].observe(MEDIAN_AGE / 2, 0.5)
    assert picker._peers(MEDIAN_AGE / 2, 9.9) == 0.011, "kept for a moment"
    assert picker._peers(MEDIAN_AGE, 9.9) > 0.09, "and then taken anew"


def test_median_of_many_is_taken_of_some() -> None:
    """With 10,000 endpoints the median comes from a sample, and is near the true one."""
    members = subchannels(10_000)
    for index, member in enumerate(members):
        member.observe(0.0, 0.001 + index * 1e-6)
    picker = build(BUILDER, {}, members)
    assert isinstance(picker, PeakEwma)
    assert len(members) > PEERS
    assert picker._peers(0.0, 9.9) == pytest.approx(0.006, rel=0.35)


def test_old_sample_is_probed_again_but_by_one_request_at_a_time() -> None:
    """After a long rest an endpoint that failed is tried, and not by a herd while the answer is awaited."""
    members = subchannels(2)
    members[0].observe(0.0, 0.001, failed=True)
    picker = build(BUILDER, {}, members)
    for now in range(100):
        members[1].observe(float(now), 0.01)
        chosen = picker.pick(PickInfo(now=float(now)))
        if chosen is members[0]:
            break
        assert chosen is members[1]
        chosen.end()
    else:
        pytest.fail("never probed")
    assert 50 < now < 90, "5 s fade to 10 ms in 62 s"
    herd = [picker.pick(PickInfo(now=float(now))) for _ in range(40)]
    assert 8 <= herd.count(members[0]) <= 25, "as busy as its peer, not busier"


def test_hung_endpoint_is_not_flooded() -> None:
    """An endpoint that stops answering gives no samples at all; what it holds in flight keeps requests away."""
    members = subchannels(4)
    picker = build(BUILDER, {}, members)
    answer = noisy(1, lambda member, now: 300.0 if member is members[0] and now >= 10 else 0.01)
    random = Random(1).random
    for member in members:
        member.observe(0.0, 0.01)
    counted = simulate(picker, answer, random, rate=200, start=10, end=40)
    assert share(counted, members[0]) < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_the_first_sample_right_after_a_look_at_peers_that_had_none(seed: int) -> None:
    """A median of nothing is not remembered: the picks that follow compare with the sample that came meanwhile."""
    members = subchannels(3)
    picker = build(BUILDER, {}, members, seed=seed)
    retried = picker.pick(PickInfo(now=1.0, exclude={members[0]}))  # looks for a median, and there is none
    assert retried is not None
    members[0].observe(1.01, 0.005)
    for _ in range(50):
        picked = picker.pick(PickInfo(now=1.02))
        assert picked is not None
        picked.end()
