"""The decoder of DNS replies on anything a network can deliver."""

from __future__ import annotations

import contextlib
import ipaddress

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshlib.discovery.dns import wire as codec
from meshlib.discovery.dns.records import Answer, Kind, Question, RecordType
from meshlib.discovery.dns.table import screen
from meshlib.discovery.dns.wire import Mismatch, Truncated, decode, interpret, query
from meshlib.model.address import AddressPolicy

NAME = "orders.test"
types = st.sampled_from(list(RecordType))
labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
names = st.lists(labels, min_size=1, max_size=4).map(".".join) | st.sampled_from([NAME, "a.test", "b.test"])
v4 = st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n)))
v6 = st.integers(0, 2**128 - 1).map(lambda n: str(ipaddress.IPv6Address(n)))
ttls = st.integers(0, 2**31 - 1)
rrsets = st.one_of(
    st.builds(
        lambda n, t, a: dns.rrset.from_text(n + ".", t, "IN", "A", *a), names, ttls, st.lists(v4, min_size=1)
    ),
    st.builds(
        lambda n, t, a: dns.rrset.from_text(n + ".", t, "IN", "AAAA", *a),
        names,
        ttls,
        st.lists(v6, min_size=1),
    ),
    st.builds(lambda n, t, a: dns.rrset.from_text(n + ".", t, "IN", "CNAME", a + "."), names, ttls, names),
    st.builds(
        lambda n, t, p, w, port, a: dns.rrset.from_text(n + ".", t, "IN", "SRV", f"{p} {w} {port} {a}."),
        names,
        ttls,
        st.integers(0, 65535),
        st.integers(0, 65535),
        st.integers(0, 65535),
        names | st.just(""),
    ),
    st.builds(
        lambda n, t, m: dns.rrset.from_text(n + ".", t, "IN", "SOA", f"ns. h. 1 2 3 4 {m}"), names, ttls, ttls
    ),
)
sections = st.lists(rrsets, max_size=6)


def check(answer: Answer) -> None:
    """What holds for every answer whatever was received."""
    assert list(answer.addresses) == sorted(set(answer.addresses))
    for address in answer.addresses:
        assert str(ipaddress.ip_address(address)) == address
    assert list(answer.srv) == sorted(set(answer.srv))
    assert answer.ttl is None or 0 <= answer.ttl < 2**31
    assert (answer.kind is Kind.RECORDS) == bool(answer.addresses or answer.srv)
    if answer.kind is Kind.UNKNOWN:
        assert answer.rcode
        assert answer.detail


@given(types, st.binary(max_size=600))
@example(RecordType.A, b"")
def test_any_bytes(kind: RecordType, wire: bytes) -> None:
    """Random bytes are a mismatch, never an answer and never another exception."""
    question = Question(NAME, kind)
    sent = query(question, edns=True)
    try:
        answer = decode(wire, sent, question, "127.0.0.1:53")
    except (Mismatch, Truncated):
        return
    check(answer)


@settings(max_examples=300)
@given(types, sections, sections, sections, st.data())
def test_any_mutation_of_a_reply(
    kind: RecordType,
    answer: list[dns.rrset.RRset],
    authority: list[dns.rrset.RRset],
    more: list[dns.rrset.RRset],
    data: st.DataObject,
) -> None:
    """Replies of any records, cut, flipped or extended: an Answer that holds together, or one of the two exceptions."""
    question = Question(NAME, kind)
    sent = query(question, edns=True)
    message = dns.message.make_response(sent)
    message.answer, message.authority, message.additional = answer, authority, more
    wire = bytearray(message.to_wire(max_size=65535))
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(12, len(wire) - 1), st.integers(0, 255)), max_size=4)
    ):
        wire[position] = value
    cut = data.draw(st.integers(0, 20))
    with contextlib.suppress(Mismatch, Truncated):
        check(decode(bytes(wire[: len(wire) - cut]), sent, question, "127.0.0.1:53"))


