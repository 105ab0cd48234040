"""Compiler: Desired, kept up to date in steps that cost what changed and not what is there. Pure state, no clock.

Services can claim one (protocol, address, port). A ClusterIP beats an address that was only claimed; then the older
Service has it, then the one whose namespace and name come first. The loser is told about, and takes over when the
winner goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from meshlib.agent.compile.context import make_context
from meshlib.agent.compile.departures import Departures
from meshlib.agent.compile.service import NOTHING, Part, compile_service
from meshlib.agent.desired import (
    Desired,
    Frontend,
    FrontendKey,
    FrontendKind,
    Hairpin,
    HealthPort,
    Note,
    Place,
)
from meshlib.agent.facts import Facts, Host
from meshlib.agent.settings import AgentSettings
from meshlib.model.cluster import ABSENT, ClusterChange, Node, ServiceFacts
from meshlib.model.service import ServiceKey


@dataclass(frozen=True, slots=True)
class DesiredChange:
    """The difference between two Desired of one family. Pairs are (before, after); None: not there."""

    place: Place | None = None  #: the new one, if it is another
    frontends: Mapping[FrontendKey, tuple[Frontend | None, Frontend | None]] = field(default_factory=dict)
    hairpins_added: frozenset[Hairpin] = frozenset()
    hairpins_removed: frozenset[Hairpin] = frozenset()
    health_ports: Mapping[ServiceKey, tuple[HealthPort | None, HealthPort | None]] = field(
        default_factory=dict
    )
    notes_added: tuple[Note, ...] = ()
    notes_removed: tuple[Note, ...] = ()
    #: When the causes of these changes happened (seconds since 1970), as far as told; none of changes without effect.
    triggers: tuple[float, ...] = ()
    #: Addresses that have lost the pod that was there: connections to them lead nowhere.
    departed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether the kernel, the health ports or the notes have anything to do."""
        return bool(
            self.place
            or self.frontends
            or self.hairpins_added
            or self.hairpins_removed
            or self.health_ports
            or self.notes_added
            or self.notes_removed
        )


def compile_desired(facts: Facts, settings: AgentSettings, family: int) -> Desired:
    """Everything at once, from nothing: what the incremental compiler comes to in the end."""
    compiler = Compiler(settings, family)
    compiler.update(facts.whole(), facts.host)
    return compiler.desired()


