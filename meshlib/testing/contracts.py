"""What every picker must do, as checks to run on it; for the built-in ones and for those of plugins.

@pytest.mark.parametrize("check", contracts.checks_for(BUILDER), ids=lambda check: check.__name__) def
test_contract(check): check(BUILDER, {})

A check takes a PickerBuilder and its settings and raises AssertionError. All of them run in well under a second
each, except those with 10,000 endpoints and those with threads, which take about one. Randomness is seeded,
time is virtual: a check that fails once fails always (those with threads check counts that must hold in
whatever order threads run).
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random

from meshlib.errors import ConfigError
from meshlib.model.endpoint import Endpoint
from meshlib.pickers.base import ContractClass, Picker, PickerBuilder, PickerContext, PickInfo
from meshlib.pickers.subchannel import Subchannel
from meshlib.testing.simulation import simulate

Check = Callable[[PickerBuilder, Mapping[str, object]], None]

#: Requests with keys of their own: enough that every one of a handful of endpoints owns hundreds.
KEYS = [f"user-{number}" for number in range(4000)]
#: The standard normal quantile of a one-sided test that a right picker fails once in 10,000 seeds; seeds are
#: fixed.
_QUANTILE = 3.719


def checks_for(builder: PickerBuilder) -> list[Check]:
    """The checks that a picker's contract class stands for."""
    return [*_ALL, *_BY_CLASS[builder.contract]]


# -- tools that tests of single pickers use too
# ---------------------------------------------------------------------


