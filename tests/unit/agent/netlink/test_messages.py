"""Framing and exchanges: what is sent together, and what comes back."""

from __future__ import annotations

import struct

import pytest

from meshlib.agent.netlink.exchange import Answers, Refusal, chunks, parse_error
from meshlib.agent.netlink.messages import (
    ACK,
    ACK_TLVS,
    CAPPED,
    DONE,
    DUMP_INTERRUPTED,
    ERROR,
    MULTI,
    OVERRUN,
    REQUEST,
    Malformed,
    Message,
    Request,
    attribute,
    encode_message,
    parse_attributes,
    parse_messages,
    string,
)


def answer(kind: int, sequence: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """One message as a kernel would send it."""
    length = 16 + len(payload)
    return struct.pack("=IHHII", length, kind, flags, sequence, 7) + payload + bytes(-length % 4)


def error(sequence: int, code: int, text: str = "", capped: bool = True) -> bytes:
    """An acknowledgement (0) or a refusal."""
    copy = struct.pack("=IHHII", 20, 0x1C, 5, sequence, 0) + (b"" if capped else b"body")
    flags = (CAPPED if capped else 0) | (ACK_TLVS if text else 0)
    tail = attribute(1, text.encode() + b"\0") if text else b""
    return answer(ERROR, sequence, struct.pack("=i", -code) + copy + tail, flags)


def test_a_message_is_padded_and_numbered() -> None:
    """Length without padding, the request's own flags, then zeros up to four bytes."""
    data = encode_message(Request(0x1C, 0x400, b"abcde"), 9, ACK)
    assert data == struct.pack("=IHHII", 21, 0x1C, REQUEST | ACK | 0x400, 9, 0) + b"abcde\0\0\0"
    assert list(parse_messages(data)) == [Message(0x1C, REQUEST | ACK | 0x400, 9, 0, b"abcde")]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\0" * 8, "too few for a message header"),
        (struct.pack("=IHHII", 8, 1, 0, 0, 0), "says 8 bytes"),
        (struct.pack("=IHHII", 17, 1, 0, 0, 0), "says 17 bytes, 16 are there"),
        (answer(5, 1) + b"xyz", "3 bytes left"),
    ],
)
def test_torn_messages(data: bytes, complaint: str) -> None:
    """Whatever does not add up is said, not read."""
    with pytest.raises(Malformed, match=complaint):
        list(parse_messages(data))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\1\0", "too few for an attribute header"),
        (struct.pack("=HH", 3, 1), "says 3 bytes"),
        (struct.pack("=HH", 9, 1) + b"abcd", "says 9 bytes, 8 are there"),
    ],
)
def test_torn_attributes(data: bytes, complaint: str) -> None:
    """The same for attributes."""
    with pytest.raises(Malformed, match=complaint):
        list(parse_attributes(data))


def test_attributes_come_without_their_flag_bits() -> None:
    """Nested or not, in network order or not: the number is the number."""
    data = attribute(0x8000 | 3, b"") + attribute(0x4000 | 4, b"x")
    assert list(parse_attributes(data)) == [(3, b""), (4, b"x")]
    with pytest.raises(Malformed, match="65531"):
        attribute(1, bytes(65532))


def test_text_ends_with_its_zero() -> None:
    """Also where it is no UTF-8."""
    assert string(b"rr\0junk") == "rr"
    assert string(b"\xffx") == "\\xffx"


def test_sends_are_cut_by_number_and_size_and_acknowledged_once_each() -> None:
    """Numbers go on across sends; the last of each, and only that, asks for an answer."""
    requests = [Request(0x1C, 0, bytes([n] * 5)) for n in range(10)]
    sends = list(chunks(requests, 0xFFFFFFFE, most_messages=4))
    assert [(each.start, each.size, each.first) for each in sends] == [
        (0, 4, 0xFFFFFFFE),
        (4, 4, 2),
        (8, 2, 6),
    ]
    messages = [list(parse_messages(each.data)) for each in sends]
    assert [[bool(each.flags & ACK) for each in send] for send in messages] == [
        [False, False, False, True],
        [False, False, False, True],
        [False, True],
    ]
    flat = [each for send in messages for each in send]
    assert [each.payload for each in flat] == [each.payload for each in requests]
    assert [each.sequence for each in flat] == [(0xFFFFFFFE + n) & 0xFFFFFFFF for n in range(10)]
    assert [each.size for each in chunks(requests, 1, most_bytes=60)] == [2] * 5
    assert list(chunks([], 1)) == []


