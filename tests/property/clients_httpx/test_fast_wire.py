"""Properties of the fast wire's pure parts, with h11 and a plain model as oracles."""

from __future__ import annotations

from collections import deque
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshlib.clients.httpx.fast.free_list import OPEN, FreeList
from meshlib.clients.httpx.fast.reply import ReplyParser
from meshlib.clients.httpx.fast.request import Framing, request_head

NAMES = st.sampled_from(
    [b"X-a", b"x-B", b"Accept", b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection"]
)
VALUES = st.one_of(
    st.sampled_from(
        [b"1", b"5, 5", b"chunked", b"Chunked", b"gzip", b"close", b"keep-alive, Close", b"a b", b"*/*"]
    ),
    st.binary(max_size=6),
)
HEADERS = st.lists(st.tuples(st.one_of(NAMES, st.binary(max_size=4)), VALUES), max_size=5)


class Refused(Exception):
    pass


def framed(framing: Framing, parts: list[bytes]) -> bytes:
    return b"".join(map(framing.part, parts)) + framing.end()


def h11_head(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, Any]:
    connection = h11.Connection(h11.CLIENT)
    data = connection.send(h11.Request(method=method, target=target, headers=headers))
    assert data is not None
    return data, connection


@given(
    method=st.one_of(st.sampled_from([b"GET", b"POST"]), st.binary(max_size=3)),
    target=st.one_of(st.sampled_from([b"/", b"/a?b"]), st.binary(max_size=3)),
    headers=HEADERS,
    host=st.booleans(),
    parts=st.lists(st.binary(max_size=4), max_size=3),
)
@settings(max_examples=600, deadline=None)
def test_a_request_is_what_h11_sends(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], host: bool, parts: list[bytes]
) -> None:
    """Any bytes as method, target, names and values: the same bytes go out, body included, or both refuse."""
    if host:
        headers = [*headers, (b"Host", b"orders")]
    if method == b"CONNECT":
        return
    try:
        expected, connection = h11_head(method, target, headers)
    except h11.LocalProtocolError:
        with pytest.raises(Refused):
            request_head(method, target, headers, Refused)
        return
    head = request_head(method, target, headers, Refused)
    assert head.data == expected
    framing = Framing(head.length, Refused)
    try:
        for part in parts:
            expected += connection.send(h11.Data(data=part)) or b""
        expected += connection.send(h11.EndOfMessage()) or b""
    except h11.LocalProtocolError:
        with pytest.raises(Refused):
            framed(framing, parts)
        return
    assert head.data + framed(framing, parts) == expected
    assert head.closes == (connection.our_state is h11.MUST_CLOSE)