@given(types, sections, sections, sections, st.sampled_from([0, 1, 2, 3, 4, 5, 9, 16]))
def test_rcode_decides_first(
    kind: RecordType,
    answer: list[dns.rrset.RRset],
    authority: list[dns.rrset.RRset],
    more: list[dns.rrset.RRset],
    rcode: int,
) -> None:
    """R6: nothing but NOERROR and NXDOMAIN says anything, whatever records come with it; NXDOMAIN never has records."""
    question = Question(NAME, kind)
    message = dns.message.make_response(query(question, edns=True))
    message.set_rcode(dns.rcode.Rcode(rcode))
    message.answer, message.authority, message.additional = answer, authority, more
    got = interpret(message, question, "127.0.0.1:53")
    check(got)
    if rcode not in (0, 3):
        assert got.kind is Kind.UNKNOWN
    if rcode == 3:
        assert got.kind in (Kind.NXDOMAIN, Kind.UNKNOWN)
        assert not got.addresses


@given(st.lists(v4, min_size=1, max_size=40, unique=True), ttls, st.randoms())
def test_order_of_records_makes_no_difference(addresses: list[str], ttl: int, random: object) -> None:
    """R12: a server that rotates gives the same answer each time."""
    question = Question(NAME, RecordType.A)
    answers = []
    for order in (addresses, addresses[::-1]):
        sent = query(question, edns=False)
        message = dns.message.make_response(sent)
        message.answer.append(dns.rrset.from_text(NAME + ".", ttl, "IN", "A", *order))
        answers.append(decode(message.to_wire(max_size=65535), sent, question, "s"))
    assert answers[0] == answers[1]
    assert answers[0].addresses == tuple(sorted(addresses))
    assert answers[0].ttl == ttl


@settings(max_examples=200)
@given(
    st.lists(v4, min_size=15, max_size=40),
    st.lists(v6, min_size=15, max_size=40),
    ttls,
    st.booleans(),
    sections,
    st.data(),
)
def test_long_replies_read_directly_mean_the_same(
    fours: list[str], sixes: list[str], ttl: int, six: bool, more: list[dns.rrset.RRset], data: st.DataObject
) -> None:
    """The direct reading of long replies and dnspython's give the same Answer, also for damaged ones."""
    question = Question(NAME, RecordType.AAAA if six else RecordType.A)
    sent = query(question, edns=True)
    message = dns.message.make_response(sent)
    message.answer.append(
        dns.rrset.from_text(NAME + ".", ttl, "IN", question.type.name, *(sixes if six else fours))
    )
    message.additional = more
    wire = bytearray(message.to_wire(max_size=65535))
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=2)
    ):
        wire[position] = value

    def outcome(many: int) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codec, "MANY", many)
            try:
                return decode(bytes(wire), sent, question, "s")
            except (Mismatch, Truncated) as error:
                return type(error)

    direct, general = outcome(20), outcome(10**9)
    if isinstance(direct, Answer) and direct.kind is Kind.RECORDS:
        assert (
            direct == general or general is Mismatch
        )  # damage elsewhere in the reply, that only dnspython looks at
    else:
        assert direct == general


@given(sections, types)
def test_truncated_is_never_an_answer(answer: list[dns.rrset.RRset], kind: RecordType) -> None:
    """TC=1 with any records is Truncated, always."""
    question = Question(NAME, kind)
    sent = query(question, edns=True)
    message = dns.message.make_response(sent)
    message.answer = answer
    message.flags |= dns.flags.TC
    try:
        decode(message.to_wire(max_size=65535), sent, question, "s")
    except Truncated:
        return
    raise AssertionError("a truncated reply was used")


@given(st.lists(v4 | v6, min_size=1, max_size=10))
def test_nothing_refused_gets_through(addresses: list[str]) -> None:
    """After screening only addresses that the policy allows are left, and refusals never make an empty set."""
    policy = AddressPolicy()
    answer, refused = screen(Answer(Kind.RECORDS, addresses=tuple(sorted(set(addresses))), ttl=5), policy)
    for address in answer.addresses:
        assert policy.check(address) == address
    assert len(refused) + len(answer.addresses) == len(set(addresses))
    assert answer.addresses or answer.kind is Kind.UNKNOWN
