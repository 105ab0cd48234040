"""Subchannel: the fading peak, the penalty of failures, counts, and the word given when load falls."""

from __future__ import annotations

import math
import threading

import pytest

from meshlib.model.endpoint import Endpoint
from meshlib.pickers.subchannel import DECAY, FAILURE_PENALTY, LEAST_LATENCY, Subchannel


@pytest.fixture
def subchannel() -> Subchannel:
    return Subchannel(Endpoint(address="10.0.0.1", port=80), threading.Lock())


def test_first_sample_is_the_estimate(subchannel: Subchannel) -> None:
    """Before any sample there is no estimate; the first one is taken as it is, whatever the clock says."""
    assert subchannel.ewma < 0
    assert subchannel.rank == -math.inf
    subchannel.observe(123456.0, 0.02)
    assert (subchannel.ewma, subchannel.ewma_at) == (0.02, 123456.0)


def test_higher_sample_is_taken_at_once_and_lower_ones_only_when_it_has_faded(subchannel: Subchannel) -> None:
    """A peak stays until it has faded below what is measured: by a factor of e in DECAY seconds."""
    subchannel.observe(0.0, 0.01)
    subchannel.observe(1.0, 0.1)
    assert subchannel.ewma == 0.1
    for below in (0.5, 0.99, 1.04):  # a little above it is not worth a change
        subchannel.observe(1.0 + DECAY, 0.1 / math.e * below)
        assert (subchannel.ewma, subchannel.ewma_at) == (0.1, 1.0)
    subchannel.observe(1.0 + DECAY, 0.1 / math.e * 1.06)
    assert subchannel.ewma == pytest.approx(0.1 / math.e * 1.06)


def test_failure_counts_as_five_seconds_or_more(subchannel: Subchannel) -> None:
    """Decision D6: a failure is a sample of max(observed, 5 s)."""
    subchannel.observe(0.0, 0.001, failed=True)
    assert subchannel.ewma == FAILURE_PENALTY == 5.0
    subchannel.observe(1.0, 9.0, failed=True)
    assert subchannel.ewma == 9.0


def test_sample_of_no_time_still_costs(subchannel: Subchannel) -> None:
    """A clock that did not advance, or went back, does not make an endpoint free of cost."""
    subchannel.observe(5.0, 0.0)
    assert subchannel.ewma == LEAST_LATENCY
    subchannel.observe(4.0, -1.0)
    assert subchannel.ewma == LEAST_LATENCY


def test_rank_orders_like_the_faded_estimates() -> None:
    """The difference of two ranks is the logarithm of the ratio of the estimates at any later time."""
    early, late = (Subchannel(Endpoint(address="10.0.0.1", port=p), threading.Lock()) for p in (1, 2))
    early.observe(0.0, 0.1)
    late.observe(7.0, 0.02)
    for now in (7.0, 30.0, 1000.0):
        faded = [s.ewma * math.exp((s.ewma_at - now) / DECAY) for s in (early, late)]
        assert math.exp(early.rank - late.rank) == pytest.approx(faded[0] / faded[1])


def test_end_counts_and_tells_without_its_lock(subchannel: Subchannel) -> None:
    """The watcher hears of every end, can take the lock, and sees the lowered count."""
    heard: list[int] = []

    def watcher(told: Subchannel) -> None:
        with told.lock:
            heard.append(told.inflight)

    subchannel.on_load = watcher
    subchannel.begin()
    subchannel.begin()
    subchannel.end()
    subchannel.end(failed=True)
    assert heard == [1, 0]
    assert (subchannel.requests, subchannel.failures) == (2, 1)


def test_counts_are_exact_under_sixteen_threads(subchannel: Subchannel) -> None:
    """Concurrent begin, observe and end lose nothing."""

    def work() -> None:
        for n in range(2000):
            subchannel.begin()
            subchannel.observe(float(n), 0.001 * n)
            subchannel.end(failed=n % 2 == 0)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (subchannel.inflight, subchannel.requests, subchannel.failures) == (0, 32000, 16000)


def test_repr_shows_what_matters(subchannel: Subchannel) -> None:
    """The repr names the endpoint, its load and its latency."""
    assert repr(subchannel) == "<Subchannel 10.0.0.1:80 inflight=0 no sample>"
    subchannel.observe(0.0, 0.0123)
    assert "12.3ms" in repr(subchannel)
