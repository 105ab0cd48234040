"""The soak's machinery in twenty seconds, and its judgement on made-up samples."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grpc
import pytest

from tests.soak.__main__ import Outcome
from tests.soak.gauges import MIB, Sample, sample, trends
from tests.soak.traffic import Tally

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="Linux's /proc says what is held"
)


def steady(**changes: int) -> list[Sample]:
    """A run whose last half differs by so much."""
    usual = Sample(100 * MIB, 20, 300)
    other = dataclasses.replace(usual, **{name: getattr(usual, name) + by for name, by in changes.items()})
    return [usual] * 50 + [other] * 50


def outcome(samples: list[Sample], tally: Tally | None = None, left: int = 0, in_flight: int = 0) -> Outcome:
    before = Sample(50 * MIB, 1, 10)
    after = dataclasses.replace(before, threads=1 + left, descriptors=10 + left)
    return Outcome(trends(samples), tally or Tally(), 100, in_flight, before, after)


def test_a_flat_run_is_good() -> None:
    """Little differences, as allocators and pools have them, are no trend."""
    assert outcome(steady(memory=MIB, threads=1, descriptors=9)).complaints() == []


@pytest.mark.parametrize("growth", [{"memory": 50 * MIB}, {"threads": 9}, {"descriptors": 200}])
def test_growth_is_seen(growth: dict[str, int]) -> None:
    """Each gauge by itself, with the figures named."""
    (complaint,) = outcome(steady(**growth)).complaints()
    assert complaint.startswith(f"{next(iter(growth))} grew from ")


def test_growth_during_the_warm_up_is_none() -> None:
    """The first fifth of a run does not count."""
    samples = [Sample(MIB, 1, 1)] * 20 + [Sample(100 * MIB, 20, 300)] * 80
    assert outcome(samples).complaints() == []


def test_too_few_samples_are_refused() -> None:
    """Nothing can be said about them, so nothing good is said."""
    with pytest.raises(ValueError, match="too few"):
        trends([Sample(1, 1, 1)] * 2)


def test_what_else_is_not_good() -> None:
    """Wrong answers, failures, dead workers, requests and descriptors that stay."""
    tally = Tally()
    tally.answered("httpx", "q1", "q2")
    tally.answered("httpx", "q1", "q1")
    tally.failed(
        "grpc", grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
    )
    tally.broken.append(KeyError("x"))
    assert tally.fine == Counter({"httpx": 1})
    assert tally.errors == Counter({"grpc UNAVAILABLE": 1})
    found = outcome(steady(), tally, left=100, in_flight=2).complaints()
    assert found[0] == "httpx: asked 'q1', got 'q2'"
    assert found[1:] == [
        "a worker ended: KeyError: 'x'\n",
        "1 of 2 requests failed: {'grpc UNAVAILABLE': 1}",
        "2 requests are still counted as in flight",
        "100 threads were left behind, 8 may be",
        "100 descriptors were left behind, 24 may be",
    ]


@needs_proc
def test_a_sample_is_of_this_process() -> None:
    """One more descriptor is one more."""
    before = sample()
    read, write = os.pipe()
    now = sample()
    os.close(read)
    os.close(write)
    assert now.descriptors == before.descriptors + 2
    assert now.memory > MIB
    assert now.threads >= 1


@needs_proc
@pytest.mark.slow
def test_twenty_seconds() -> None:
    """Every kind of client through every kind of change: no wrong answer, nothing grows, nothing stays."""
    command = [sys.executable, "-m", "tests.soak", "--seconds", "20", "--pods", "25"]
    root = Path(__file__).parent.parent.parent
    environ = {**os.environ, "GRPC_VERBOSITY": "ERROR"}
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for kind in ("httpx", "httpx async", "httpx, own client", "grpc", "grpc stream", "grpc async"):
        assert f"{kind} " in done.stdout
    assert "Traceback" not in done.stderr
