"""The fast wire's reading of hostile replies, with h11 as the judge: the same verdict or a stricter one, never another.

Two parsers that disagree about where a reply ends are what request smuggling is made of, so every difference that is
meant is named here, and everything else is a counterexample.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshlib.clients.httpx.fast.reply import MAX_HEAD, ReplyParser


class Refused(Exception):
    pass


@dataclass(frozen=True)
class Verdict:
    whole: bool
    head: Any
    body: bytes
    reusable: bool


def by_h11(method: bytes, upgrades: bool, data: bytes) -> Verdict:
    """The first reply in ``data``, after which the connection ends."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    proposal = [("Connection", "upgrade"), ("Upgrade", "x")] if upgrades else []
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "x"), *proposal]))
    connection.send(h11.EndOfMessage())
    head, body = None, b""
    for piece in (data, b""):
        try:
            connection.receive_data(piece)
            while (event := connection.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.Response) or getattr(event, "status_code", 0) == 101:
                    head = (
                        b"HTTP/" + event.http_version,
                        event.status_code,
                        event.reason,
                        event.headers.raw_items(),
                    )
                    if event.status_code == 101:
                        return Verdict(True, head, b"", False)
                elif isinstance(event, h11.EndOfMessage):
                    states = {connection.our_state, connection.their_state}
                    good = states == {h11.DONE} and connection.trailing_data == (b"", False) and piece != b""
                    return Verdict(True, head, body, good)
                elif not isinstance(event, h11.InformationalResponse):
                    return Verdict(False, head, body, False)
        except h11.RemoteProtocolError:
            break
    return Verdict(False, head, body, False)


def by_us(method: bytes, upgrades: bool, pieces: list[bytes]) -> Verdict:
    reply, body, whole = ReplyParser(Refused), b"", True
    reply.begin(method, upgrades)
    try:
        for piece in pieces:
            reply.feed(piece)
        if not reply.complete:
            reply.eof()
    except Refused:
        whole = False
    body = b"".join(reply.take())
    head = (reply.version, reply.status, reply.reason, reply.headers) if reply.head_done else None
    assert not whole or reply.complete
    return Verdict(whole, head, body, whole and reply.reusable)


def is_chunked(verdict: Verdict) -> bool:
    return verdict.head is not None and any(
        name.lower() == b"transfer-encoding" for name, _ in verdict.head[3]
    )


#: RFC 9112 7.1.1 allows blanks before a chunk's extension; h11 does not. The size is the same to both.
BLANK_BEFORE_EXTENSION = re.compile(rb"[0-9a-fA-F][ \t]+;").search


def compare(data: bytes, h11s: Verdict, ours: Verdict) -> None:
    if h11s.whole and ours.whole:
        assert (ours.head, ours.body) == (h11s.head, h11s.body)
        # line ends behind a reply are skipped before the next one is read: no reply is made of them
        assert not ours.reusable or h11s.reusable or data[-1:] in b"\r\n"
    elif h11s.whole:
        # llhttp has a stricter grammar of chunk extensions and trailers, and no framing fields in trailers
        assert is_chunked(ours)
        assert ours.head == h11s.head
        assert h11s.body.startswith(ours.body)
    elif ours.whole:
        assert is_chunked(ours)
        assert BLANK_BEFORE_EXTENSION(data)
    else:
        assert ours.head is None or h11s.head is None or ours.head == h11s.head
        assert ours.body.startswith(h11s.body) or h11s.body.startswith(ours.body)


