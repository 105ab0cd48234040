"""The way of one request over endpoints, with scripted outcomes and a clock that stands still unless told."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import httpcore
import pytest

from meshlib.clients.httpx.attempt import LEAST_SLICE, OPEN_SLICE, Dial, Exchange, Pause, Wait, attempt
from meshlib.clients.httpx.body import RequestBody
from meshlib.clients.httpx.faults import Fault, fault_of
from meshlib.errors import NoEndpoints
from meshlib.pickers.subchannel import Subchannel
from tests.unit.clients_httpx.fakes import FakeHandle

ONE, TWO, THREE = ("10.0.0.1", 80), ("10.0.0.2", 80), ("10.0.0.3", 80)


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Run:
    """Drives an attempt: ``answer(step)`` returns an outcome or an exception to throw."""

    def __init__(self, handle: FakeHandle, clock: Clock, **exchange: Any) -> None:
        body = exchange.pop("body", None) or RequestBody(b"", replayable=True)
        self.exchange = Exchange(method=exchange.pop("method", b"GET"), body=body, **exchange)
        self.handle, self.clock = handle, clock
        self.steps: list[Any] = []

    def __call__(self, answer: Callable[[Any], Any]) -> Any:
        steps = attempt(self.handle, self.exchange, _fault, self.clock)  # type: ignore[arg-type]
        try:
            step = next(steps)
            while True:
                self.steps.append(step)
                outcome = answer(step)
                step = steps.throw(outcome) if isinstance(outcome, BaseException) else steps.send(outcome)
        except StopIteration as finished:
            return finished.value

    @property
    def dialled(self) -> list[str]:
        return [step.lease.endpoint.address for step in self.steps if isinstance(step, Dial)]


def _fault(error: BaseException) -> Fault:
    return fault_of(error, httpcore)


class Reply:
    def __init__(self, status: int = 200) -> None:
        self.status = status


def refused() -> httpcore.ConnectError:
    error = httpcore.ConnectError("refused")
    error.__cause__ = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    return error


def local(code: int) -> httpcore.ConnectError:
    error = httpcore.ConnectError("local")
    error.__cause__ = OSError(code, "local")
    return error


def by_address(outcomes: dict[str, Any]) -> Callable[[Any], Any]:
    def answer(step: Any) -> Any:
        if isinstance(step, Dial):
            return outcomes[step.lease.endpoint.address]
        return None

    return answer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def handle(clock: Clock) -> FakeHandle:
    return FakeHandle([ONE, TWO, THREE], clock)


def failures(handle: FakeHandle) -> dict[str, int]:
    return {s.endpoint.address: s.failures for s in handle.subchannels.values() if s.failures}


def test_first_endpoint_serves(handle: FakeHandle, clock: Clock) -> None:
    """One dial, one sample at the head, and the lease stays open for the body."""
    run = Run(handle, clock)
    response, lease = run(lambda step: Reply())
    assert response.status == 200
    assert len(run.dialled) == 1
    assert lease.subchannel.ewma >= 0
    assert handle.inflight == 1
    lease.done()
    assert handle.inflight == 0
    assert failures(handle) == {}


def test_server_error_counts_as_failure_but_is_returned(handle: FakeHandle, clock: Clock) -> None:
    """A 5xx is the caller's answer and the endpoint's failure (decision D6)."""
    response, lease = Run(handle, clock)(lambda step: Reply(503))
    lease.done()
    assert response.status == 503
    assert sum(failures(handle).values()) == 1


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_refused_moves_on(handle: FakeHandle, clock: Clock, method: bytes) -> None:
    """Nothing was sent, so any method moves on; the endpoints that refused are blamed and not dialled twice."""
    run = Run(handle, clock, method=method)
    response, lease = run(by_address({"10.0.0.1": refused(), "10.0.0.2": refused(), "10.0.0.3": Reply()}))
    lease.done()
    assert response.status == 200
    assert run.dialled[-1] == "10.0.0.3"
    assert len(set(run.dialled)) == len(run.dialled)
    assert failures(handle).keys() == set(run.dialled[:-1])
    assert handle.inflight == 0


def test_body_that_started_does_not_move_on(handle: FakeHandle, clock: Clock) -> None:
    """A body that cannot begin again pins the request to where it went."""
    body = RequestBody(iter([b"x"]), replayable=False)
    run = Run(handle, clock, method=b"POST", body=body)

    def answer(step: Any) -> Any:
        list(body)
        return refused()

    with pytest.raises(httpcore.ConnectError):
        run(answer)
    assert len(run.dialled) == 1
    assert handle.inflight == 0


def test_all_refused_raises_last_error(handle: FakeHandle, clock: Clock) -> None:
    """Without a Service address the connection error is the answer, after every endpoint was tried once."""
    run = Run(handle, clock)
    with pytest.raises(httpcore.ConnectError):
        run(lambda step: refused())
    assert sorted(run.dialled) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert handle.refusals == 1
    assert handle.inflight == 0


def test_all_refused_tries_the_service_address_once(handle: FakeHandle, clock: Clock) -> None:
    """The one try of decision D3, on a connection that is not kept."""
    handle.service = _service()
    run = Run(handle, clock)
    outcomes = dict.fromkeys(["10.0.0.1", "10.0.0.2", "10.0.0.3"], refused())
    response, lease = run(by_address({**outcomes, "10.96.0.9": Reply()}))
    assert response.status == 200
    assert lease.endpoint.address == "10.96.0.9"
    assert [step.keep for step in run.steps] == [True, True, True, False]

    handle.service = _service()
    run = Run(handle, clock)
    with pytest.raises(httpcore.ConnectError):
        run(lambda step: refused())
    assert run.dialled.count("10.96.0.9") == 1
    assert handle.service.inflight == 0


def test_out_of_descriptors_is_raised_at_once_and_blames_nobody(handle: FakeHandle, clock: Clock) -> None:
    """EMFILE would meet every endpoint alike."""
    run = Run(handle, clock)
    with pytest.raises(httpcore.ConnectError):
        run(lambda step: local(errno.EMFILE))
    assert len(run.dialled) == 1
    assert failures(handle) == {}
    assert all(s.ewma < 0 for s in handle.subchannels.values())
    assert handle.inflight == 0


def test_unroutable_moves_on_and_blames_nobody(handle: FakeHandle, clock: Clock) -> None:
    """ENETUNREACH says something about our host: the other family may work, the Service address is not tried."""
    handle.service = _service()
    run = Run(handle, clock)
    with pytest.raises(httpcore.ConnectError):
        run(lambda step: local(errno.ENETUNREACH))
    assert len(run.dialled) == 3
    assert failures(handle) == {}
    assert handle.refusals == 0


def test_stale_connection_is_replaced_once_for_idempotent(handle: FakeHandle, clock: Clock) -> None:
    """A reset on a reused connection: the same endpoint again, fresh, nobody blamed; a second reset is raised."""
    run = Run(handle, clock)
    outcomes = iter([httpcore.ReadError("reset"), Reply()])
    _, lease = run(lambda step: next(outcomes))
    lease.done()
    assert len(run.dialled) == 2
    assert len(set(run.dialled)) == 1
    assert [step.fresh for step in run.steps] == [False, True]
    assert failures(handle) == {}

    run = Run(handle, clock)
    with pytest.raises(httpcore.ReadError):
        run(lambda step: httpcore.ReadError("reset"))
    assert len(run.dialled) == 2
    assert handle.inflight == 0


def test_reset_is_not_repeated_for_post_or_new_connections(handle: FakeHandle, clock: Clock) -> None:
    """POST may have been served; a new connection was not stale."""
    run = Run(handle, clock, method=b"POST")
    with pytest.raises(httpcore.ReadError):
        run(lambda step: httpcore.ReadError("reset"))
    assert len(run.dialled) == 1

    run = Run(handle, clock)
    run.exchange.reused = False
    with pytest.raises(httpcore.ReadError):
        run(lambda step: httpcore.ReadError("reset"))
    assert len(run.dialled) == 1
    assert sum(failures(handle).values()) == 2


class StreamReset:
    """As h2 tells it, in httpcore's exception."""

    def __init__(self, code: int) -> None:
        self.error_code = code


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_refused_stream_is_sent_again_and_then_elsewhere(
    handle: FakeHandle, clock: Clock, method: bytes
) -> None:
    """Three more times to the same endpoint, then to another, which takes it; nobody is blamed."""
    outcomes = {ONE[0]: httpcore.RemoteProtocolError(StreamReset(7)), TWO[0]: Reply()}
    run = Run(handle, clock, method=method)
    _, lease = run(by_address(outcomes))
    assert run.dialled == [ONE[0]] * 4 + [TWO[0]]
    assert [step.fresh for step in run.steps] == [False, True, True, True, False]
    assert not any(failures(handle).values())
    lease.done()
    assert handle.inflight == 0


