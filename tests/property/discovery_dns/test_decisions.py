"""The pure cores of the DNS room under arbitrary histories and texts."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from meshlib.discovery.dns.assemble import PortSpec, plain_entries, snapshot, srv_entries
from meshlib.discovery.dns.names import Walk, candidates, combine, parse_hosts, parse_resolv_conf
from meshlib.discovery.dns.question import Change, QuestionState
from meshlib.discovery.dns.records import Answer, Kind, Question, RecordType, SrvRecord
from meshlib.discovery.dns.schedule import Limits
from meshlib.discovery.dns.servers import ServerBoard
from meshlib.errors import DataError

kinds = st.sampled_from(list(Kind))
randoms = st.floats(0, 1, exclude_max=True)
addresses = st.sets(st.sampled_from([f"10.0.0.{n}" for n in range(1, 6)]), min_size=1).map(
    lambda s: tuple(sorted(s))
)
ttls = st.none() | st.integers(0, 2**31 - 1)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    kind = draw(kinds)
    found = draw(addresses) if kind is Kind.RECORDS else ()
    return Answer(kind, addresses=found, ttl=draw(ttls), server=draw(st.sampled_from(["a:53", "b:53"])))


@given(st.lists(st.tuples(answers(), randoms, st.floats(0, 100)), max_size=40))
def test_any_history_of_answers(history: list[tuple[Answer, float, float]]) -> None:
    """Over any history: failures never change the truth, one negative never empties, delays stay in their bounds."""
    limits = Limits()
    state = QuestionState(Question("a.test", RecordType.A), limits)
    now, negatives = 0.0, 0
    for answer, random, late in history:
        now = max(now, state.due) + late
        before = state.good
        change = state.feed(answer, now, random)
        delay = state.due - now
        assert limits.floor - 1e-9 <= delay <= max(limits.ceiling, limits.backoff_last) + 1e-9
        if answer.kind is Kind.UNKNOWN:
            assert state.good is before
            assert change in (Change.FAILED, Change.NONE)
            continue
        negatives = 0 if answer.kind is Kind.RECORDS else negatives + 1
        assert state.good is not None
        if answer.kind is Kind.RECORDS:
            assert state.good is answer
        elif negatives == 1 and before is not None and before.kind is Kind.RECORDS:
            assert state.good is before, "one negative emptied the set"
        else:
            assert state.good is answer, "a confirmed negative was ignored"
        assert not state.stale


@given(st.text(max_size=400))
def test_any_resolv_conf_and_hosts(text: str) -> None:
    """Whatever stands in the files, they are read, and every candidate is a name that DNS allows."""
    conf = parse_resolv_conf(text)
    assert 1 <= len(conf.servers) <= 3
    assert 0 <= conf.ndots <= 15
    parse_hosts(text)
    for name in candidates("orders.shop", conf):
        assert len(name) <= 253
        assert all(0 < len(label) <= 63 for label in name.split("."))


@given(
    st.lists(
        st.sampled_from(
            ["search a.b c", "domain x", "options ndots:3", "nameserver 1.1.1.1", "options rotate", "#", ""]
        )
    ),
    st.text("ab.", max_size=12),
)
def test_candidates_hold_the_name_itself(lines: list[str], name: str) -> None:
    """Either the text is refused, or the name as it is is among the candidates, once, where ndots puts it."""
    conf = parse_resolv_conf("\n".join(lines))
    try:
        found = candidates(name, conf)
    except DataError:
        plain = name.removesuffix(".")
        assert not plain or "" in plain.split(".")
        return
    plain = name.removesuffix(".")
    assert found.count(plain) == 1
    if name.endswith("."):
        assert found == (plain,)
    elif plain.count(".") >= conf.ndots:
        assert found[0] == plain
    else:
        assert found[-1] == plain


@given(st.lists(st.tuples(kinds, st.booleans()), min_size=1, max_size=8))
def test_any_walk_ends(replies: list[tuple[Kind, bool]]) -> None:
    """A walk ends after at most its names; a failure on the way never ends as absence; the first records win."""
    walk = Walk(tuple(f"n{n}" for n in range(len(replies))))
    seen = []
    for kind, servfail in replies:
        if walk.done:
            break
        seen.append(kind)
        walk.feed(kind, servfail)
    assert walk.done
    if Kind.RECORDS in seen:
        assert walk.found == f"n{seen.index(Kind.RECORDS)}"
    elif Kind.UNKNOWN in seen:
        assert walk.outcome is Kind.UNKNOWN
    else:
        assert walk.outcome is combine(tuple(seen))


records = st.lists(
    st.builds(
        SrvRecord,
        st.integers(0, 2),
        st.integers(0, 65535),
        st.integers(1, 65535),
        st.sampled_from([f"t{n}" for n in range(6)]),
    ),
    max_size=8,
    unique_by=lambda record: record.target,
)


@given(records, st.dictionaries(st.sampled_from([f"t{n}" for n in range(6)]), st.integers(0, 4)))
def test_srv_shares_are_proportional(found: list[SrvRecord], counts: dict[str, int]) -> None:
    """RFC 2782: within a tier, targets get traffic in proportion to their weights, however many addresses."""
    where = {name: tuple(f"10.{name[1:]}.0.{n}" for n in range(count)) for name, count in counts.items()}
    entries = srv_entries(found, where)
    assert all(entry.weight >= 1 for entry in entries)
    assert {entry.host for entry in entries} == {r.target for r in found if where.get(r.target)}
    for tier in {record.priority for record in found}:
        members = [r for r in found if r.priority == tier and where.get(r.target)]
        if not members or not all(r.weight for r in found if r.priority == tier):
            continue
        totals = {r.target: sum(e.weight for e in entries if e.host == r.target) for r in members}
        ratios = {Fraction(totals[r.target], r.weight) for r in members}
        assert len(ratios) == 1


@given(
    st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"])),
    st.sampled_from([(4, 6), (6, 4), (4,), (6,)]),
)
def test_snapshots_hold_each_address_once(found: list[str], families: tuple[int, ...]) -> None:
    """Every address of a dialable family is in exactly one slice of its own family."""
    update = snapshot("n", PortSpec(80), plain_entries(found, 80), families)
    listed = [endpoint.address for s in update.slices for endpoint in s.endpoints]
    assert sorted(listed) == sorted({a for a in found if (6 if ":" in a else 4) in families})
    for s in update.slices:
        assert all((":" in e.address) == (s.family == 6) for e in s.endpoints)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 40)), max_size=20),
    st.sampled_from(["", "a", "b"]),
)
def test_no_server_is_ever_left_out(history: list[tuple[str, bool, float]], avoid: str) -> None:
    """Whatever failed, each server is asked exactly once per round, and the avoided one last."""
    board, now = ServerBoard(), 0.0
    for server, good, later in history:
        now += later
        if good:
            board.answered(server, 0.01)
        else:
            board.failed(server, now)
    order = board.order(("a", "b", "c"), now, avoid)
    assert sorted(order) == ["a", "b", "c"]
    if avoid:
        assert order[-1] == avoid
