"""Assembly: the operations of a plan as the messages of one transaction, in an order that nf_tables accepts. Pure.

Nobody sees the steps of a transaction, so the order need not be the plan's: tables, sets, chains, what goes out of
sets, what comes in, then chains and sets that are needed no more. Ranges that overlap with those they replace demand
exactly this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

from meshlib.agent.backends.nftables import layout, messages
from meshlib.agent.backends.nftables.messages import Element, SetSpec
from meshlib.agent.backends.nftables.translate import CHAIN, RANGES, SET, TABLE, range_elements
from meshlib.agent.netlink.messages import Request
from meshlib.agent.objects import Operation, Verb


class Step(NamedTuple):
    """A message with the operations that it carries out."""

    request: Request
    operations: tuple[Operation, ...]


def assemble(operations: Sequence[Operation], family: int, table: str, together: bool = True) -> list[Step]:
    """``together`` False: one element to a message, so that a refusal says whose it is."""
    by_kind: dict[str, list[Operation]] = {}
    for operation in operations:
        by_kind.setdefault(operation.key.kind, []).append(operation)
    steps: list[Step] = []
    last: list[Step] = []
    replaced = _tables(by_kind.pop(TABLE, ()), family, table, steps)
    if replaced:
        return steps
    _sets(by_kind.pop(SET, ()), family, table, steps, last)
    _chains(by_kind.pop(CHAIN, ()), family, table, steps, last)
    _ranges(by_kind.pop(RANGES, ()), family, table, steps)
    specs = layout.set_specs(family)
    incoming: list[Step] = []
    for kind, some in by_kind.items():
        _elements(specs[kind], some, family, table, together, steps, incoming)
    return [*steps, *incoming, *last]


def _tables(operations: Iterable[Operation], family: int, table: str, steps: list[Step]) -> bool:
    """Whether the table is removed, with all that is in it."""
    for operation in operations:
        if operation.verb is not Verb.ADD:
            steps.append(Step(messages.delete_table(family, table), (operation,)))
        if operation.verb is not Verb.REMOVE:
            steps.append(Step(messages.new_table(family, table, operation.value), (operation,)))
    return any(operation.verb is Verb.REMOVE for operation in operations)


def _sets(
    operations: Iterable[Operation], family: int, table: str, steps: list[Step], last: list[Step]
) -> None:
    known = {**layout.set_specs(family), **layout.special_specs(family)}
    for number, operation in enumerate(operations, 1):
        name = str(operation.key.name)
        if operation.verb is Verb.REMOVE:
            last.append(Step(messages.delete_set(family, table, name), (operation,)))
        else:
            steps.append(Step(messages.new_set(family, table, known[name], number), (operation,)))


def _chains(
    operations: Iterable[Operation], family: int, table: str, steps: list[Step], last: list[Step]
) -> None:
    """All chains first, then the rules, which may lead to any of them."""
    rules: list[Step] = []
    for operation in operations:
        name, spec, mine = str(operation.key.name), operation.value, (operation,)
        if operation.verb is Verb.REMOVE:
            last.append(Step(messages.flush_chain(family, table, name), mine))
            last.append(Step(messages.delete_chain(family, table, name), mine))
            continue
        if operation.verb is Verb.SET:
            steps.append(Step(messages.flush_chain(family, table, name), mine))
        steps.append(Step(messages.new_chain(family, table, name, spec.hook), mine))
        for rule in spec.rules:
            request = messages.new_rule(family, table, name, rule.expressions, rule.words)
            rules.append(Step(request, mine))
    steps += rules


def _ranges(operations: Iterable[Operation], family: int, table: str, steps: list[Step]) -> None:
    special = layout.special_specs(family)
    for operation in operations:
        spec = special[str(operation.key.name)]
        steps.append(Step(messages.flush_set(family, table, spec.name), (operation,)))
        if operation.verb is not Verb.REMOVE:
            elements = range_elements(operation.value)
            for request in messages.new_elements(family, table, spec, elements):
                steps.append(Step(request, (operation,)))


def _elements(
    spec: SetSpec,
    operations: Sequence[Operation],
    family: int,
    table: str,
    together: bool,
    outgoing: list[Step],
    incoming: list[Step],
) -> None:
    out = [operation for operation in operations if operation.verb is not Verb.ADD]
    into = [operation for operation in operations if operation.verb is not Verb.REMOVE]
    for some, encode, steps in (
        (out, messages.delete_elements, outgoing),
        (into, messages.new_elements, incoming),
    ):
        elements = [element_of(operation, spec) for operation in some]
        requests = encode(family, table, spec, elements, together)
        if together:
            # Whose a message is matters after a refusal only, and then each element goes alone.
            steps += [Step(request, ()) for request in requests]
        else:
            steps += [Step(request, (operation,)) for request, operation in zip(requests, some, strict=True)]


def element_of(operation: Operation, spec: SetSpec) -> Element:
    """An operation's element. Ranges have first and last key in their name."""
    name = cast(bytes, operation.key.name)
    if spec.name == layout.ALLOWED:
        half = len(name) // 2
        return Element(name[:half], None, name[half:])
    return Element(name, operation.value)
