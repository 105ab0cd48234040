"""One endpoint changes among 1,000 and among 10,000 Services: the compiler's share of the work, CPU time.

The peer is the same compiler from nothing (what a proxy pays that compiles everything at each sync), in the same run.
"""

from __future__ import annotations

import time
from statistics import median

import msgspec

from meshlib.agent.compile import Compiler
from meshlib.agent.facts import Facts
from meshlib.agent.settings import AgentSettings
from meshlib.model.cluster import ClusterChange, Node, ServiceFacts
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort

NAME = "the node agent compiles one changed endpoint, CPU"
TARGETS = "below 1 ms, and no more than 1.5 times as long among 10,000 Services as among 1,000"

ENDPOINTS = 5
NODE = Node("node-1", "zone-1", ("192.0.2.1",), ("10.10.0.0/24",))


def facts(count: int) -> Facts:
    """ClusterIP Services with five endpoints each, every fourth with a node port."""
    known = {}
    for number in range(count):
        key = ServiceKey(f"ns{number % 50}", f"service-{number}")
        high, low = divmod(number, 256)
        service = Service(
            key,
            ServiceType.NODE_PORT if number % 4 == 0 else ServiceType.CLUSTER_IP,
            (ServicePort("http", 80, node_port=20000 + number if number % 4 == 0 else 0),),
            (f"10.{96 + high // 256}.{high % 256}.{low}",),
            (4,),
            created="2024-01-01T00:00:00Z",
        )
        found = tuple(
            SliceEndpoint(address=f"10.1{each}.{high}.{low}", node=f"node-{(number + each) % 100}")
            for each in range(ENDPOINTS)
        )
        slice_ = EndpointSlice(
            namespace=key.namespace,
            name=key.name,
            service=key,
            family=4,
            ports=(SlicePort("http", 8080),),
            endpoints=found,
        )
        known[key] = ServiceFacts(service, (slice_,))
    return Facts(known, NODE)


def _one_change(compiler: Compiler, known: Facts, number: int) -> float:
    """CPU microseconds for another address of one endpoint."""
    keys = list(known.services)
    key = keys[number * 7 % len(keys)]
    service, (slice_,) = known.services[key]
    moved = msgspec.structs.replace(slice_.endpoints[0], address=f"10.99.{number // 250}.{number % 250 + 1}")
    changed = msgspec.structs.replace(slice_, endpoints=(moved, *slice_.endpoints[1:]))
    change = ClusterChange({key: ServiceFacts(service, (changed,))})
    start = time.process_time()
    found = compiler.update(change)
    took = (time.process_time() - start) * 1e6
    if len(found.frontends) != 1 + (number * 7 % len(keys) % 4 == 0):
        raise RuntimeError("the change was lost")
    return took


def run(quick: bool) -> tuple[list[str], list[list[str]]]:
    rows: list[list[str]] = []
    medians: dict[int, float] = {}
    repeats = 3 if quick else 7
    for count in (1000, 10000):
        known = facts(count)
        whole, single = [], []
        for _ in range(repeats):
            compiler = Compiler(AgentSettings(), 4)
            start = time.process_time()
            compiler.update(known.whole())
            whole.append((time.process_time() - start) * 1e6)
            single += [_one_change(compiler, known, number) for number in range(100)]
        medians[count] = median(single)
        for what, values, target in (("one endpoint", single, "< 1000"), ("everything", whole, "")):
            shown = [f"{value:.0f}" for value in (median(values), min(values), max(values))]
            rows.append([f"{count:,}", what, *shown, target])
        ratio = median(whole) / medians[count]
        rows.append([f"{count:,}", "everything / one endpoint", f"{ratio:.0f}", "", "", ""])
    flat = medians[10000] / medians[1000]
    rows.append(["10,000 / 1,000", "one endpoint", f"{flat:.2f}", "", "", "<= 1.5"])
    return ["Services", "what", "median us", "min", "max", "target"], rows
