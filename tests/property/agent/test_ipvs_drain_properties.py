"""Draining, whatever comes in whatever order: nothing is cut early, nothing is forgotten, nothing waits for ever."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshlib.agent.backends.ipvs.drain import INTERVAL, Drain, Drained
from meshlib.agent.netlink.ipvs import Connections, RealKey, RealServer, ServiceKey

SERVICES = [ServiceKey("TCP", "10.96.0.1", port) for port in (80, 81)]
REALS = [RealKey(f"10.1.0.{each}", 8080) for each in (1, 2, 3)]
SECONDS = 25.0
entries = st.builds(Drained, st.sampled_from(SERVICES), st.sampled_from(REALS))


class Draining(RuleBasedStateMachine):
    """A kernel with weights and connections beside the list, and a second bookkeeping of who drains since when."""

    def __init__(self) -> None:
        super().__init__()
        self.drain = Drain(SECONDS)
        self.now = 100.0
        self.kernel = {Drained(service, real): [1, 0] for service in SERVICES for real in REALS}
        self.since: dict[Drained, float] = {}

    @rule(entry=entries, connections=st.integers(0, 3))
    def connections_change(self, entry: Drained, connections: int) -> None:
        if entry in self.kernel:
            self.kernel[entry][1] = connections

    @rule(entry=entries)
    def remove(self, entry: Drained) -> None:
        if entry in self.kernel:
            self.kernel[entry][0] = 0
            self.drain.start(entry, self.now)
            self.since.setdefault(entry, self.now)

    @rule(entry=entries)
    def wanted_again(self, entry: Drained) -> None:
        self.drain.stop(entry)
        self.since.pop(entry, None)
        if entry in self.kernel:
            self.kernel[entry][0] = 1

    @rule(entry=entries)
    def deleted_behind_our_back(self, entry: Drained) -> None:
        self.kernel.pop(entry, None)

    @rule(entry=entries)
    def given_a_weight_behind_our_back(self, entry: Drained) -> None:
        if entry in self.kernel:
            self.kernel[entry][0] = 5

    @rule(service=st.sampled_from(SERVICES))
    def service_goes(self, service: ServiceKey) -> None:
        self.drain.forget(service)
        for entry in [each for each in self.kernel if each.service == service]:
            del self.kernel[entry]
            self.since.pop(entry, None)
        self.since = {each: at for each, at in self.since.items() if each.service != service}

    @rule(service=st.sampled_from(SERVICES))
    def service_comes(self, service: ServiceKey) -> None:
        for real in REALS:
            self.kernel.setdefault(Drained(service, real), [1, 0])
            if Drained(service, real) in self.since:
                self.kernel[Drained(service, real)][0] = 0

    @rule(real=st.sampled_from(REALS))
    def host_goes(self, real: RealKey) -> None:
        self.drain.cut({real.address}, self.now)
        for entry in self.since:
            if entry.real == real:
                self.since[entry] = self.now - SECONDS

    @precondition(lambda self: self.drain.next() is not None)
    @rule(readable=st.sets(st.sampled_from(SERVICES)))
    def look(self, readable: set[ServiceKey]) -> None:
        due = self.drain.next()
        assert due is not None
        self.now = max(self.now, due)
        found = {
            service: {
                entry.real: (RealServer(weight), Connections(0, connections))
                for entry, (weight, connections) in self.kernel.items()
                if entry.service == service
            }
            for service in self.drain.services
            if service in readable
        }
        for entry in self.drain.look(found, self.now):
            weight, connections = self.kernel[entry]
            assert weight == 0
            assert connections == 0 or self.now >= self.since[entry] + SECONDS
            del self.kernel[entry]
            self.drain.stop(entry)
        for entry, at in list(self.since.items()):
            if entry.service not in found:
                continue
            weight, connections = self.kernel.get(entry, [1, 0])
            if weight:
                del self.since[entry]  # gone, or somebody else's now
            else:
                assert connections, "an idle one was kept"
                assert self.now < at + SECONDS, "one was kept beyond its deadline"

    @invariant()
    def both_bookkeepings_agree(self) -> None:
        assert len(self.drain) == len(self.since)
        assert all(entry in self.drain for entry in self.since)

    @invariant()
    def it_is_always_known_when_to_look(self) -> None:
        due = self.drain.next()
        assert (due is None) is (not self.since)
        assert due is None or due <= self.now + max(INTERVAL, SECONDS)


TestDraining = Draining.TestCase
