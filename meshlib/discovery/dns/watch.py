"""One DNS target being watched: find the name (walk), follow its questions, publish what they add up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshlib.discovery.alarm import Alarm
from meshlib.discovery.base import Publish, ResolverContext
from meshlib.discovery.dns.assemble import (
    Entry,
    PortSpec,
    is_service_address,
    plain_entries,
    snapshot,
    srv_entries,
)
from meshlib.discovery.dns.describe import describe_rows
from meshlib.discovery.dns.names import Walk, candidates, combine, local_addresses
from meshlib.discovery.dns.records import Kind, Question, RecordType
from meshlib.discovery.dns.system import SystemNames
from meshlib.discovery.dns.table import Row, Table, failure
from meshlib.discovery.outlet import Outlet
from meshlib.errors import DataError
from meshlib.model.address import RELAXED
from meshlib.model.events import EntrySkipped, FallbackEnded, FellBack
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Failure

#: RFC 8305 section 3: once one family has answered, the other gets this long before we go on without it.
FAMILY_GRACE = 0.05
#: How long a found name is trusted while an earlier candidate of the search list might have appeared, seconds. The
#: system resolver would notice at its next look-up; a minute costs one walk, not one per refresh (R2, R15).
REWALK = 60.0
#: A name that no candidate has is walked again after this, seconds: R5's SOA-less negative.
REWALK_ABSENT = 5.0
#: SRV targets without glue are waited for this long before the known ones are published alone, so that one of a hundred
#: does not get all the traffic; then availability wins.
GLUE_PATIENCE = 1.0

_FAMILY_TYPES = {4: RecordType.A, 6: RecordType.AAAA}


@dataclass(frozen=True, slots=True)
class Shared:
    """What all watches of one resolver use. ``families``: dialable, preferred first."""

    context: ResolverContext
    table: Table
    system: SystemNames
    families: tuple[int, ...]


class DnsWatch:
    """Implements discovery.base.Subscription for ``dns`` and ``dns+srv`` targets."""

    def __init__(self, shared: Shared, target: Target, publish: Publish) -> None:
        self._shared = shared
        self._context = shared.context
        self._outlet = Outlet(publish)
        self._target = target
        self._server = target.server
        self._label = target.name
        self._srv = target.scheme == "dns+srv"
        if self._srv:
            service, protocol, self._base = target.name.split(".", 2)
            self._prefix = f"{service}.{protocol}.".lower()
            self._port = PortSpec.of_srv(target.name)
        else:
            self._prefix, self._base = "", target.name
            self._port = PortSpec(number=target.port if isinstance(target.port, int) else 0)
        self._alarm = Alarm(self._context)
        self._held: dict[Question, Row] = {}
        self._followed = ""  #: the absolute name being followed, without the SRV prefix
        self._provisional = False  #: followed only because its reply was unusable: walk again once it speaks
        self._walking: frozenset[Question] = frozenset()  #: held for a walk under way
        self._walked: tuple[str, ...] = ()
        self._walk_at = math.inf
        self._walked_absent = False
        self._tried: list[str] = []
        self._local: tuple[str, ...] = ()
        self._had_records = False
        self._srv_changed_at = 0.0
        self._srv_generation = -1
        self._vip = False
        self._vip_for: tuple[Entry, ...] | None = None
        self._vip_question: Question | None = None
        self._skipped_local = 0
        self.task = self._context.spawn(self._run(), name=f"dns watch {target.name}")

    def close(self) -> None:
        """Stop asking and publishing; idempotent."""
        if self._outlet.closed:
            return
        self._outlet.closed = True
        self.task.cancel()
        self._walking = frozenset()
        self._hold_only(frozenset())

    @property
    def closed(self) -> bool:
        return self._outlet.closed

    def environment_changed(self) -> None:
        """resolv.conf or the hosts file changed."""
        self._alarm.call()

    # -- following -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            local = self._without_dns()
            if local:
                await self._alarm.wait()
                continue
            try:
                names = candidates(self._base, self._shared.system.conf)
            except DataError as error:
                self._outlet.show(None, Failure(error, hopeless=True))
                await self._alarm.wait()
                continue
            if self._must_walk(names):
                await self._walk(names)
            self._assemble()
            until = min(self._walk_at - self._context.now(), self._patience())
            await self._alarm.wait(None if until == math.inf else max(0.001, until))

    def _without_dns(self) -> bool:
        """Addresses that need no DNS: a literal, the hosts file, localhost. True when they were published."""
        if self._srv:
            return False
        addresses = _literal(self._base)
        if not addresses and not self._server:
            addresses = local_addresses(self._base, self._shared.system.hosts)
        usable = []
        for address in addresses:
            try:
                usable.append(RELAXED.check(address))
            except DataError as error:
                if address not in self._local:
                    self._context.emit(EntrySkipped("hosts", f"{self._base} {address}", error.reason))
                    self._skipped_local += 1
        self._local = tuple(addresses)
        if not usable:
            return False
        self._followed, self._walked = "", ()
        self._hold_only(frozenset())
        # A family that the file names is meant, whatever routes the host has: loopback needs none.
        families = tuple(dict.fromkeys((*self._shared.families, 4, 6)))
        self._show(plain_entries(usable, self._port.number), families)
        return True

    def _must_walk(self, names: tuple[str, ...]) -> bool:
        if not self._followed or names != self._walked or self._context.now() >= self._walk_at:
            return True
        kind = self._main_kind()
        if self._provisional:
            return kind is not Kind.UNKNOWN
        return kind is Kind.NXDOMAIN and not self._walked_absent and len(names) > 1

    async def _walk(self, names: tuple[str, ...]) -> None:
        walk = Walk(names)
        while not walk.done:
            kind, servfail = await self._settle(walk.current)
            walk.feed(kind, servfail)
        self._walking = frozenset()
        self._walked, self._tried = names, walk.tried
        now = self._context.now()
        self._walk_at = math.inf
        self._provisional = self._walked_absent = False
        outcome = walk.outcome
        if outcome is Kind.RECORDS:
            self._follow(walk.found)
            if walk.failed or walk.found != names[0]:
                self._walk_at = now + REWALK
        elif (
            self._followed in names and self._had_records
        ):  # keep what we have; its own questions keep or empty it
            self._follow(self._followed)
            self._walked_absent = True
            if len(names) > 1:
                self._walk_at = now + REWALK
        elif outcome is Kind.UNKNOWN:
            self._provisional = len(names) > 1
            self._follow(walk.failed)
        elif outcome is Kind.NODATA:
            self._follow(walk.nodata)
            if len(names) > 1:
                self._walk_at = now + REWALK
        else:
            self._follow(names[0])
            self._walked_absent = True
            if len(names) > 1:
                self._walk_at = now + REWALK_ABSENT

    async def _settle(self, name: str) -> tuple[Kind, bool]:
        """Ask for ``name`` and wait for the replies; a family may be late by FAMILY_GRACE if the other has records."""
        questions = self._questions(name)
        self._walking |= frozenset(questions)
        rows = [self._hold(question) for question in questions]
        grace_ends = math.inf
        while not all(row.answered for row in rows):
            now = self._context.now()
            if any(row.kind is Kind.RECORDS for row in rows):
                grace_ends = min(grace_ends, now + FAMILY_GRACE)
                if now >= grace_ends:
                    break
            await self._alarm.wait(None if grace_ends == math.inf else grace_ends - now)
            if self._followed:
                self._assemble()
        kinds = tuple(_said(row) for row in rows if row.answered)
        unusable = [row.state.last for row in rows if row.answered and _said(row) is Kind.UNKNOWN]
        servfail = all(answer is not None and answer.rcode == "SERVFAIL" for answer in unusable)
        return combine(kinds), servfail

    def _questions(self, name: str) -> tuple[Question, ...]:
        if self._srv:
            return (Question(self._prefix + name, RecordType.SRV, self._server),)
        return self._address_questions(name)

    def _address_questions(self, name: str) -> tuple[Question, ...]:
        families = self._shared.families
        if self._shared.system.conf.no_aaaa and 4 in families:
            families = (4,)
        return tuple(Question(name, _FAMILY_TYPES[family], self._server) for family in families)

    def _follow(self, name: str) -> None:
        self._followed = name
        questions = self._questions(name)
        for question in questions:
            self._hold(question)
        self._hold_only(frozenset(questions))

    def _hold(self, question: Question) -> Row:
        row = self._held.get(question)
        if row is None:
            row = self._held[question] = self._shared.table.hold(question, self._alarm.call)
        return row

    def _hold_only(self, questions: frozenset[Question]) -> None:
        for question in [held for held in self._held if held not in questions | self._walking]:
            del self._held[question]
            self._shared.table.release(question, self._alarm.call)

    def _main_rows(self) -> list[Row]:
        return [
            self._held[question] for question in self._questions(self._followed) if question in self._held
        ]

    def _main_kind(self) -> Kind:
        return combine(tuple(row.kind for row in self._main_rows()) or (Kind.UNKNOWN,))

    # -- assembling ----------------------------------------------------------------------------------------------

    def _assemble(self) -> None:
        """Publish what the followed questions add up to now, if it differs from what was published."""
        if not self._followed:
            return
        rows = self._main_rows()
        kind = self._main_kind()
        if kind is Kind.RECORDS:
            entries = self._srv_entries(rows[0]) if self._srv else self._plain_entries(rows)
            if entries is None:
                return
            self._had_records = True
            self._watch_for_vip(rows, entries)
            self._show(entries, self._shared.families, [*rows, *self._held.values()])
        elif kind is Kind.NODATA or (kind is Kind.NXDOMAIN and self._had_records):
            self._show((), self._shared.families, rows)
        elif kind is Kind.NXDOMAIN:
            tried = ", ".join(self._tried) or f"{self._followed} {kind.value}"
            self._outlet.show(DoesNotExist(f"DNS has no {self._prefix}{self._base}: {tried}"))
        else:
            self._outlet.show(None, _failure(rows))

    def _plain_entries(self, rows: Sequence[Row]) -> tuple[Entry, ...]:
        addresses = [address for row in rows if row.state.good for address in row.state.good.addresses]
        return plain_entries(addresses, self._port.number)

    def _srv_entries(self, row: Row) -> tuple[Entry, ...] | None:
        """None: targets are still being asked for, or nothing usable is known of any."""
        good = row.state.good
        if good is None or not good.offered:
            self._hold_only(frozenset([row.state.question]))
            return ()
        if row.state.generation != self._srv_generation:
            self._srv_generation, self._srv_changed_at = row.state.generation, self._context.now()
        addresses: dict[str, tuple[str, ...]] = dict(good.glue)
        missing = {record.target for record in good.srv if record.target and record.target not in addresses}
        wanted = [question for name in sorted(missing) for question in self._address_questions(name)]
        extra = {question: self._hold(question) for question in wanted}
        self._hold_only(frozenset([row.state.question, *wanted]))
        waiting = not all(held.answered for held in extra.values())
        if waiting and self._context.now() - self._srv_changed_at < GLUE_PATIENCE:
            return None
        for question, held in extra.items():
            if held.state.good is not None:
                addresses[question.name] = addresses.get(question.name, ()) + held.state.good.addresses
        entries = srv_entries(good.srv, addresses)
        if not entries and any(held.kind is Kind.UNKNOWN for held in extra.values()):
            self._outlet.show(None, _failure([row, *extra.values()]))
            return None
        return entries

    def _patience(self) -> float:
        """Seconds until targets without an answer are no longer waited for."""
        if not self._srv or all(row.answered for row in self._held.values()):
            return math.inf
        left = self._srv_changed_at + GLUE_PATIENCE - self._context.now()
        return left if left > 0 else math.inf

    def _watch_for_vip(self, rows: Sequence[Row], entries: tuple[Entry, ...]) -> None:
        """R14: ask once per change whether a single address in the cluster's zone is a Service's own."""
        if self._srv:
            good = rows[0].state.good
            self._set_vip(good is not None and is_service_address(self._followed, good))
            return
        question = Question(self._followed, RecordType.SRV, self._server)
        if len(entries) != 1 or ".svc." not in self._followed:
            self._vip_for = None
            self._set_vip(False)
        elif entries != self._vip_for:
            row = self._hold(question)
            if not row.answered:
                return
            self._vip_for = entries
            good = row.state.good
            self._set_vip(good is not None and is_service_address(self._followed, good))
        self._hold_only(frozenset(self._held) - {question})

    def _set_vip(self, vip: bool) -> None:
        if vip == self._vip:
            return
        self._vip = vip
        target = str(self._target)
        if vip:
            reason = (
                f"DNS gives only the Service's own address for {self._followed}: connections, not requests, "
                "are spread; make the Service headless, or use k8s:///"
            )
            self._context.emit(FellBack(target, "service address", reason))
        else:
            self._context.emit(FallbackEnded(target))

    # -- publishing ----------------------------------------------------------------------------------------------

    def _show(self, entries: Sequence[Entry], families: Sequence[int], rows: Sequence[Row] = ()) -> None:
        skipped = self._skipped_local + sum(row.skipped for row in {id(row): row for row in rows}.values())
        facts = snapshot(self._label, self._port, entries, families, skipped)
        self._outlet.show(facts, _failure([row for row in rows if row.state.stale]))

    # -- for people ----------------------------------------------------------------------------------------------

    def describe(self) -> Mapping[str, Any]:
        """Source, server, rcode, TTL, age, generation, staleness of the set, and of each question below it."""
        main = self._main_rows() if self._followed else []
        return {
            "source": "hosts" if self._local and not self._followed else "dns",
            "name": self._prefix + (self._followed or self._base),
            **describe_rows(main, self._held.values(), self._context.now()),
            "skipped": self._skipped_local + sum(row.skipped for row in self._held.values()),
            "service_address": self._vip,
            "tried": list(self._tried),
        }


def _failure(rows: Sequence[Row]) -> Failure | None:
    """The Failure that the unusable replies of ``rows`` amount to, if there are any; hopeless when all of them are."""
    unusable = [(row, row.state.last) for row in rows if row.state.last is not None and row.state.failures]
    if not unusable:
        return None
    row, last = unusable[0]
    return Failure(failure(row.state.question, last), hopeless=all(answer.hopeless for _, answer in unusable))


def _said(row: Row) -> Kind:
    """What a row says in a walk: the truth if it has one, else its last reply."""
    if row.state.good is not None:
        return row.state.good.kind
    return row.state.last.kind if row.state.last is not None else Kind.UNKNOWN


def _literal(name: str) -> tuple[str, ...]:
    """The target's host, if it is an address: the person who typed it opted in."""
    try:
        return (RELAXED.check(name),)
    except DataError:
        return ()
