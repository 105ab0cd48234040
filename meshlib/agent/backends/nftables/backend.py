"""Backend: plans as transactions of nf_tables, and the table as objects again.

No ``nft`` program and no library: netlink, in this process. (libnftables parses text or JSON, and reads all tables into
a cache of its own before each command.)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from meshlib.agent.backends.base import Probe
from meshlib.agent.backends.nftables import layout, messages, translate
from meshlib.agent.backends.nftables.assembly import Step, assemble
from meshlib.agent.backends.nftables.messages import Element, SetSpec
from meshlib.agent.backends.nftables.rules import ChainSpec, digest
from meshlib.agent.backends.nftables.transaction import TransactionSocket
from meshlib.agent.desired import (
    Action,
    Frontend,
    FrontendKey,
    FrontendKind,
    Hairpin,
    Place,
    PortKey,
    Route,
    Target,
)
from meshlib.agent.netlink.exchange import Refusal
from meshlib.agent.netlink.messages import Malformed, Request
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb
from meshlib.model.service import ServiceKey

#: A refused transaction is sent again without the refused; each round tells of all that are refused in it, except for
#: those that depend on others.
_ROUNDS = 4


class NftablesBackend:
    """The table of one family, 4 or 6. Belongs to one thread; see ``Backend`` for the contract.

    ``connect`` opens the socket, on first use and again after an error: in the network namespace that is to be
    programmed.
    """

    name = "nftables"

    def __init__(
        self,
        family: int,
        table: str = "meshlib",
        connect: Callable[[], TransactionSocket] = TransactionSocket,
    ) -> None:
        self.family = family
        self.table = table
        self._connect = connect
        self._connection: TransactionSocket | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        return translate.kinds()

    def close(self) -> None:
        """Give the socket back; the rules stay."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def probe(self) -> Probe:
        """Sends a table with every kind of set and rule that is used, and its removal, as one transaction: it never
        takes effect (and is dormant besides), so even the packets of a busy node pass untouched."""
        try:
            refusals = self._socket().commit(_trial(self.family, f"{self.table}-probe"))
        except OSError as error:
            self.close()
            return Probe(False, _explain(error), ())
        if refusals:
            first = refusals[min(refusals)]
            reason = f"nf_tables refuses a rule ({first}): Linux 5.13, nft_nat, nft_masq, nft_fib are needed"
            return Probe(False, reason, ())
        return Probe(True, f"nf_tables over netlink, Linux {os.uname().release}", (self.family,))

    def fixed(self, place: Place) -> Objects:
        return translate.fixed(place)

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        return translate.translate(frontend, place)

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        return translate.translate_hairpin(hairpin)

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """The table bears our mark, and everything is in it."""
        return None

    def words(self, key: ObjectKey, value: Any) -> str:
        """An element by its fields, anything else by its kind and name."""
        return translate.describe(key, value, self.family)

    def dump(self, family: int) -> Objects:
        """What is in our table. A table of an older layout counts as a table with nothing in it. Raises OSError, with
        EEXIST when a table of this name is somebody else's."""
        try:
            return self._dump()
        except (OSError, Malformed):
            self.close()
            raise

    def apply(self, plan: Sequence[Operation], now: float) -> Sequence[Failed]:
        """One transaction. Where operations are refused, they are left out, and the rest is sent again."""
        todo, failed = list(plan), list[Failed]()
        together = True
        for rounds_left in reversed(range(_ROUNDS)):
            steps = assemble(todo, self.family, self.table, together)
            try:
                refusals = self._socket().commit([step.request for step in steps])
            except OSError as error:
                self.close()
                return [*failed, *_all_failed(todo, error.errno or errno.EIO, _explain(error))]
            if not refusals:
                return failed
            blamed = _blamed(steps, refusals)
            hopeless = -1 in refusals or len(refusals) == len(steps) or not (blamed or together)
            if hopeless or not rounds_left:
                first = refusals[min(refusals)]
                return [*failed, *_all_failed(todo, first.errno, str(first))]
            failed += [failure for failure in blamed.values() if not _gone_already(failure)]
            todo = [operation for operation in todo if operation.key not in blamed]
            together = False
        return failed

    def tick(self, now: float) -> float | None:
        """Nothing waits: flows that exist go on by themselves."""
        return None

    def cleanup(self) -> bool:
        """Remove our table with all that is in it; False when there is none. Raises OSError; EEXIST: not ours."""
        if not self._comment():
            return False
        refusals = self._socket().commit([messages.delete_table(self.family, self.table)])
        if refusals:
            refusal = refusals[min(refusals)]
            raise OSError(refusal.errno, str(refusal))
        return True

    def _socket(self) -> TransactionSocket:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _comment(self) -> str:
        """Our table's comment, "" when there is none. Raises OSError with EEXIST for somebody else's table."""
        for message in self._socket().dump(messages.get_tables(self.family)):
            name, comment = messages.parse_table(message)
            if name == self.table:
                if not layout.is_ours(comment):
                    text = f"a table {name} of somebody else's is there (its comment: {comment!r})"
                    raise OSError(errno.EEXIST, text)
                return comment
        return ""

    def _dump(self) -> dict[ObjectKey, Any]:
        comment = self._comment()
        if not comment:
            return {}
        objects: dict[ObjectKey, Any] = {ObjectKey(translate.TABLE, ""): comment}
        if comment != layout.COMMENT:
            return objects
        specs = layout.set_specs(self.family)
        special = layout.special_specs(self.family)
        for message in self._socket().dump(messages.get_sets(self.family, self.table)):
            _, name = messages.parse_set(message)
            objects[ObjectKey(translate.SET, name)] = None
            if name in specs:
                for element in self._elements(specs[name]):
                    objects[ObjectKey(name, element.key + element.key_end)] = element.value
            elif name in (layout.PODS, layout.SERVICE_RANGES):
                content = translate.ranges_of(self._elements(special[name]), 4 if self.family == 4 else 16)
                objects[ObjectKey(translate.RANGES, name)] = content
        objects.update(self._chains())
        return objects

    def _elements(self, spec: SetSpec) -> list[Element]:
        found: list[Element] = []
        for message in self._socket().dump(messages.get_elements(self.family, self.table, spec.name)):
            found += messages.parse_elements(message, spec)
        return found

    def _chains(self) -> dict[ObjectKey, Any]:
        hooks: dict[str, messages.Hook | None] = {}
        rules: dict[str, list[str]] = {}
        for message in self._socket().dump(messages.get_chains(self.family)):
            table, name, hook = messages.parse_chain(message)
            if table == self.table:
                hooks[name], rules[name] = hook, []
        for message in self._socket().dump(messages.get_rules(self.family, self.table)):
            table, name, expressions = messages.parse_rule(message)
            if table == self.table and name in rules:
                rules[name].append(digest(expressions))
        return {
            ObjectKey(translate.CHAIN, name): ChainSpec(hook, tuple(rules[name]))
            for name, hook in hooks.items()
        }


