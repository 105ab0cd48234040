"""RequestSource: whatever attempts do with it, the one that counts sees every message once and in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.clients.grpc.requests import RequestSource


@given(messages=st.lists(st.integers(), max_size=8), refused=st.lists(st.booleans(), max_size=4))
def test_the_last_attempt_sees_everything(messages: list[int], refused: list[bool]) -> None:
    """Refused attempts, each of which may have taken the first message, lose nothing."""
    source = RequestSource(iter(messages), threading.Lock())
    for took_one in refused:
        view = source.view()
        if took_one:
            assert list(islice(view, 1)) == messages[:1]
        assert source.replayable
    assert list(source.view()) == messages


@given(messages=st.lists(st.integers(), min_size=2, max_size=8))
def test_asking_for_the_second_message_commits(messages: list[int]) -> None:
    """Once the first message was accepted there is no going back, and nothing is kept."""
    source = RequestSource(iter(messages), threading.Lock())
    view = source.view()
    next(view)
    assert source.replayable
    next(view)
    assert not source.replayable


def test_an_abandoned_attempt_ends() -> None:
    """After the next attempt began, the old one's iterator is over and takes nothing from the source."""
    source = RequestSource(iter([1, 2, 3]), threading.Lock())
    old = source.view()
    assert next(old) == 1
    new = source.view()
    assert list(old) == []
    assert list(new) == [1, 2, 3]


def test_an_attempt_stuck_in_the_users_iterator_leaves_its_message_to_the_next() -> None:
    """A refused attempt still waiting for the first message hands it on, and the iterator is never entered twice."""
    release, entered = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        entered.set()
        assert release.wait(10)
        yield 1
        yield 2

    source = RequestSource(slow(), threading.Lock())
    old = source.view()
    stuck = threading.Thread(target=next, args=(old, None))
    stuck.start()
    assert entered.wait(10)
    new = source.view()
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.extend(new))
    reader.start()
    release.set()
    stuck.join(10)
    reader.join(10)
    assert got == [1, 2]


def test_errors_of_the_users_iterator_come_through() -> None:
    """What the iterator raises reaches grpc's consumer, for the first message and later ones."""

    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    view = RequestSource(broken(), threading.Lock()).view()
    assert next(view) == 1
    with pytest.raises(KeyError, match="mine"):
        next(view)
