"""Departures from HTTP/2 connections: properties over any frames, cut anywhere."""

from __future__ import annotations

from typing import Any

from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame
from hypothesis import given
from hypothesis import strategies as st

from meshlib.clients.httpx.goaway import REFUSED_STREAM, Departure

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAMS = st.sampled_from([1, 3, 5, 7, 9])


def data(stream: int, body: bytes, end: bool) -> Frame:
    return DataFrame(stream, data=body, flags=["END_STREAM"] if end else [])


FRAMES = st.one_of(
    st.builds(data, STREAMS, st.binary(max_size=30), st.booleans()),
    st.builds(lambda payload: PingFrame(0, opaque_data=payload), st.binary(min_size=8, max_size=8)),
    st.builds(lambda last: GoAwayFrame(0, last_stream_id=last), st.sampled_from([0, 1, 3, 7, 2**31 - 1])),
)


def opened(streams: list[int]) -> Departure:
    departure = Departure()
    departure.sent(PREFACE)
    for stream in streams:
        head = HeadersFrame(stream, data=b"xx", flags=["END_HEADERS", "END_STREAM"]).serialize()
        for place in range(len(head)):
            departure.sent(head[place : place + 1])
    return departure


def parsed(seen: bytes) -> list[Any]:
    frames = []
    while seen:
        frame, length = Frame.parse_frame_header(memoryview(seen[:9]))
        frame.parse_body(memoryview(seen[9 : 9 + length]))
        frames.append(frame)
        seen = seen[9 + length :]
    return frames


@given(
    frames=st.lists(FRAMES, max_size=8),
    streams=st.lists(STREAMS, unique=True),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_departures_are_kept_from_h2_and_streams_above_are_refused(
    frames: list[Frame], streams: list[int], cuts: list[int]
) -> None:
    """Every other frame goes through as it came, in order; each open stream above the last one is refused once."""
    streams = sorted(streams)
    departure = opened(streams)
    sent = b"".join(frame.serialize() for frame in frames)
    places = sorted({cut for cut in cuts if cut < len(sent)})
    pieces = [sent[a:b] for a, b in zip([0, *places], [*places, len(sent)], strict=True)]
    seen = parsed(b"".join(departure.received(piece) for piece in pieces))
    kept = [frame for frame in frames if not isinstance(frame, GoAwayFrame)]
    passed = [frame for frame in seen if not isinstance(frame, RstStreamFrame)]
    assert [frame.serialize() for frame in passed] == [frame.serialize() for frame in kept]
    last, ended, refused = None, set(), []
    for frame in frames:
        if isinstance(frame, GoAwayFrame):
            last = frame.last_stream_id if last is None else min(last, frame.last_stream_id)
            refused += [each for each in streams if each > last and each not in ended]
        elif "END_STREAM" in frame.flags:
            ended.add(frame.stream_id)
    resets = [frame for frame in seen if isinstance(frame, RstStreamFrame)]
    assert [frame.stream_id for frame in resets] == refused
    assert all(frame.error_code == REFUSED_STREAM for frame in resets)
    assert departure.last == last


@given(cuts=st.lists(st.integers(0, 60), max_size=4), code=st.sampled_from([0, 1, 11]))
def test_an_error_is_told_after_the_refusals(cuts: list[int], code: int) -> None:
    """h2 learns why, once all streams above know that they can go elsewhere; what comes behind counts no more."""
    departure = opened([1, 3])
    goaway = GoAwayFrame(0, last_stream_id=1, error_code=code, additional_data=b"why").serialize()
    sent = goaway + PingFrame(0).serialize()
    places = sorted({cut for cut in cuts if cut < len(sent)})
    pieces = [sent[a:b] for a, b in zip([0, *places], [*places, len(sent)], strict=True)]
    seen = b"".join(departure.received(piece) for piece in pieces)
    reset = RstStreamFrame(3, error_code=REFUSED_STREAM).serialize()
    assert seen == reset + (goaway if code else PingFrame(0).serialize())


def test_a_stream_that_begins_too_late_is_refused() -> None:
    """The request was on its way when the GOAWAY came in."""
    departure = opened([1])
    departure.received(GoAwayFrame(0, last_stream_id=1).serialize())
    assert not departure.refused
    departure.sent(HeadersFrame(3, data=b"", flags=["END_HEADERS"]).serialize())
    assert departure.take_refused() == RstStreamFrame(3, error_code=REFUSED_STREAM).serialize()
    assert not departure.refused


@given(garbage=st.binary(max_size=200))
def test_what_is_no_http2_goes_through(garbage: bytes) -> None:
    """It is h2's to complain: nothing is lost but frames that say GOAWAY, nothing raises."""
    departure = opened([1])
    seen = departure.received(garbage)
    assert len(seen) <= len(garbage) + 13
    if garbage[3:4] != b"\x07" and len(garbage) > 9 and int.from_bytes(garbage[:3], "big") > 200:
        assert seen == garbage