def test_one_that_is_larger_than_a_send_goes_alone() -> None:
    """It is not lost, and nothing is sent with it."""
    requests = [Request(1, 0, b"a"), Request(1, 0, bytes(500)), Request(1, 0, b"b")]
    assert [each.size for each in chunks(requests, 1, most_bytes=100)] == [1, 1, 1]


def test_refusals_are_told_by_their_place() -> None:
    """Two of five failed; the acknowledgement of the last ends it."""
    answers = Answers(100, 5)
    answers.feed(error(101, 17, "it exists"))
    answers.feed(error(103, 3))
    before = answers.complete
    answers.feed(error(104, 0))
    assert (before, answers.complete) == (False, True)
    assert answers.refusals == {1: Refusal(17, "it exists"), 3: Refusal(3, "")}
    assert [str(each) for each in answers.refusals.values()] == ["EEXIST: it exists", "ESRCH"]


def test_the_last_one_refused_ends_it_too() -> None:
    """There is no acknowledgement besides."""
    answers = Answers(1, 2)
    answers.feed(error(2, 22))
    assert (answers.complete, answers.refusals) == (True, {1: Refusal(22, "")})


def test_answers_to_earlier_requests_are_passed_over() -> None:
    """They were lost once; answers to what was never sent are an error."""
    answers = Answers(100, 2)
    answers.feed(error(99, 17) + error(0xFFFFFFF0, 3))
    assert (answers.complete, answers.refusals) == (False, {})
    with pytest.raises(Malformed, match="request 102"):
        answers.feed(error(102, 0))


def test_numbers_wrap_around() -> None:
    """The sequence is 32 bits."""
    answers = Answers(0xFFFFFFFF, 2)
    answers.feed(error(0xFFFFFFFF, 1))
    answers.feed(error(0, 0))
    assert (answers.complete, set(answers.refusals)) == (True, {0})


def test_a_dump_ends_with_done() -> None:
    """Its entries are replies; one that was interrupted says so; an error at its end is a refusal."""
    answers = Answers(5, 1)
    answers.feed(answer(0x1C, 5, b"one", MULTI) + answer(0x1C, 5, b"two", MULTI | DUMP_INTERRUPTED))
    answers.feed(answer(DONE, 5, struct.pack("=i", 0), MULTI))
    assert [each.payload for each in answers.replies] == [b"one", b"two"]
    assert (answers.complete, answers.interrupted, answers.refusals) == (True, True, {})
    failed = Answers(5, 1)
    failed.feed(answer(DONE, 5, struct.pack("=i", -12), MULTI))
    assert failed.refusals[0].errno == 12


def test_an_explanation_stands_behind_the_copy_of_the_request() -> None:
    """Whether the kernel copies the whole request or its header."""
    for capped in (True, False):
        (message,) = parse_messages(error(1, 22, "Invalid prefsrc address", capped))
        assert parse_error(message) == Refusal(22, "Invalid prefsrc address")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (answer(ERROR, 1, b"\0" * 8), "of 8 bytes"),
        (answer(ERROR, 1, struct.pack("=i", 5) + bytes(16)), "positive code"),
        (answer(OVERRUN, 1), "overrun"),
        (answer(DONE, 1, b"\0\0"), "2 bytes where 4"),
    ],
)
def test_answers_that_make_no_sense(data: bytes, complaint: str) -> None:
    """They are said to."""
    with pytest.raises(Malformed, match=complaint):
        Answers(1, 1).feed(data)