def subchannels(weights: int | Sequence[int]) -> list[Subchannel]:
    """Subchannels on addresses of their own: so many of weight 1, or one for each weight."""
    each = [1] * weights if isinstance(weights, int) else weights
    return [
        Subchannel(
            Endpoint(address=f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", port=8080, weight=weight),
            threading.Lock(),
        )
        for i, weight in enumerate(each)
    ]


def build(
    builder: PickerBuilder,
    settings: Mapping[str, object],
    members: Sequence[Subchannel],
    *,
    seed: int = 1,
    previous: Picker | None = None,
) -> Picker:
    """A picker with a seeded random generator and real locks."""
    context = PickerContext(random=Random(seed).random, previous=previous, new_lock=threading.Lock)
    return builder.build(members, builder.parse_config(settings, "settings."), context)


def send(picker: Picker, info: PickInfo) -> Subchannel | None:
    """One request that takes no time: picked, counted, ended."""
    chosen = picker.pick(info)
    if chosen is not None:
        if not picker.counts:
            chosen.begin()
        chosen.end()
    return chosen


def shares(picker: Picker, picks: int) -> Counter[Subchannel]:
    """How often each is picked by requests with unlike keys that do not overlap."""
    counted: Counter[Subchannel] = Counter()
    for number in range(picks):
        chosen = send(picker, PickInfo(now=1000.0, hash_key=f"key-{number}"))
        assert chosen is not None, "nothing was picked although endpoints of positive weight exist"
        counted[chosen] += 1
    return counted


def chi_square_limit(freedom: int) -> float:
    """The chi-square value that chance exceeds once in 10,000 times (Wilson and Hilferty's approximation, 1931)."""
    spread = 2.0 / (9.0 * freedom)
    return float(freedom * (1.0 - spread + _QUANTILE * spread**0.5) ** 3)


def chi_square(counted: Mapping[Subchannel, int], members: Sequence[Subchannel]) -> float:
    """How far counts are from the proportions of the weights."""
    picks, weight = sum(counted.values()), sum(member.endpoint.weight for member in members)
    expected = {
        member: picks * member.endpoint.weight / weight for member in members if member.endpoint.weight
    }
    return sum((counted[member] - count) ** 2 / count for member, count in expected.items())


def owners(picker: Picker, keys: Sequence[str] = KEYS) -> dict[str, str]:
    """Where each key goes, by ``ip:port``."""
    found = {}
    for key in keys:
        chosen = send(picker, PickInfo(now=1000.0, hash_key=key))
        assert chosen is not None
        found[key] = chosen.endpoint.authority
    return found


# -- every picker
# ---------------------------------------------------------------------------------------------------


def empty_set_gives_none(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """No subchannels: None, with and without a key, and no exception."""
    picker = build(builder, settings, [])
    assert picker.pick(PickInfo(now=1.0)) is None
    assert picker.pick(PickInfo(now=1.0, hash_key="user")) is None
    assert list(picker.subchannels) == []


def only_one_is_always_picked(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """One subchannel gets everything, however busy it is."""
    members = subchannels(1)
    picker = build(builder, settings, members)
    assert all(picker.pick(PickInfo(now=float(n), hash_key=str(n))) is members[0] for n in range(50))


def both_of_two_are_picked(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Two subchannels: both get requests."""
    members = subchannels(2)
    assert set(shares(build(builder, settings, members), 200)) == set(members)


def ten_thousand_endpoints(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """A set of 10,000: 2,000 picks are of members, and of more than 1,300 different ones."""
    members = subchannels(10_000)
    counted = shares(build(builder, settings, members), 2_000)
    assert set(counted) <= set(members)
    assert len(counted) > 1_300, f"only {len(counted)} of 10,000 endpoints were picked"


def weight_zero_is_never_picked(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Weight 0 gets nothing: beside others, with everything else excluded, and when all have weight 0."""
    members = subchannels([0, 1, 0, 3, 2, 0])
    picker = build(builder, settings, members)
    assert {s.endpoint.weight for s in shares(picker, 2000)} == {1, 2, 3}
    usable = {s for s in members if s.endpoint.weight}
    assert picker.pick(PickInfo(now=1.0, hash_key="user", exclude=usable)) is None
    assert build(builder, settings, subchannels([0, 0])).pick(PickInfo(now=1.0, hash_key="user")) is None


def exclusion_is_honoured(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Excluded subchannels are not picked, all others can be, and when all are excluded the answer is None."""
    members = subchannels(6)
    picker = build(builder, settings, members)
    for size in range(1, 6):
        exclude = frozenset(members[:size])
        seen = {send(picker, PickInfo(now=1.0, hash_key=key, exclude=exclude)) for key in KEYS[:300]}
        assert seen == set(members[size:]), f"with {size} of 6 excluded"
    assert picker.pick(PickInfo(now=1.0, hash_key="user", exclude=frozenset(members))) is None
    stranger = subchannels(1)[0]
    assert picker.pick(PickInfo(now=1.0, hash_key="user", exclude={stranger})) in members


def nobody_starves(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Every endpoint of positive weight gets some of the requests."""
    members = subchannels([1, 1, 2, 3, 5, 8, 13])
    assert set(shares(build(builder, settings, members), 4000)) == set(members)


def counts_are_kept(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """``counts`` says the truth: a pick has begun a request on its subchannel, or on none."""
    members = subchannels(3)
    picker = build(builder, settings, members)
    for number in range(1, 21):
        picker.pick(PickInfo(now=1.0, hash_key=str(number)))
        assert sum(s.inflight for s in members) == (number if picker.counts else 0)
    picker.pick(PickInfo(now=1.0, exclude=frozenset(members)))
    assert sum(s.inflight for s in members) == (20 if picker.counts else 0)


def counts_are_exact_under_threads(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Eight threads pick and end: afterwards nothing is in flight and every request was counted once."""
    members = subchannels(5)
    picker = build(builder, settings, members)
    threads, each = 8, 1500

    def work(thread: int) -> None:
        for number in range(each):
            send(picker, PickInfo(now=1.0, hash_key=f"{thread}-{number}"))

    _together(work, threads)
    assert [s.inflight for s in members] == [0] * 5
    assert sum(s.requests for s in members) == threads * each


def set_changes_under_concurrent_picks(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Pickers are swapped while four threads pick: a swapped-in picker picks only from its own list, counts
    stay exact.

    What left the set may get requests from threads that still hold an older picker, and none after they are
    done.
    """
    everybody = subchannels(30)
    current: list[Picker] = [build(builder, settings, everybody[:10])]
    done = threading.Event()
    sent = [0] * 4

    def work(thread: int) -> None:
        for number in itertools.count():
            if done.is_set():
                return
            chosen = send(current[0], PickInfo(now=1.0, hash_key=f"{thread}-{number}"))
            assert chosen is not None
            sent[thread] += 1

    def change(thread: int) -> None:
        try:
            for step in range(30):
                members = everybody[step % 20 : step % 20 + 1 + step % 10]
                picker = build(builder, settings, members, previous=current[0])
                current[0] = picker
                for key in KEYS[:20]:
                    assert send(picker, PickInfo(now=1.0, hash_key=key)) in members
        finally:
            done.set()

    _together(lambda thread: work(thread) if thread < 4 else change(thread), 5)
    assert [s.inflight for s in everybody] == [0] * 30
    assert sum(s.requests for s in everybody) == sum(sent) + 30 * 20
    final = {send(current[0], PickInfo(now=1.0, hash_key=key)) for key in KEYS[:300]}
    assert final <= set(current[0].subchannels)


def foreign_predecessor_is_ignored(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """A predecessor of another policy does not disturb."""

    class Foreign:
        counts = False
        contract = ContractClass.UNIFORM
        subchannels: Sequence[Subchannel] = ()

        def pick(self, info: PickInfo = PickInfo(), /) -> Subchannel | None:  # noqa: B008 (immutable in use)
            return None

    members = subchannels(3)
    assert send(build(builder, settings, members, previous=Foreign()), PickInfo(now=1.0)) in members


def settings_are_strict(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """An unknown key, and a value of a strange type for a known one, is a ConfigError that names place and key."""
    for wrong in ({**settings, "no_such_setting": 1}, *({**settings, key: object()} for key in settings)):
        try:
            builder.parse_config(wrong, "the-place.")
        except ConfigError as error:
            place = error.where
        else:
            raise AssertionError(f"{builder.name} accepted {wrong!r}")
        assert place.startswith("the-place."), place


# -- by class
# -------------------------------------------------------------------------------------------------------


def picks_are_uniform(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Ten endpoints, 20,000 picks: no further from equal shares than chance (chi-square), whatever the weights."""
    members = subchannels(10)
    counted = shares(build(builder, settings, members), 20_000)
    assert chi_square(counted, members) <= chi_square_limit(9), sorted(counted.values())
    heavy = subchannels([9, 1])
    counted = shares(build(builder, settings, heavy), 4_000)
    assert abs(counted[heavy[0]] - 2_000) < 200


def picks_follow_weights(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Weights of 1 to 20, and 1 beside 1,000: no further from proportional shares than chance (chi-square)."""
    for weights in (list(range(1, 21)), [1000, 1, 1, 1], [7]):
        members = subchannels([*weights, 0])
        counted = shares(build(builder, settings, members), 21_000)
        if len(weights) > 1:
            assert chi_square(counted, members) <= chi_square_limit(len(weights) - 1), (
                weights,
                counted.values(),
            )


def busy_endpoints_are_avoided(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """One of four has 50 requests in flight, all else being equal: it gets less than half of its share."""
    members = subchannels(4)
    picker = build(builder, settings, members)
    for member in members:
        member.observe(999.0, 0.01)
    for _ in range(50):
        members[0].begin()
        members[0].observe(999.0, 0.01)
    if members[0].on_load is not None:
        members[0].on_load(members[0])
    counted: Counter[Subchannel] = Counter()
    for number in range(2000):
        chosen = send(picker, PickInfo(now=1000.0 + number / 1000))
        assert chosen is not None
        counted[chosen] += 1
    assert counted[members[0]] < 2000 / 4 / 2, counted[members[0]]


def load_follows_weights(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Endpoints that are alike apart from their weights, twenty requests in flight: shares within a quarter of
    the weights.

    And with equal weights within a tenth of each other.
    """
    for weights, tolerance in (([1, 2, 3, 4], 0.25), ([1, 1, 1, 1], 0.1)):
        members = subchannels(weights)
        picker = build(builder, settings, members)
        counted = simulate(picker, lambda s, now: (0.02, False), Random(3).random, rate=1000, start=0, end=12)
        for member in members:
            fair = counted.total() * member.endpoint.weight / sum(weights)
            assert abs(counted[member] - fair) <= tolerance * fair, (weights, [counted[m] for m in members])


def slow_endpoints_get_less(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """One of four takes ten times as long under load: it gets less than a third of the share of the others."""
    members = subchannels(4)
    picker = build(builder, settings, members)

    def answer(member: Subchannel, now: float) -> tuple[float, bool]:
        return (0.1 if member is members[0] else 0.01), False

    simulate(picker, answer, Random(4).random, rate=2000, start=0, end=1)
    counted = simulate(picker, answer, Random(5).random, rate=2000, start=1, end=6)
    assert counted[members[0]] * 3 < counted[members[1]], [counted[m] for m in members]


def same_key_same_endpoint(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Keys go where they went before, after a rebuild, in another process (other seed) and from another order
    of the list.

    Text and its UTF-8 bytes are the same key.
    """
    members = subchannels(12)
    first = owners(build(builder, settings, members))
    assert owners(build(builder, settings, subchannels(12), seed=99)) == first
    picker = build(builder, settings, list(reversed(members)), seed=5)
    assert owners(picker) == first
    for key in KEYS[:200]:
        chosen = send(picker, PickInfo(now=1.0, hash_key=key.encode()))
        assert chosen is not None
        assert chosen.endpoint.authority == first[key]


def keys_spread(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Ten endpoints: each owns between half of and twice its share of the keys. Without a key all get requests."""
    members = subchannels(10)
    picker = build(builder, settings, members)
    counted = Counter(owners(picker).values())
    fair = len(KEYS) / 10
    assert all(fair / 2 < counted[s.endpoint.authority] < fair * 2 for s in members), counted
    assert {send(picker, PickInfo(now=1.0)) for _ in range(500)} == set(members)


def keys_follow_weights(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """Weights 1, 2 and 5: shares of keys within a third of the weights."""
    members = subchannels([1, 2, 5])
    counted = Counter(owners(build(builder, settings, members)).values())
    for member in members:
        fair = len(KEYS) * member.endpoint.weight / 8
        assert abs(counted[member.endpoint.authority] - fair) < fair / 3, counted


def few_keys_move(builder: PickerBuilder, settings: Mapping[str, object]) -> None:
    """One of twenty leaves, or a twenty-first joins: at most three times the unavoidable part of the keys
    moves.

    The keys of the one that left all move, of course, and a joiner gets some.
    """
    members = subchannels(21)
    twenty = owners(build(builder, settings, members[:20]))
    nineteen = owners(build(builder, settings, members[:7] + members[8:20]))
    gone = members[7].endpoint.authority
    assert gone not in nineteen.values()
    assert moved(twenty, nineteen) <= 3 * len(KEYS) / 20
    more = owners(build(builder, settings, members))
    assert members[20].endpoint.authority in more.values()
    assert moved(twenty, more) <= 3 * len(KEYS) / 21


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """How many keys have another owner."""
    return sum(after[key] != owner for key, owner in before.items())


def _together(work: Callable[[int], None], threads: int) -> None:
    """Run ``work(number)`` in so many threads at once; the first exception of any of them is raised here."""
    start = threading.Barrier(threads)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            start.wait(30)
            work(number)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


_ALL: Sequence[Check] = (
    empty_set_gives_none,
    only_one_is_always_picked,
    both_of_two_are_picked,
    ten_thousand_endpoints,
    weight_zero_is_never_picked,
    exclusion_is_honoured,
    nobody_starves,
    counts_are_kept,
    counts_are_exact_under_threads,
    set_changes_under_concurrent_picks,
    foreign_predecessor_is_ignored,
    settings_are_strict,
)
_BY_CLASS: Mapping[ContractClass, Sequence[Check]] = {
    ContractClass.UNIFORM: (picks_are_uniform,),
    ContractClass.WEIGHTED: (picks_follow_weights,),
    ContractClass.LOAD_AWARE: (busy_endpoints_are_avoided, load_follows_weights, slow_endpoints_get_less),
    ContractClass.HASH: (same_key_same_endpoint, keys_spread, keys_follow_weights, few_keys_move),
}