def _blamed(steps: Sequence[Step], refusals: Mapping[int, Refusal]) -> dict[ObjectKey, Failed]:
    blamed: dict[ObjectKey, Failed] = {}
    for index in sorted(refusals):
        refusal = refusals[index]
        for operation in steps[index].operations if index >= 0 else ():
            blamed.setdefault(operation.key, Failed(operation, refusal.errno, str(refusal)))
    return blamed


def _gone_already(failure: Failed) -> bool:
    """What is to be removed and is not there is as it should be."""
    return failure.operation.verb is Verb.REMOVE and failure.errno == errno.ENOENT


def _all_failed(operations: Iterable[Operation], number: int, text: str) -> list[Failed]:
    return [Failed(operation, number, text) for operation in operations]


def _explain(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "no permission: nf_tables needs CAP_NET_ADMIN in the network namespace"
    if error.errno in (errno.ENOBUFS, errno.ETIMEDOUT):
        return "the kernel's answer was lost; whether it was done is not known"
    if error.errno == errno.EPROTONOSUPPORT:
        return "this kernel has no netfilter netlink (module nfnetlink)"
    return f"netlink: {error}"


def _trial(family: int, table: str) -> list[Request]:
    """A table in which a frontend of every kind is served, and its removal."""
    endpoint = "192.0.2.1" if family == 4 else "2001:db8::1"
    place = Place(family, (endpoint,), (f"{endpoint}/32",))
    owner = PortKey(ServiceKey("probe", "probe"), "", "TCP")
    targets = Route(Action.FORWARD, (Target(endpoint, 80), Target(endpoint, 81, 2)))
    objects = dict(translate.fixed(place))
    for kind, address in ((FrontendKind.LOAD_BALANCER, endpoint), (FrontendKind.NODE_PORT, "")):
        frontend = Frontend(
            FrontendKey("TCP", address, 80),
            kind,
            owner,
            targets,
            inside=targets,
            affinity_seconds=10,
            source_ranges=(f"{endpoint}/127" if family == 6 else f"{endpoint}/31",),
        )
        objects.update(translate.translate(frontend, place))
    plan = [Operation(Verb.ADD, key, value) for key, value in objects.items()]
    steps: list[Step] = assemble(plan, family, table)
    requests = [step.request for step in steps]
    requests[0] = messages.new_table(family, table, layout.COMMENT, dormant=True)
    return [*requests, messages.delete_table(family, table)]