def test_a_refused_stream_everywhere_is_no_reason_for_the_service_address(
    handle: FakeHandle, clock: Clock
) -> None:
    """The endpoints are there, and say no."""
    run = Run(handle, clock, method=b"POST")
    with pytest.raises(httpcore.RemoteProtocolError):
        run(lambda step: httpcore.RemoteProtocolError(StreamReset(7)))
    assert handle.refusals == handle.inflight == 0


def test_another_reset_of_a_stream_is_not_sent_again(handle: FakeHandle, clock: Clock) -> None:
    """Nobody knows what was done: blamed and raised."""
    run = Run(handle, clock)
    with pytest.raises(httpcore.RemoteProtocolError):
        run(lambda step: httpcore.RemoteProtocolError(StreamReset(2)))
    assert run.dialled == [ONE[0]]
    assert failures(handle)[ONE[0]] == 1


def test_connect_timeout_is_a_budget_over_endpoints(handle: FakeHandle, clock: Clock) -> None:
    """Silent endpoints share the caller's connect timeout; none gets less than the least slice."""
    run = Run(handle, clock, connect_timeout=4.0)

    def silent(step: Any) -> Any:
        clock.time += step.connect_timeout
        return httpcore.ConnectTimeout("silent")

    with pytest.raises(httpcore.ConnectTimeout):
        run(silent)
    slices = [step.connect_timeout for step in run.steps]
    assert slices[:3] == [2.0, 1.0, 0.5]
    assert min(slices) >= LEAST_SLICE
    assert sum(slices) == pytest.approx(4.0)
    assert handle.inflight == 0