class Compiler:
    """One family. Belongs to one thread."""

    def __init__(self, settings: AgentSettings, family: int) -> None:
        self._settings = settings
        self._family = family
        self._node = Node()
        self._host = Host()
        self._ranges: tuple[str, ...] = ()
        self._context = make_context(settings, family, self._node, self._host)
        self._facts: dict[ServiceKey, ServiceFacts] = {}
        self._parts: dict[ServiceKey, Part] = {}
        self._claims: dict[FrontendKey, tuple[Frontend, ...]] = {}  # the winner first
        self._hairpins: dict[Hairpin, int] = {}  # how many Services need it
        self._conflicts: dict[FrontendKey, tuple[Note, ...]] = {}
        self._departures = Departures()

    @property
    def place(self) -> Place:
        return self._context.place

    @property
    def hairpins(self) -> Collection[Hairpin]:
        """All of them, as they are now: a view."""
        return self._hairpins.keys()

    def frontend(self, key: FrontendKey) -> Frontend | None:
        """Who is served there now."""
        held = self._claims.get(key)
        return held[0] if held else None

    def update(self, change: ClusterChange, host: Host | None = None) -> DesiredChange:
        """Take over what a source told, and what the host's kernel says (None: as before)."""
        run = _Run()
        was = self.place
        moved = self._move(change.node, host, change.service_ranges)
        changed = self._remember(change, run)
        for key in self._facts if moved else changed:
            self._compile(key, run)
        for key in changed:
            if self._facts[key].service is None:
                del self._facts[key]
        return self._difference(run, change, self.place if self.place != was else None)

    def desired(self) -> Desired:
        """The whole. Costs a sort of everything."""
        parts = self._parts.values()
        notes = [note for part in parts for note in part.notes]
        notes += [note for found in self._conflicts.values() for note in found]
        return Desired(
            place=self.place,
            frontends=tuple(self._claims[key][0] for key in sorted(self._claims)),
            hairpins=tuple(sorted(self._hairpins)),
            health_ports=tuple(
                sorted((part.health for part in parts if part.health), key=lambda port: port.service)
            ),
            notes=tuple(sorted(notes)),
        )

    # -- inputs ----------------------------------------------------------------------------------------------------

    def _move(self, node: Node | None, host: Host | None, ranges: tuple[str, ...] | None) -> bool:
        """Whether everything has to be looked at again, because the node or the cluster is another than before."""
        self._node = node if node is not None else self._node
        self._host = host if host is not None else self._host
        self._ranges = ranges if ranges is not None else self._ranges
        context = make_context(self._settings, self._family, self._node, self._host, self._ranges)
        if context == self._context:
            return False
        self._context = context
        return True

    def _remember(self, change: ClusterChange, run: _Run) -> list[ServiceKey]:
        news: dict[ServiceKey, ServiceFacts] = dict(change.services)
        if change.complete:
            news.update((key, ABSENT) for key in self._facts if key not in change.services)
        changed = [key for key, facts in news.items() if self._facts.get(key, ABSENT) != facts]
        for key in changed:
            slices = self._facts.get(key, ABSENT).slices
            run.departed |= self._departures.change(key, slices, news[key].slices)
            self._facts[key] = news[key]
        return changed

    # -- one Service -----------------------------------------------------------------------------------------------

    def _compile(self, key: ServiceKey, run: _Run) -> None:
        old = self._parts.get(key, NOTHING)
        new = compile_service(self._facts.get(key, ABSENT), self._context)
        if new == old:
            return
        if new is NOTHING:
            del self._parts[key]
        else:
            self._parts[key] = new
        if (old.frontends, old.hairpins, old.health) != (new.frontends, new.hairpins, new.health):
            run.effective.add(key)
        self._claim(key, old, new, run)
        for hairpin in old.hairpins - new.hairpins:
            self._count(hairpin, -1, run)
        for hairpin in new.hairpins - old.hairpins:
            self._count(hairpin, 1, run)
        if old.health != new.health:
            run.health[key] = (old.health, new.health)
        run.notes_gone.update(old.notes)
        run.notes_new.update(new.notes)

    def _claim(self, service: ServiceKey, old: Part, new: Part, run: _Run) -> None:
        before = {frontend.key: frontend for frontend in old.frontends}
        same_age = old.age == new.age
        for frontend in new.frontends:
            if before.pop(frontend.key, None) != frontend or not same_age:
                self._put(service, frontend.key, frontend, run)
        for key in before:
            self._put(service, key, None, run)

    def _put(self, service: ServiceKey, key: FrontendKey, frontend: Frontend | None, run: _Run) -> None:
        held = self._claims.get(key, ())
        run.before.setdefault(key, held[0] if held else None)
        rest = tuple(each for each in held if each.owner.service != service) if held else ()
        if frontend is not None:
            rest = (frontend,) if not rest else tuple(sorted((*rest, frontend), key=self._rank))
        if rest:
            self._claims[key] = rest
        else:
            self._claims.pop(key, None)

    def _rank(self, frontend: Frontend) -> tuple[bool, tuple[bool, float], ServiceKey]:
        service = frontend.owner.service
        age = self._parts.get(service, NOTHING).age
        return frontend.kind is not FrontendKind.CLUSTER_IP, age, service

    def _count(self, hairpin: Hairpin, step: int, run: _Run) -> None:
        count = self._hairpins.get(hairpin, 0)
        run.hairpins.setdefault(hairpin, count > 0)
        if count + step:
            self._hairpins[hairpin] = count + step
        else:
            del self._hairpins[hairpin]

    # -- what came of it -------------------------------------------------------------------------------------------

    def _difference(self, run: _Run, change: ClusterChange, place: Place | None) -> DesiredChange:
        frontends: dict[FrontendKey, tuple[Frontend | None, Frontend | None]] = {}
        for key, old in run.before.items():
            new = self.frontend(key)
            if new != old:
                frontends[key] = (old, new)
            self._note_conflicts(key, run)
        now = {hairpin: hairpin in self._hairpins for hairpin in run.hairpins}
        return DesiredChange(
            place=place,
            frontends=frontends,
            hairpins_added=frozenset(each for each, was in run.hairpins.items() if now[each] and not was),
            hairpins_removed=frozenset(each for each, was in run.hairpins.items() if was and not now[each]),
            health_ports=run.health,
            notes_added=tuple(sorted(run.notes_new - run.notes_gone)),
            notes_removed=tuple(sorted(run.notes_gone - run.notes_new)),
            triggers=tuple(sorted(_times(change.triggers, run.effective))),
            departed=frozenset(run.departed),
        )

    def _note_conflicts(self, key: FrontendKey, run: _Run) -> None:
        held = self._claims.get(key, ())
        if len(held) < 2 and key not in self._conflicts:
            return
        winner, *losers = held or (None,)
        notes = tuple(
            Note(
                loser.owner.service,
                "conflict",
                f"{key} is served for {winner.owner.service}, not for this one",
            )
            for loser in losers
            if winner is not None
        )
        run.notes_gone.update(self._conflicts.pop(key, ()))
        run.notes_new.update(notes)
        if notes:
            self._conflicts[key] = notes


@dataclass(slots=True)
class _Run:
    """What one update has touched: how it was before, and who had an effect."""

    before: dict[FrontendKey, Frontend | None] = field(default_factory=dict)
    hairpins: dict[Hairpin, bool] = field(default_factory=dict)
    health: dict[ServiceKey, tuple[HealthPort | None, HealthPort | None]] = field(default_factory=dict)
    notes_new: set[Note] = field(default_factory=set)
    notes_gone: set[Note] = field(default_factory=set)
    effective: set[ServiceKey] = field(default_factory=set)
    departed: set[str] = field(default_factory=set)


def _times(
    triggers: Mapping[ServiceKey, tuple[float, ...]], effective: Iterable[ServiceKey]
) -> Iterator[float]:
    for key in effective:
        yield from triggers.get(key, ())
