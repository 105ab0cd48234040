"""Course: which attempt of one call is under way, and what follows when it ends. What the user holds is a ``MeshCall``.

An attempt whose connection was refused is replaced by one on another endpoint before anybody can see it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import grpc

from meshlib.clients.grpc.attempts import Attempts
from meshlib.clients.grpc.callbacks import run_callbacks
from meshlib.clients.grpc.otherwise import Nobody
from meshlib.clients.grpc.reach import holds_calls, undecided
from meshlib.clients.grpc.requests import RequestSource
from meshlib.clients.grpc.status import CLOSED_DETAILS, MeshRpcError, is_local, is_refusal
from meshlib.clients.grpc.transport import Completion
from meshlib.clients.grpc.waiting import connected
from meshlib.runtime.lease import Lease
from meshlib.runtime.primitives import new_condition, start_helper

#: Starts the call on one endpoint: (the method there, request or requests, seconds left) -> grpcio's rendezvous.
Start = Callable[[Any, Any, "float | None"], Any]


class Attempt:
    """One try on one endpoint."""

    __slots__ = ("__weakref__", "completion", "rendezvous")

    def __init__(self, rendezvous: Any, completion: Any) -> None:
        self.rendezvous = rendezvous
        self.completion = completion


class Course:
    """One RPC, from its first attempt to its end. Thread-safe. Dropping the last reference gives its counts back."""

    def __init__(
        self,
        owner: Any,
        start: Start,
        attempts: Attempts,
        request: Any,
        source: RequestSource | None,
    ) -> None:
        super().__init__()
        self._owner = owner
        self._start = start
        self._attempts = attempts
        self._request = request
        self._source = source
        self._condition = new_condition()
        self._attempt: Attempt | None = None
        self._error: MeshRpcError | None = None
        self._cancelled = False
        self._callbacks: list[Callable[[], None]] | None = []  #: None: the call has ended
        self._pin: list[object] = []  #: holds this object while somebody waits for its end

    # -- starting and moving on ----------------------------------------------------------------------------------

    def begin(self, lease: Lease | None, timeout: float | None) -> None:
        """Start on ``lease``, or wait for one in a helper thread. Raises what grpc raises at once (bad request)."""
        if self._owner.closed.is_set():
            if lease is not None:
                lease.done()
            raise ValueError("Cannot invoke RPC: Channel closed!")  # the words of calls that do not block
        if lease is None or not self._decided(lease):
            self._wait(0.0, lease)
            return
        attempt = self._launch(lease, timeout)
        self._attempt = attempt
        self._watch(attempt)

    def _decided(self, lease: Lease) -> bool:
        """Whether the call may be handed over now; False: there is no connection yet, nor a failure to connect."""
        try:
            transport = self._owner.transport(lease)
            try:
                if transport.draining or not (undecided(transport.look(True)) or holds_calls(transport)):
                    return True
            finally:
                transport.end()
            return self._source is None and not self._owner.serialises(self._request)
        except BaseException:
            lease.done()
            raise

    def _launch(self, lease: Lease, timeout: float | None) -> Attempt:
        try:
            bound = self._owner.bind(lease)
        except BaseException:
            lease.done()
            raise
        completion = Completion(lease, bound.transport)
        source = self._source
        try:
            request = self._request if source is None else source.view()
            return Attempt(self._start(bound.callable, request, timeout), completion)
        except BaseException:
            completion.done()
            raise

    def _replayable(self) -> bool:
        """Whether another attempt would see every message from the start."""
        return self._source is None or self._source.replayable

    def _watch(self, attempt: Attempt | None) -> None:
        """Have the attempt's end noticed; one that has ended already is replaced here, in a loop, not by recursion."""
        while attempt is not None and not self._register(attempt):
            attempt = self._step(attempt)

    def _register(self, attempt: Attempt) -> bool:
        """The callback must not keep this object alive, unless somebody waits for it: dropping it means cancelling."""
        completion, pin = attempt.completion, self._pin
        mine, its = weakref.ref(self), weakref.ref(attempt)

        def ended(pin: object = pin) -> None:
            call, still = mine(), its()
            if call is not None and still is not None:
                call._settle(still)
            else:
                completion.done()

        return bool(attempt.rendezvous.add_callback(ended))

    def _settle(self, attempt: Attempt) -> bool:
        """The attempt has ended. True: it does not decide the call, look again; False: this is the call's end."""
        self._watch(self._step(attempt))
        return attempt is not self._attempt

    def _replaced(self, attempt: Attempt) -> bool:
        """``_settle`` where it matters. Any other end is accounted for by the callback, without contending with it."""
        return attempt.rendezvous.code() is grpc.StatusCode.UNAVAILABLE and self._settle(attempt)

    def _step(self, attempt: Attempt) -> Attempt | None:
        """Decide once what follows an attempt that has ended; returns the one that took its place, not yet watched."""
        callbacks: list[Callable[[], None]] = []
        waiting: float | None = None
        with self._condition:
            if attempt is not self._attempt or self._callbacks is None:
                return None
            code = attempt.rendezvous.code()
            fresh, lease = self._move_on(attempt) if self._refused(attempt, code) else (None, None)
            if fresh is not None or self._error is not None:
                self._attempt = fresh
            elif lease is not None:
                self._attempt = None
                waiting = 0.0
            elif self._attempts.wait_for_ready and self._refused(attempt, code) and self._replayable():
                self._attempt = None
                waiting = self._attempts.next_round()
            if fresh is None and waiting is None:
                if self._is_local(attempt, code):
                    attempt.completion.done()
                attempt.completion.ended(code)
                callbacks, self._callbacks = self._callbacks, None
                self._pin.clear()
            self._condition.notify_all()
        if waiting is not None:
            self._wait(waiting, lease)
        run_callbacks(callbacks)
        return fresh

    def _refused(self, attempt: Attempt, code: grpc.StatusCode | None) -> bool:
        if self._cancelled or code is not grpc.StatusCode.UNAVAILABLE:
            return False
        details = attempt.rendezvous.details()
        return is_refusal(code, details, attempt.completion.transport.target) and not is_local(details)

    def _is_local(self, attempt: Attempt, code: grpc.StatusCode | None) -> bool:
        """Whether the call ends for want of something of our own process: that blames nobody."""
        if code is not grpc.StatusCode.UNAVAILABLE:
            return False
        details = attempt.rendezvous.details()
        return is_refusal(code, details, attempt.completion.transport.target) and is_local(details)

    def _move_on(self, attempt: Attempt) -> tuple[Attempt | None, Lease | None]:
        """The attempt on the next endpoint, or where to wait for a connection first; with ``_error`` set when the call
        has to end otherwise.
        """
        completion = attempt.completion
        completion.responded(True)
        completion.done(True)
        if not self._replayable():
            return None, None
        lease = self._attempts.after_refusal(completion.lease.subchannel)
        if lease is None:
            return None, None
        try:
            if not self._attempts.last_chance and not self._decided(lease):
                return None, lease
            return self._launch_within(lease), None
        except MeshRpcError as error:
            self._error = error
        except ValueError as error:
            self._error = MeshRpcError(grpc.StatusCode.CANCELLED, CLOSED_DETAILS, error)
        return None, None

    def _launch_within(self, lease: Lease) -> Attempt:
        """A later attempt: what grpc would raise at once becomes the call's error."""
        try:
            return self._launch(
                lease, self._attempts.remaining()
            )  # of a deadline that is over, core says so itself
        except ValueError as error:
            if self._owner.closed.is_set():
                raise MeshRpcError(grpc.StatusCode.CANCELLED, CLOSED_DETAILS, error) from error
            # What grpc says at once to a call that it gets at once, such as to metadata that it does not allow.
            raise MeshRpcError(grpc.StatusCode.INTERNAL, str(error), error) from error
        except grpc.RpcError as error:
            raise MeshRpcError(error.code(), error.details() or str(error), error) from error

    def _wait(self, pause: float, lease: Lease | None = None) -> None:
        """Get a lease, and its endpoint connected, in a helper thread. That holds only weak references: an abandoned
        call stops waiting.
        """
        attempts, owner, mine, pin = self._attempts, self._owner, weakref.ref(self), self._pin

        def alive() -> bool:
            call = mine()
            return call is not None and call._callbacks is not None

        def work(pin: object = pin) -> None:
            try:
                outcome = connected(owner, attempts, lease, pause, alive)
            except ValueError as error:
                outcome = MeshRpcError(grpc.StatusCode.CANCELLED, CLOSED_DETAILS, error)
            call = mine()
            if call is not None:
                call._continue(outcome)
            elif isinstance(outcome, Lease):
                outcome.done()

        start_helper("grpc-pick", work)

    def _continue(self, outcome: Lease | MeshRpcError) -> None:
        """The helper's result: start on it, or end the call with its error."""
        if isinstance(outcome, MeshRpcError):
            self._otherwise(outcome)
            return
        with self._condition:
            if self._callbacks is None:
                outcome.done()
                return
            attempt: Attempt | None = None
            try:
                attempt = self._attempt = self._launch_within(outcome)
            except MeshRpcError as error:
                self._fail(error)
            self._condition.notify_all()
        self._watch(attempt)

    def _otherwise(self, error: MeshRpcError) -> None:
        """Go on in grpc's own way if the host is none of ours, else end with the error."""
        method = self._owner.otherwise(error, self._attempts)
        if method is None:
            self._fail(error)
            return
        source, attempt = self._source, None
        with self._condition:
            if self._callbacks is None:
                return
            try:
                request = self._request if source is None else source.view()
                rendezvous = self._start(method, request, self._attempts.remaining())
                attempt = self._attempt = Attempt(rendezvous, Nobody())
            except (ValueError, grpc.RpcError) as failure:
                self._fail(MeshRpcError(grpc.StatusCode.INTERNAL, str(failure), failure))
            self._condition.notify_all()
        self._watch(attempt)

    def _fail(self, error: MeshRpcError) -> bool:
        with self._condition:
            if self._callbacks is None:
                return False
            self._error = error
            callbacks, self._callbacks = self._callbacks, None
            self._pin.clear()
            self._condition.notify_all()
        run_callbacks(callbacks)
        return True

    # -- looking at the attempt under way ------------------------------------------------------------------------

    def _started(self, timeout: float | None = None) -> Any:
        """The rendezvous under way, or the error that ended the call before it had one. FutureTimeoutError in time."""
        attempt = self._attempt
        if attempt is not None:
            return attempt
        with self._condition:
            if not self._condition.wait_for(lambda: self._attempt or self._error, timeout):
                raise grpc.FutureTimeoutError
            return self._error or self._attempt

    def _until_final(self, look: Callable[[Any, float | None], Any], timeout: float | None = None) -> Any:
        """``look(call, seconds left)`` at the attempt that decides; what a replaced attempt said does not count."""
        clock = self._owner.clock
        until = None if timeout is None else clock() + timeout
        while True:
            left = None if until is None else max(0.0, until - clock())
            found = self._started(left)
            if isinstance(found, MeshRpcError):
                return look(found, left)
            rendezvous = found.rendezvous
            try:
                seen = look(rendezvous, left)
            except grpc.RpcError as error:
                if error is not rendezvous or not self._replaced(found):
                    raise
                continue
            if rendezvous.is_active() or not self._replaced(found):
                return seen

    def __del__(self) -> None:
        attempt = getattr(self, "_attempt", None)
        if attempt is not None:
            attempt.completion.done()
