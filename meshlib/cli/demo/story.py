"""The story: what happens when, as fractions of the demo's length, and the verdict at its end. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from meshlib.cli.demo.board import Board, quantile

FIRST = ("one", "two", "three", "four")
SLOW, DEAD, JOINER = "two", "three", "five"
#: How long an ordinary answer takes, seconds: quick, but longer than what the clients themselves cost.
BASE_DELAY = 0.005
#: What the slow backend takes, seconds: fifty times the others.
SLOW_DELAY = 0.25
#: How long the registry takes to notice the dead backend, seconds: about what a readiness probe takes to fail.
NOTICE = 2.0
#: For how long after its order to stop the dying server may still end calls that it had taken, seconds.
DYING = 1.5
#: After a change, how long the balancer is given before its effect is measured, seconds.
SETTLE = 1.0


@dataclass(frozen=True, slots=True)
class Chapter:
    """One event. ``at``: seconds since the start."""

    at: float
    event: str  #: ``slow``, ``stop``, ``forget``, ``join`` or ``recover``
    text: str


def chapters(seconds: float) -> tuple[Chapter, ...]:
    """The events of a demo of that length, in order."""
    slow, stop, join, recover = (seconds * part for part in (0.2, 0.45, 0.62, 0.8))
    return (
        Chapter(slow, "slow", f"{SLOW} slows down: each answer takes {SLOW_DELAY * 1000:.0f} ms"),
        Chapter(stop, "stop", f"{DEAD} dies: its ports refuse connections, the registry does not know yet"),
        Chapter(stop + min(NOTICE, join - stop), "forget", f"the registry drops {DEAD}"),
        Chapter(join, "join", f"{JOINER} joins"),
        Chapter(recover, "recover", f"{SLOW} is as fast as before"),
    )


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures to judge by. Times in seconds; None: it did not happen. Shares from 0 to 1."""

    requests: int
    http: int
    grpc: int
    failed: int
    cut: int  #: calls that the dying server took and then ended itself; not sent again, they may have been carried out
    errors: tuple[str, ...]
    slow_share_before: float
    slow_share_after: float
    slow_share_recovered: float
    p99_before: float
    p99_slow: float
    dead_received_for: float
    joiner_waited: float | None


def summarize(board: Board, seconds: float, happened: dict[str, float]) -> Summary:
    """``happened``: when each event really took place, seconds since the start."""
    slow, stop, join = happened["slow"], happened["stop"], happened["join"]
    recover = happened["recover"]
    samples = board.samples()
    cut = [sample for sample in samples if sample.cancelled and stop <= sample.at <= stop + DYING]
    failed = [sample for sample in samples if sample.error and sample not in cut]
    dead = [sample.at for sample in samples if sample.backend == DEAD and sample.at > stop]
    joined = [sample.at for sample in samples if sample.backend == JOINER]

    def share(begin: float, end: float) -> float:
        return next(line.share for line in board.lines((SLOW,), begin, end))

    def p99(begin: float, end: float) -> float:
        return quantile(sorted(sample.latency for sample in board.samples(begin, end)), 0.99)

    return Summary(
        requests=len(samples),
        http=sum(sample.kind == "http" for sample in samples),
        grpc=sum(sample.kind == "grpc" for sample in samples),
        failed=len(failed),
        cut=len(cut),
        errors=tuple(dict.fromkeys(sample.error for sample in failed))[:5],
        slow_share_before=share(0.0, slow),
        slow_share_after=share(slow + SETTLE, stop),
        slow_share_recovered=share(recover + SETTLE, seconds),
        p99_before=p99(0.0, slow),
        p99_slow=p99(slow + SETTLE, stop),
        dead_received_for=max(dead) - stop if dead else 0.0,
        joiner_waited=min(joined) - join if joined else None,
    )
