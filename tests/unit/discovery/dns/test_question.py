"""The decision core of one question: taxonomy, confirmation, last good, schedule."""

from __future__ import annotations

import pytest

from meshlib.discovery.dns.question import Change, QuestionState
from meshlib.discovery.dns.records import Kind
from meshlib.discovery.dns.schedule import Limits
from tests.unit.discovery.virtual import a, nodata, nxdomain, question, srv, unusable

LIMITS = Limits()


def state(limits: Limits = LIMITS) -> QuestionState:
    return QuestionState(question("orders.test"), limits)


def test_records_replace() -> None:
    """NOERROR with records is the truth, at once, and the next one too."""
    q = state()
    assert q.feed(a("10.0.0.1"), 0, 0.5) is Change.TRUTH
    assert q.feed(a("10.0.0.2"), 5, 0.5) is Change.TRUTH
    assert q.good is not None
    assert q.good.addresses == ("10.0.0.2",)
    assert q.generation == 2


def test_order_and_ttl_are_no_change() -> None:
    """R12: the same records with another TTL or from another server are the same truth."""
    q = state()
    q.feed(a("10.0.0.1", "10.0.0.2", ttl=5), 0, 0.5)
    assert q.feed(a("10.0.0.2", "10.0.0.1", ttl=9, server="10.0.0.9:53"), 5, 0.5) is Change.NONE
    assert q.generation == 1


@pytest.mark.parametrize("negative", [nodata(), nxdomain()])
def test_a_negative_after_records_is_confirmed_once(negative: object) -> None:
    """Acceptance 105-106: one negative never empties a set; the second does, at least a second later."""
    q = state()
    q.feed(a("10.0.0.1"), 0, 0.5)
    assert q.feed(negative, 5, 0.5) is Change.NONE  # type: ignore[arg-type]
    assert q.good is not None
    assert q.good.addresses == ("10.0.0.1",)
    assert q.due == 6.0
    assert q.avoid == "10.96.0.10:53", "the confirmation prefers another server"
    assert q.feed(negative, 6, 0.5) is Change.TRUTH  # type: ignore[arg-type]
    assert q.good.kind is not Kind.RECORDS
    assert q.avoid == ""


def test_records_end_a_pending_confirmation() -> None:
    """A negative that is contradicted leaves no trace: the next one starts from the beginning."""
    q = state()
    q.feed(a("10.0.0.1"), 0, 0.5)
    q.feed(nxdomain(), 5, 0.5)
    assert q.feed(a("10.0.0.1"), 6, 0.5) is Change.NONE
    assert q.feed(nxdomain(), 11, 0.5) is Change.NONE
    assert q.good is not None
    assert q.good.kind is Kind.RECORDS


def test_failure_between_negatives_is_not_a_confirmation() -> None:
    """SERVFAIL says nothing: it neither confirms nor clears a pending negative."""
    q = state()
    q.feed(a("10.0.0.1"), 0, 0.5)
    q.feed(nxdomain(), 5, 0.5)
    q.feed(unusable(), 6, 0.5)
    assert q.good is not None
    assert q.good.kind is Kind.RECORDS
    assert q.feed(nxdomain(), 7, 0.5) is Change.TRUTH


def test_first_negative_needs_no_confirmation() -> None:
    """R6: the first look-up's NXDOMAIN is an error at once."""
    assert state().feed(nxdomain(), 0, 0.5) is Change.TRUTH


def test_srv_dot_empties_at_once() -> None:
    """RFC 2782: the target "." is a statement, not an absence; no confirmation."""
    q = state()
    q.feed(srv((0, 1, 80, "a.test")), 0, 0.5)
    assert q.feed(srv((0, 0, 0, "")), 5, 0.5) is Change.TRUTH
    assert q.good is not None
    assert not q.good.offered


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "FORMERR", "TIMEOUT", "UNREACHABLE", "GARBAGE"])
def test_failures_keep_the_last_good_for_ever(rcode: str) -> None:
    """R6, R7: no failure of any length empties; it is stale, ages, and after ten minutes says that it is too old."""
    q = state()
    q.feed(a("10.0.0.1"), 0, 0.5)
    now = 4.0
    assert q.feed(unusable(rcode), now, 0.5) is Change.FAILED
    while now < 3600:
        now = q.due
        assert q.feed(unusable(rcode), now, 0.5) is Change.NONE
        assert q.too_old(now) == (now > 600)
    assert q.good is not None
    assert q.good.addresses == ("10.0.0.1",)
    assert q.stale
    assert q.age(now) == now
    assert q.feed(a("10.0.0.1"), now + 1, 0.5) is Change.RECOVERED
    assert not q.stale
    assert not q.too_old(now + 1)


def test_backoff_doubles_to_thirty_seconds() -> None:
    """Failures are retried after 1, 2, 4, 8, 16, 30, 30 s without jitter; jitter adds at most a quarter."""
    q, now, delays = state(), 0.0, []
    for _ in range(7):
        q.feed(unusable(), now, 0.0)
        delays.append(q.due - now)
        now = q.due
    assert delays == [1, 2, 4, 8, 16, 30, 30]
    q = state()
    q.feed(unusable(), 0, 0.999)
    assert 1 < q.due < 1.25


@pytest.mark.parametrize(
    "ttl,low,high",
    [(0, 1, 1), (1, 1, 1), (5, 4, 5), (60, 48, 60), (86400, 240, 300), (2**31 - 1, 240, 300)],
)
def test_positive_schedule_is_clamped(ttl: int, low: float, high: float) -> None:
    """R4: TTL 0 becomes the floor, a day the ceiling, with jitter only in the last fifth."""
    due = []
    for jitter in (0.0, 0.5, 0.999999):
        q = state()
        q.feed(a("10.0.0.1", ttl=ttl), 0, jitter)
        due.append(q.due)
    assert due[0] == pytest.approx(low)
    assert due[2] == pytest.approx(high, rel=1e-4)
    assert due == sorted(due)


@pytest.mark.parametrize("name,ceiling", [("db.shop.svc.cluster.local", 30), ("api.example.com", 300)])
def test_ceiling_by_place(name: str, ceiling: int) -> None:
    """R4: names of the cluster are asked again within 30 s, others within 5 min, whatever their TTL."""
    q = QuestionState(question(name), Limits.for_name(name))
    q.feed(a("10.0.0.1", ttl=86400), 0, 0.9999999)
    assert q.due == pytest.approx(ceiling, rel=1e-4)


@pytest.mark.parametrize("ttl,high", [(None, 5), (0, 1), (2, 2), (86400, 30)])
def test_negative_schedule(ttl: int | None, high: float) -> None:
    """R5: without SOA 5 s, with one its TTL between the floor and 30 s."""
    q = state()
    q.feed(nxdomain(ttl=ttl), 0, 0.9999999)
    assert q.due == pytest.approx(high, rel=1e-4)


def test_ask_soon_never_postpones() -> None:
    """A changed resolv.conf pulls the next query forward and never pushes it back."""
    q = state()
    q.feed(unusable(), 0, 0.0)
    q.ask_soon(0.3)
    assert q.due == 0.3
    q.ask_soon(0.9)
    assert q.due == 0.3
