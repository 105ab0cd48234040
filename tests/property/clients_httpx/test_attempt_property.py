"""Whatever endpoints do, an attempt ends, counts exactly, and sends a request that may not be repeated at most once."""

from __future__ import annotations

from typing import Any

import httpcore
from hypothesis import given
from hypothesis import strategies as st

from meshlib.clients.httpx.attempt import Dial, Exchange, Pause, attempt
from meshlib.clients.httpx.body import RequestBody
from meshlib.clients.httpx.faults import fault_of
from tests.unit.clients_httpx.fakes import FakeHandle

OUTCOMES = st.sampled_from(["ok", "5xx", "refused", "silent", "reset", "read-timeout", "pool", "ours"])
ERRORS: dict[str, type[Exception]] = {
    "refused": httpcore.ConnectError,
    "silent": httpcore.ConnectTimeout,
    "reset": httpcore.ReadError,
    "read-timeout": httpcore.ReadTimeout,
    "pool": httpcore.PoolTimeout,
    "ours": ValueError,
}


class Reply:
    def __init__(self, status: int) -> None:
        self.status = status


@given(
    count=st.integers(1, 5),
    outcomes=st.lists(OUTCOMES, min_size=1, max_size=30),
    method=st.sampled_from([b"GET", b"POST"]),
    timeout=st.none() | st.floats(0.01, 10),
    retries=st.integers(0, 2),
    reused=st.booleans(),
)
def test_attempt_is_bounded_and_exact(
    count: int, outcomes: list[str], method: bytes, timeout: float | None, retries: int, reused: bool
) -> None:
    """Dials are bounded, the budget is kept, the counters end at zero, and a POST reaches at most one endpoint."""
    time = 0.0
    handle = FakeHandle([(f"10.0.0.{n}", 80) for n in range(1, count + 1)], lambda: time)
    exchange = Exchange(method, RequestBody(b"", replayable=True), timeout, retries=retries, reused=reused)
    steps = attempt(handle, exchange, lambda error: fault_of(error, httpcore), lambda: time)  # type: ignore[arg-type]
    dials = sent = 0
    connecting = 0.0
    script = iter(outcomes)
    try:
        step: Any = next(steps)
        while True:
            assert isinstance(step, Dial | Pause)
            if isinstance(step, Pause):
                step = steps.send(None)
                continue
            dials += 1
            outcome = next(script, "ok")
            if outcome == "silent":
                spent = 1.0 if step.connect_timeout is None else step.connect_timeout
                time += spent
                connecting += spent
            if outcome in ("ok", "5xx", "reset", "read-timeout"):
                sent += 1
            if outcome in ERRORS:
                step = steps.throw(ERRORS[outcome]("scripted"))
            else:
                step = steps.send(Reply(200 if outcome == "ok" else 503))
    except StopIteration as finished:
        finished.value[1].done()
    except (httpcore.TimeoutException, httpcore.NetworkError, ValueError):
        pass
    assert handle.inflight == 0
    assert dials <= (2 * count + 1) * (1 + retries)
    assert sent <= (2 if method == b"GET" else 1)
    if timeout is not None:
        assert connecting <= timeout + 1e-6
