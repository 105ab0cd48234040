"""Backend: plans as input of iptables-restore, and iptables-save as objects again."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import Any

from meshlib.agent.backends.base import Probe
from meshlib.agent.backends.iptables import programs, translate
from meshlib.agent.backends.iptables.programs import FLAVOURS, Done, Run
from meshlib.agent.backends.iptables.rules import HOOK, PREFIX, RULES
from meshlib.agent.backends.iptables.tables import Tables, read
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
from meshlib.agent.objects import Failed, ObjectKey, Objects, Operation, Verb
from meshlib.model.service import ServiceKey

#: Runs of iptables-restore for one plan: a refused one is halved until the refused rules are found.
_MOST_RUNS = 40
_LINE = re.compile(r"line:? (\d+)")
#: Changes nothing: tells whether the program works at all.
_EMPTY = "*nat\nCOMMIT\n"


class IptablesBackend:
    """One family, 4 or 6. See ``Backend`` for the contract. One child process per apply and per dump.

    ``run`` runs a program in the network namespace that is to be programmed.
    """

    name = "iptables"
    kinds: tuple[str, ...] = (RULES, HOOK)

    def __init__(self, family: int, run: Run = programs.run, flavours: Sequence[str] = FLAVOURS) -> None:
        self.family = family
        self._run, self._flavours = run, tuple(flavours)
        self._flavour: str | None = None
        self._fully_random = True
        self._tables = Tables()

    def probe(self) -> Probe:
        """Writes chains with every kind of rule, to which nothing leads, and removes them: packets do not notice."""
        reasons = []
        for flavour in self._in_use_first():
            program = programs.restore(self.family, flavour)[0]
            for fully_random in (True, False):
                self._fully_random = fully_random
                done = self._try(flavour)
                if done.code == 0:
                    self._flavour = flavour
                    return Probe(
                        True,
                        f"{program}{'' if self._fully_random else ' without --random-fully'}",
                        (self.family,),
                    )
                if not fully_random:
                    reasons.append(f"{program}: {_first_line(done)}")
        return Probe(False, "; ".join(reasons) or "iptables is not installed", ())

    def fixed(self, place: Place) -> Objects:
        return translate.fixed(place, self._fully_random)

    def translate(self, frontend: Frontend, place: Place) -> Objects:
        return translate.translate(frontend, place)

    def translate_hairpin(self, hairpin: Hairpin, place: Place) -> Objects:
        return translate.translate_hairpin(hairpin)

    def ledger_key(self, key: ObjectKey) -> ObjectKey | None:
        """Chains bear our name, and rules in others our comment."""
        return None

    def words(self, key: ObjectKey, value: Any) -> str:
        """Where the rules stand, and what for."""
        name: Any = key.name
        return f"{key.kind} in {name.table} {name.chain}: {name.words}"

    def dump(self, family: int) -> Objects:
        """What is in our chains; nothing where iptables is not installed, which could not have written any. Raises
        OSError."""
        if self._flavour is None and not self._in_use_first():
            return {}
        done = self._run(programs.save(self.family, self._chosen()), "")
        if done.code != 0:
            raise OSError(_number(done), _first_line(done))
        self._tables = read(done.output)
        return self._tables.objects()

    def apply(self, plan: Sequence[Operation], now: float) -> Sequence[Failed]:
        """One run, if nothing is refused."""
        failed: list[Failed] = []
        waiting = [list(plan)]
        runs = 0
        while waiting:
            part = waiting.pop(0)
            runs += 1
            refused, blamed = self._write(part)
            if refused is None:
                continue
            number, said = _number(refused), _first_line(refused)
            culprit = next((each for each in part if each.key == blamed), None)
            if len(part) == 1 or runs >= _MOST_RUNS or number in (errno.EPERM, errno.ENOENT, errno.ETIMEDOUT):
                failed += [Failed(each, number, said) for each in part]
            elif culprit is not None:
                failed.append(Failed(culprit, number, said))
                waiting.insert(0, [each for each in part if each is not culprit])
            else:
                half = len(part) // 2
                waiting[:0] = [part[:half], part[half:]]
        return failed

    def tick(self, now: float) -> float | None:
        """Nothing waits: flows that exist go on by themselves."""
        return None

    def _write(self, part: Sequence[Operation]) -> tuple[Done | None, ObjectKey | None]:
        text = self._tables.text(part)
        if not text.lines:
            self._tables.done(text)
            return None, None
        try:
            done = self._run(programs.restore(self.family, self._chosen()), str(text))
        except OSError as error:
            return Done(127, "", f"{error.strerror or error} [{error.errno}]"), None
        if done.code == 0:
            self._tables.done(text)
            return None, None
        found = _LINE.search(done.error)
        return done, text.blame.get(int(found[1])) if found else None

    def _chosen(self) -> str:
        """The kind of iptables in use; without a probe, the one that holds our chains or is the first that works."""
        if self._flavour is None:
            self._flavour = next(iter(self._in_use_first()), "")
        return self._flavour

    def _in_use_first(self) -> list[str]:
        """The kinds that can be read here, the one with our chains before all."""
        works, ours = list[str](), list[str]()
        for flavour in self._flavours:
            try:
                done = self._run(programs.save(self.family, flavour), "")
            except OSError:
                continue
            (ours if f":{PREFIX}" in done.output else works).append(flavour)
        return ours + works

    def _try(self, flavour: str) -> Done:
        command = programs.restore(self.family, flavour)
        there, away = _trial(self.family, self._fully_random)
        try:
            done = self._run(command, there)
            gone = self._run(command, away) if done.code == 0 else done
        except OSError as error:
            return Done(127, "", f"{error.strerror or error} [{error.errno}]")
        return gone


def _trial(family: int, fully_random: bool) -> tuple[str, str]:
    """A frontend of every kind, without the rules that lead to it, and its removal."""
    endpoint = "192.0.2.1" if family == 4 else "2001:db8::1"
    place = Place(family, (endpoint,), (f"{endpoint}/32",), service_ranges=(f"{endpoint}/32",))
    owner = PortKey(ServiceKey("probe", "probe"), "", "TCP")
    targets = Route(Action.FORWARD, (Target(endpoint, 80), Target(endpoint, 81, 2)))
    wanted = dict(translate.fixed(place, fully_random))
    wanted.update(translate.translate_hairpin(Hairpin(endpoint, "TCP", 80)))
    key = FrontendKey("TCP", endpoint, 80)
    kind = FrontendKind.LOAD_BALANCER
    frontend = Frontend(
        key, kind, owner, targets, targets, affinity_seconds=10, source_ranges=(f"{endpoint}/32",)
    )
    wanted.update(translate.translate(frontend, place))
    plan = [Operation(Verb.ADD, key, value) for key, value in wanted.items() if key.kind == RULES]
    tables = Tables()
    there = tables.text(plan)
    tables.done(there)
    away = tables.text(each._replace(verb=Verb.REMOVE) for each in plan)
    return tuple(str(text).replace(PREFIX, "MESHTRY-") for text in (there, away))  # type: ignore[return-value]


def _first_line(done: Done) -> str:
    lines = [line for line in done.error.splitlines() if line.strip() and not line.startswith("#")]
    return lines[0].strip() if lines else f"ended with {done.code}"


def _number(done: Done) -> int:
    told = re.search(r"\[(\d+)\]$", done.error)
    if told:
        return int(told[1])
    return errno.EPERM if "ermission denied" in done.error or "you must be root" in done.error else errno.EIO