def test_the_only_endpoint_gets_the_whole_budget(clock: Clock) -> None:
    """One slow endpoint is not given up at half time: it is dialled again with what is left."""
    handle = FakeHandle([ONE], clock)
    run = Run(handle, clock, connect_timeout=4.0)

    def slow(step: Any) -> Any:
        clock.time += step.connect_timeout
        return Reply() if len(run.dialled) == 2 else httpcore.ConnectTimeout("slow")

    response, lease = run(slow)
    lease.done()
    assert response.status == 200
    assert [step.connect_timeout for step in run.steps] == [2.0, 2.0]


def test_no_connect_timeout_still_leaves_a_silent_endpoint(handle: FakeHandle, clock: Clock) -> None:
    """A caller without timeouts is not bound to the first endpoint that never answers."""
    run = Run(handle, clock)
    outcomes = iter([httpcore.ConnectTimeout("silent"), Reply()])
    _, lease = run(lambda step: next(outcomes))
    lease.done()
    assert [step.connect_timeout for step in run.steps] == [OPEN_SLICE, OPEN_SLICE]


def test_retries_of_the_transport_are_further_rounds(handle: FakeHandle, clock: Clock) -> None:
    """httpx's retries=2: all endpoints again after 0 and 0.5 seconds, as the bare library paces them."""
    run = Run(handle, clock, retries=2)
    with pytest.raises(httpcore.ConnectError):
        run(lambda step: refused() if isinstance(step, Dial) else None)
    assert len(run.dialled) == 9
    assert [step.seconds for step in run.steps if isinstance(step, Pause)] == [0.0, 0.5]
    assert handle.inflight == 0


def test_waits_for_first_knowledge_within_both_timeouts(handle: FakeHandle, clock: Clock) -> None:
    """Nothing known: one Wait, bounded by the shorter of the connect and the pool timeout."""
    handle.known = False
    run = Run(handle, clock, connect_timeout=5.0, pool_timeout=0.3)

    def answer(step: Any) -> Any:
        if isinstance(step, Wait):
            clock.time += 0.2
            handle.known = True
            return handle.acquire(step.timeout)
        return Reply()

    _, lease = run(answer)
    lease.done()
    assert handle.waits == [0.3]
    assert run.steps[1].connect_timeout == pytest.approx(4.8 / 2)
    assert run.exchange.pool_is_shorter


def test_known_to_be_empty_is_raised_at_once(handle: FakeHandle, clock: Clock) -> None:
    """NoEndpoints does not wait."""
    handle.replace([])
    run = Run(handle, clock)
    with pytest.raises(NoEndpoints):
        run(lambda step: Reply())
    assert run.steps == []


def test_set_that_empties_on_the_way_raises_the_connection_error(handle: FakeHandle, clock: Clock) -> None:
    """The endpoint refused and then the set was emptied: the refusal is what happened to this request."""

    def answer(step: Any) -> Any:
        handle.replace([])
        return refused()

    with pytest.raises(httpcore.ConnectError):
        Run(handle, clock)(answer)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit(), ValueError("the caller's body")])
def test_what_is_not_the_endpoints_fault_ends_the_lease_unblamed(
    handle: FakeHandle, clock: Clock, error: BaseException
) -> None:
    """Cancellation and the caller's own errors pass through, count nothing, and leave nothing in flight."""
    with pytest.raises(type(error)):
        Run(handle, clock)(lambda step: error)
    assert handle.inflight == 0
    assert failures(handle) == {}


def test_dropped_attempt_ends_its_lease(handle: FakeHandle, clock: Clock) -> None:
    """A driver that dies between two steps leaves no count behind."""
    body = RequestBody(b"", replayable=True)
    steps = attempt(handle, Exchange(b"GET", body), _fault, clock)  # type: ignore[arg-type]
    next(steps)
    assert handle.inflight == 1
    del steps
    assert handle.inflight == 0


def _service() -> Subchannel:
    return next(iter(FakeHandle([("10.96.0.9", 80)]).subchannels.values()))
