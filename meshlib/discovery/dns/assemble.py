"""From answers to a Snapshot, as pure functions: ports, families, SRV tiers and weights (R1, R3, R10, R12, R14)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import xxhash

from meshlib.discovery.dns.records import Answer, SrvRecord
from meshlib.model.service import Service, ServiceKey, ServicePort, ServiceType
from meshlib.model.slices import EndpointSlice, SliceEndpoint, SlicePort
from meshlib.model.update import Snapshot

#: RFC 2782: a record of weight 0 beside heavier ones has "a very small chance" of being chosen. Pickers read 0 as
#: never, so weights are scaled by ten and 0 becomes 1: a tenth of the lightest possible share.
ZERO_WEIGHT_SCALE = 10
#: Weights of targets with several addresses are spread exactly up to this common multiple, and rounded beyond.
MAX_SPREAD = 5040


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One address that an answer offers."""

    address: str
    port: int
    priority: int = 0
    weight: int = 1
    host: str = ""  #: the SRV target it belongs to

    @property
    def family(self) -> int:
        return 6 if ":" in self.address else 4


@dataclass(frozen=True, slots=True)
class PortSpec:
    """The port of a DNS target: a ``number`` (A, AAAA), or a ``name`` and ``protocol`` whose numbers SRV gives."""

    number: int = 0
    name: str = ""
    protocol: str = "TCP"

    @classmethod
    def of_srv(cls, name: str) -> PortSpec:
        """The spec of ``_http._tcp.host``: name ``http``, protocol ``TCP``."""
        service, protocol, _ = name.split(".", 2)
        return cls(name=service.removeprefix("_").lower(), protocol=protocol.removeprefix("_").upper())


def plain_entries(addresses: Iterable[str], port: int) -> tuple[Entry, ...]:
    """A and AAAA: every address of weight 1 on the target's own port."""
    return tuple(sorted({Entry(address, port) for address in addresses}))


def srv_entries(records: Sequence[SrvRecord], addresses: Mapping[str, Sequence[str]]) -> tuple[Entry, ...]:
    """SRV records joined with the addresses of their targets; targets without an address give nothing.

    The priority becomes the tier. A target with several addresses of one family shares its weight among them, because
    weight belongs to the target; the other family repeats it, because only one family is balanced over (R3).
    """
    found: dict[tuple[str, int], Entry] = {}
    for priority in sorted({record.priority for record in records}):
        tier = [record for record in records if record.priority == priority and record.target and record.port]
        mixed = any(record.weight for record in tier) and not all(record.weight for record in tier)
        spread = _spread([_by_family(addresses.get(record.target, ())) for record in tier])
        for record in tier:
            if mixed:
                weight = record.weight * ZERO_WEIGHT_SCALE or 1
            else:
                weight = record.weight or 1
            for members in _by_family(addresses.get(record.target, ())).values():
                share = max(1, weight * spread // len(members))
                for address in members:
                    known = found.get((address, record.port))
                    if known is None:
                        entry = Entry(address, record.port, priority, share, record.target)
                    elif known.priority == priority:
                        entry = Entry(address, record.port, priority, known.weight + share, known.host)
                    else:
                        entry = known  # in a better tier already
                    found[address, record.port] = entry
    return tuple(sorted(found.values()))


def _by_family(addresses: Sequence[str]) -> dict[int, list[str]]:
    families: dict[int, list[str]] = {}
    for address in addresses:
        families.setdefault(6 if ":" in address else 4, []).append(address)
    return families


def _spread(targets: list[dict[int, list[str]]]) -> int:
    multiple = math.lcm(*(len(members) for families in targets for members in families.values()), 1)
    return min(multiple, MAX_SPREAD)


def snapshot(
    name: str, port: PortSpec, entries: Sequence[Entry], families: Sequence[int], skipped: int = 0
) -> Snapshot:
    """The facts of a DNS name: one slice per family and port number, as eligibility wants them.

    ``families``: those this host can dial, preferred first; entries of others are left out. R3: DNS cannot say which A
    and AAAA are the same pod, so balancing uses one family; ``ip_families`` of the Service says which comes first.
    """
    key = ServiceKey("", name)
    groups: dict[tuple[int, int], list[SliceEndpoint]] = {}
    for entry in entries:
        if entry.family in families:
            groups.setdefault((families.index(entry.family), entry.port), []).append(
                SliceEndpoint(
                    address=entry.address,
                    name=entry.host,
                    hostname=entry.host.partition(".")[0],
                    weight=entry.weight,
                    priority=entry.priority,
                )
            )
    numbers = sorted({number for _, number in groups})
    service = Service(
        key=key,
        type=ServiceType.NAMES,
        ports=(ServicePort(port.name, port.number or next(iter(numbers), 0), port.protocol),),
        ip_families=tuple(families[index] for index in sorted({index for index, _ in groups})),
        has_selector=False,
    )
    slices = tuple(
        EndpointSlice(
            namespace="",
            name=f"{name}-ipv{families[index]}-{number}",
            service=key,
            family=families[index],
            ports=(SlicePort(port.name, number, port.protocol),),
            endpoints=tuple(groups[index, number]),
        )
        for index, number in sorted(groups)
    )
    version = xxhash.xxh3_64_hexdigest(repr((service.ip_families, list(entries))).encode())
    return Snapshot(service=service, slices=slices, source="dns", version=version, skipped=skipped)


def is_service_address(name: str, srv: Answer) -> bool:
    """R14: SRV records of a ClusterIP Service point back at the Service's own name: one VIP, nothing to balance over.

    ``name``: the Service's absolute name (without ``_port._proto``).
    """
    return bool(srv.srv) and all(record.target == name for record in srv.srv)
