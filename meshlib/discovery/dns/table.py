"""The table of questions: each (name, type) is asked by one task, however many targets want its answer (R4, R15)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from meshlib.discovery.alarm import Alarm
from meshlib.discovery.base import ResolverContext
from meshlib.discovery.dns.question import Change, QuestionState
from meshlib.discovery.dns.records import Answer, Kind, Question
from meshlib.discovery.dns.schedule import Limits
from meshlib.errors import DataError, DiscoveryError
from meshlib.model.address import AddressPolicy
from meshlib.model.events import EntrySkipped, SourceFailed, SourceRecovered


class Ask(Protocol):
    """How a question is put: transport.Asker, or a script in tests. Never raises for what a server does."""

    def __call__(self, question: Question, avoid: str = "") -> Coroutine[Any, Any, Answer]: ...


class Row:
    """One question with its state, and who listens to it."""

    def __init__(self, question: Question, limits: Limits, context: ResolverContext) -> None:
        self.state = QuestionState(question, limits)
        self.listeners: list[Callable[[], None]] = []
        self.skipped = (
            0  #: addresses refused by the policy, and ports that are none, counted over all replies
        )
        self.alarm = Alarm(context)
        self.task: asyncio.Task[Any] | None = None
        self.complained: frozenset[tuple[str, str]] = frozenset()

    @property
    def answered(self) -> bool:
        """Whether any reply, or the lack of one, has been noted."""
        return self.state.last is not None

    @property
    def kind(self) -> Kind:
        """What is held true now: the last good answer's kind; UNKNOWN before there is one."""
        return self.state.good.kind if self.state.good is not None else Kind.UNKNOWN


class Table:
    """All questions of one resolver. Lives on the control loop."""

    def __init__(
        self,
        context: ResolverContext,
        ask: Ask,
        policy: AddressPolicy,
        limits: Callable[[str], Limits] = Limits.for_name,
    ) -> None:
        self._context = context
        self._ask = ask
        self._policy = policy
        self._limits = limits
        self._rows: dict[Question, Row] = {}

    def hold(self, question: Question, listener: Callable[[], None]) -> Row:
        """Want the answers to ``question``; ``listener`` is called after each reply. Pair with ``release``."""
        row = self._rows.get(question)
        if row is None:
            row = self._rows[question] = Row(question, self._limits(question.name), self._context)
            row.task = self._context.spawn(self._run(row), name=f"dns {question}")
        row.listeners.append(listener)
        return row

    def release(self, question: Question, listener: Callable[[], None]) -> None:
        """No longer want it. A question that nobody wants is not asked again."""
        row = self._rows.get(question)
        if row is None:
            return  # the table was closed
        row.listeners.remove(listener)
        if not row.listeners:
            del self._rows[question]
            if row.task is not None:
                row.task.cancel()

    def environment_changed(self) -> None:
        """Servers may have changed: questions that fail are asked again at once."""
        for row in self._rows.values():
            if row.state.failures:
                row.state.ask_soon(self._context.now())
                row.alarm.call()

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> tuple[asyncio.Task[Any], ...]:
        """Stop asking; returns the cancelled tasks for the caller to await."""
        tasks = tuple(row.task for row in self._rows.values() if row.task is not None)
        for task in tasks:
            task.cancel()
        self._rows.clear()
        return tasks

    async def _run(self, row: Row) -> None:
        state, now = row.state, self._context.now
        while True:
            delay = state.due - now() if row.answered else 0.0
            if delay > 0:
                await row.alarm.wait(delay)
                continue
            answer, refused = screen(await self._reply(state), self._policy)
            self._note_refused(row, refused)
            failing = state.failures > 0
            change = state.feed(answer, now(), self._context.random())
            self._report(row, change, failing)
            for listener in tuple(row.listeners):
                listener()

    async def _reply(self, state: QuestionState) -> Answer:
        try:
            return await self._ask(state.question, state.avoid)
        except (
            Exception
        ) as error:  # a fault of ours must not end the refreshes of a name: it is told like a server's
            return Answer(Kind.UNKNOWN, rcode="ERROR", detail=repr(error))

    def _note_refused(self, row: Row, refused: tuple[tuple[str, str], ...]) -> None:
        row.skipped += len(refused)
        fresh = frozenset(refused) - row.complained
        row.complained = frozenset(refused)
        # The same record comes back with every refresh: it is counted each time, and told once.
        for where, reason in sorted(fresh):
            self._context.emit(EntrySkipped(f"dns {row.state.question}", where, reason))

    def _report(self, row: Row, change: Change, failing: bool) -> None:
        state, now = row.state, self._context.now()
        source = f"dns {state.question}"
        if change is Change.FAILED and state.last is not None:
            error = failure(state.question, state.last)
            self._context.emit(SourceFailed(source, error, state.good is not None, max(0.0, state.due - now)))
        elif failing and not state.failures:
            self._context.emit(SourceRecovered(source))
        if state.too_old(now) and not state.too_old_reported:
            state.too_old_reported = True
            aged = DiscoveryError(
                f"{state.question}: the last good answer is {state.age(now):.0f} s old; "
                "its addresses may have new owners"
            )
            self._context.emit(SourceFailed(source, aged, True, max(0.0, state.due - now)))


def failure(question: Question, answer: Answer) -> DiscoveryError:
    """The error that an unusable reply stands for."""
    return DiscoveryError(f"DNS: {question}: {answer.rcode or 'no answer'} ({answer.detail})")


def screen(answer: Answer, policy: AddressPolicy) -> tuple[Answer, tuple[tuple[str, str], ...]]:
    """The answer with only those addresses and SRV records that may be used, and (where, reason) of the others.

    Records of which nothing may be used say nothing true about endpoints, so that answer becomes UNKNOWN: a poisoned
    reply must not empty a set (acceptance 105).
    """
    refused: list[tuple[str, str]] = []

    def allowed(address: str, prefix: str = "") -> bool:
        try:
            policy.check(address)
        except DataError as error:
            refused.append((f"{prefix}{address}", error.reason))
            return False
        return True

    addresses = tuple(address for address in answer.addresses if allowed(address))
    srv = []
    for record in answer.srv:
        if record.target and not record.port:
            refused.append((f"SRV target {record.target}", "port 0 cannot be dialled"))
        else:
            srv.append(record)
    glue = tuple((name, tuple(a for a in found if allowed(a, f"{name} "))) for name, found in answer.glue)
    if not refused:
        return answer, ()
    if (answer.addresses and not addresses) or (answer.srv and not srv):
        reasons = "; ".join(f"{where}: {reason}" for where, reason in refused[:3])
        detail = f"{answer.server}: no usable record: {reasons}"
        return Answer(Kind.UNKNOWN, rcode="REFUSED BY POLICY", server=answer.server, detail=detail), tuple(
            refused
        )
    return replace(answer, addresses=addresses, srv=tuple(srv), glue=glue), tuple(refused)