REPLIES = st.one_of(
    st.builds(
        lambda interim, status, headers, body: (
            interim
            + b"HTTP/1.1 %d Said so\r\n" % status
            + b"".join(b"%b: %b\r\n" % pair for pair in headers)
            + b"Content-Length: %d\r\n\r\n" % len(body)
            + body
        ),
        st.sampled_from([b"", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"]),
        st.sampled_from([200, 201, 404, 503]),
        st.lists(
            st.tuples(st.sampled_from([b"X-a", b"X-A", b"Vary"]), st.sampled_from([b"", b"1", b"a  b "]))
        ),
        st.binary(max_size=40),
    ),
    st.builds(
        lambda chunks: (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)
            + b"0\r\n\r\n"
        ),
        st.lists(st.binary(max_size=30), max_size=4),
    ),
    st.just(b"HTTP/1.1 200 OK\r\nX: folded\r\n more\r\nContent-Length: 3\r\n\r\nabc"),
    st.just(b"HTTP/1.1 204 None\r\n\r\n"),
)


def parsed(pieces: list[bytes]) -> tuple[Any, ...]:
    reply = ReplyParser(Refused)
    body = b""
    for piece in pieces:
        reply.feed(piece)
        body += b"".join(reply.take())
    return reply.status, reply.reason, reply.headers, body, reply.complete, reply.reusable


@given(data=REPLIES, cuts=st.lists(st.integers(1, 200), max_size=8))
@settings(max_examples=300, deadline=None)
def test_how_bytes_are_cut_does_not_matter(data: bytes, cuts: list[int]) -> None:
    """A reply in any pieces is the reply, as h11 reads it."""
    places = sorted({cut for cut in cuts if cut < len(data)})
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    whole = parsed([data])
    assert parsed(pieces) == whole
    _, connection = h11_head(b"GET", b"/", [(b"Host", b"orders")])
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    body, head = b"", None
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            head = (event.status_code, event.reason, event.headers.raw_items())
        elif isinstance(event, h11.Data):
            body += event.data
    assert (*(head or ()), body, True) == whole[:5]


@given(data=st.binary(max_size=80), split=st.integers(0, 80))
@settings(max_examples=500, deadline=None)
def test_garbage_is_refused_or_waited_for(data: bytes, split: int) -> None:
    """No bytes make the parser raise anything but the error given, nor call a half reply whole."""
    reply = ReplyParser(Refused)
    for piece in (b"HTTP/1.1 200 OK\r\n" + data[:split], data[split:], b""):
        try:
            if piece:
                reply.feed(piece)
            else:
                reply.eof()
        except Refused:
            return
    assert reply.complete


class Queued:
    """A waiter that remembers."""

    def __init__(self) -> None:
        self.granted: Any = None

    def grant(self, what: Any) -> None:
        assert self.granted is None
        self.granted = what


class FreeListMachine(RuleBasedStateMachine):
    """Any order of requests, ends, losses, cancellations and retirement: no place is lost, the limit holds."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = FreeList(limit=3, keep=2)
        self.busy: list[object] = []
        self.opening = 0
        self.queue: deque[Queued] = deque()

    def _granted(self) -> None:
        """Those who were granted something go on, and they must be the first in the queue."""
        waiting_seen = False
        for waiter in list(self.queue):
            if waiter.granted is None:
                waiting_seen = True
                continue
            assert not waiting_seen
            self.queue.remove(waiter)
            if waiter.granted is OPEN:
                self.opening += 1
            else:
                self.busy.append(waiter.granted)

    @rule()
    def request(self) -> None:
        got = self.slot.take()
        if got is None:
            waiter = Queued()
            self.slot.waiting.append(waiter)
            self.queue.append(waiter)
        elif got is OPEN:
            self.opening += 1
        else:
            self.busy.append(got)

    @precondition(lambda self: self.opening)
    @rule(works=st.booleans())
    def connect(self, works: bool) -> None:
        self.opening -= 1
        if works:
            connection = object()
            self.slot.opened(connection)
            self.busy.append(connection)
        else:
            self.slot.freed()
        self._granted()

    @precondition(lambda self: self.busy)
    @rule(which=st.integers(0, 2), good=st.booleans())
    def end(self, which: int, good: bool) -> None:
        connection = self.busy.pop(which % len(self.busy))
        if good:
            self.slot.give_back(connection)
        else:
            assert self.slot.lost(connection)
            assert not self.slot.lost(connection)
        self._granted()

    @precondition(lambda self: self.slot.idle)
    @rule()
    def hang_up(self) -> None:
        assert self.slot.lost(self.slot.idle[0])
        self._granted()

    @precondition(lambda self: self.queue)
    @rule(which=st.integers(0, 5))
    def cancel(self, which: int) -> None:
        waiter = self.queue[which % len(self.queue)]
        self.queue.remove(waiter)
        self.slot.leave_queue(waiter)
        self._granted()

    @rule()
    def evict(self) -> None:
        self.slot.take_oldest()
        self._granted()

    @precondition(lambda self: self.slot.taken > 2)
    @rule()
    def retire(self) -> None:
        self.slot.keep = 0
        self.slot.take_idle()
        self._granted()

    @invariant()
    def every_place_is_accounted_for(self) -> None:
        slot = self.slot
        assert slot.taken == len(slot.idle) + len(self.busy) + self.opening <= slot.limit
        assert slot.busy == set(self.busy)
        assert len(slot.idle) <= max(slot.keep, 0) or not slot.keep
        assert not (slot.waiting and slot.taken < slot.limit), "somebody waits although there is room"
        assert not (slot.waiting and slot.idle), "somebody waits although a connection is idle"


TestFreeList = FreeListMachine.TestCase
TestFreeList.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