STATUS = st.sampled_from(
    [b"HTTP/1.1 200 OK"] * 6
    + [
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 200",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 103 Early",
        b"HTTP/1.1 204 None",
        b"HTTP/1.1 304 Same",
        b"HTTP/1.1 101 Switch",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 1000 OK",
        b"HTTP/1.1 200 \xff\x0b",
        b"RTSP/1.0 200 OK",
        b"ICY 200 OK",
        b"",
    ]
)
HEADER = st.sampled_from(
    [
        b"Content-Length: 2",
        b"Content-Length:2 ",
        b"Content-Length: 5",
        b"Content-Length: 0",
        b"Content-Length: +2",
        b"Content-Length: 2_0",
        b"Content-Length: 2, 2",
        b"Content-Length: 2, 5",
        b"Content-Length:",
        b"Content-Length : 2",
        b"Content-Length: 000000000000000000002",
        b"Content-Length: 18446744073709551618",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: CHUNKED ",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding:\r\n chunked",
        b"Transfer-Encoding : chunked",
        b"Connection: close",
        b"Connection: keep-alive, Close",
        b"Connection: closed",
        b"Connection: upgrade",
        b"Upgrade: x",
        b"X: a",
        b"X: a\tb \x80",
        b"X: \x00",
        b"X: \x0b",
        b"X: a\rb",
        b" folded",
        b"X y: 1",
        b"X\x80: 1",
        b": 1",
        b"nonsense",
    ]
)
CHUNK = st.sampled_from(
    [b"2\r\nok\r\n"] * 4
    + [
        b"02\r\nok\r\n",
        b"2;a=b\r\nok\r\n",
        b'2;a="b"\r\nok\r\n',
        b"2 ;a\r\nok\r\n",
        b"2;\r\nok\r\n",
        b"2 \r\nok\r\n",
        b"2\nok\r\n",
        b"2\r\nok\n",
        b"2\r\nokok\r\n",
        b"2\r\nok",
        b" 2\r\nok\r\n",
        b"+2\r\nok\r\n",
        b"0x2\r\nok\r\n",
        b"2;a\nb\r\nok\r\n",
        b"10000000000000002\r\nok\r\n",
        b"000000000000000000002\r\nok\r\n",
        b"0\r\n\r\n",
    ]
)
END = st.sampled_from(
    [
        b"0\r\n\r\n",
        b"0;x\r\n\r\n",
        b"0\r\nT: x\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"0\r\nbad\r\n\r\n",
        b"0\r\n\n",
        b"0\n\r\n",
        b"0\r\n",
        b"",
    ]
)
BODY = st.one_of(
    st.sampled_from([b"", b"ok", b"hello", b"\r\n", b"okHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]),
    st.builds(lambda chunks, end: b"".join(chunks) + end, st.lists(CHUNK, max_size=3), END),
)
LINE_END = st.sampled_from([b"\r\n"] * 10 + [b"\n", b"\r", b"\r\r\n"])


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    """One or two heads and a body, mostly well formed, sometimes with one byte changed."""
    data = b""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        for line in [draw(STATUS), *draw(st.lists(HEADER, max_size=3)), b""]:
            data += line + draw(LINE_END)
    data += draw(BODY)
    if draw(st.booleans()) and data:
        place = draw(st.integers(0, len(data) - 1))
        changed = draw(
            st.sampled_from([b"", b"\0", b"\n", b"\r", b" ", b"\t", b",", b";", b":", b"0", b"\xff"])
        )
        data = data[:place] + changed + data[place + draw(st.integers(0, 1)) :]
    return data


HEAD = b"HTTP/1.1 200 OK\r\n"


@given(
    data=replies(),
    method=st.sampled_from([b"GET", b"GET", b"HEAD"]),
    upgrades=st.sampled_from([False, False, False, True]),
    cuts=st.lists(st.integers(1, 150), max_size=4),
)
@example(b"\r\n" + HEAD + b"\r\n", b"GET", False, [])
@example(b"RTSP/1.0 200 OK\r\n\r\n", b"GET", False, [])
@example(HEAD + b"Content-Length: 000000000000000000002\r\n\r\nok", b"GET", False, [])
@example(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n", b"GET", False, [])
@example(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: x\r\n\r\n", b"GET", False, [])
@example(b"HTTP/1.1 200 \x0b\r\n\r\n", b"GET", False, [])
@example(b"HTTP/1.1 103 Early\r\nTransfer-Encoding: x\r\n\r\n" + HEAD + b"\r\n", b"GET", False, [])
@example(b"HTTP/1.1 100 Go\r\n\r\n\r\n" + HEAD + b"Content-Length: 0\r\n\r\n", b"GET", False, [])
@settings(max_examples=1200)
def test_a_reply_is_what_h11_says_or_is_refused(
    data: bytes, method: bytes, upgrades: bool, cuts: list[int]
) -> None:
    """Any reply, good or hostile, in one piece or many: the same head and body, or an error; never more reuse."""
    expected = by_h11(method, upgrades, data)
    places = sorted({cut for cut in cuts if cut < len(data)})
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    for each in ([data], pieces, [data[i : i + 1] for i in range(len(data))]):
        compare(data, expected, by_us(method, upgrades, [piece for piece in each if piece]))


@given(
    first=st.sampled_from(
        [
            HEAD + b"Content-Length: 2\r\n\r\nok",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n",
            b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok",
            b"HTTP/1.1 204 None\r\n\r\n",
        ]
    ),
    data=replies(),
)
@settings(max_examples=300)
def test_what_one_reply_leaves_behind_changes_no_verdict_on_the_next(first: bytes, data: bytes) -> None:
    """A parser that has read a reply reads the next one as a new one does."""
    reply = ReplyParser(Refused)
    reply.feed(first)
    assert reply.reusable
    reply.take()
    compared = []
    for parser in (reply, ReplyParser(Refused)):
        parser.begin(b"GET", False)
        try:
            if data:
                parser.feed(data)
            parser.eof()
        except Refused as refused:
            compared.append((str(refused), parser.head_done, parser.headers, parser.take()))
        else:
            compared.append((parser.status, parser.reason, parser.headers, parser.take()))
    assert compared[0] == compared[1]


@pytest.mark.parametrize(
    "start, more",
    [
        (b"", b"HTTP/1.1 200 " + b"x" * 1000),
        (HEAD, b"X-1: " + b"v" * 1000 + b"\r\n"),
        (HEAD + b"X: ", b"v" * 1000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;", b"x" * 1000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", b"X-1: " + b"v" * 1000 + b"\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"v" * 1000),
    ],
    ids=["reason", "headers", "one header", "chunk extension", "trailers", "one trailer"],
)
def test_nothing_but_a_body_may_be_endless(start: bytes, more: bytes) -> None:
    """What is neither a body nor comes to an end is refused, as h11 refuses it, before it fills the memory."""
    reply = ReplyParser(Refused)
    if start:
        reply.feed(start)

    def feed(pieces: int) -> None:
        for _ in range(pieces):
            reply.feed(more)

    with pytest.raises(Refused):
        feed(MAX_HEAD // len(more) + 2)
