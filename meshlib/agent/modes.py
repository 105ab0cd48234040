"""Which backend programs this node (decision D13): found by trying, told with reasons, never silently another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshlib.agent.backends.base import Backend, Probe
from meshlib.errors import MeshError

#: What ``auto`` tries, the best first. userspace is never chosen by itself: it serves other addresses.
AUTO = ("ipvs", "nftables", "iptables")

#: Makes the backend of a family.
Make = Callable[[int], Backend]


class NoBackend(MeshError):
    """No backend can program this kernel; the text says why, one by one."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A mode with its backends by family, and what every mode that was tried said."""

    mode: str
    backends: Mapping[int, Backend]
    probes: Mapping[str, Probe]


def choose(mode: str, families: tuple[int, ...], makers: Mapping[str, Make]) -> Chosen:
    """Try ``mode``, or with "auto" one after the other. Raises NoBackend. Costs some milliseconds per attempt.

    A family that the kernel does not have at all (IPv6 switched off) is left out, as long as one is left. "auto" takes
    a mode that lacks something only where no other works.
    """
    probes: dict[str, Probe] = {}
    second: Chosen | None = None
    for name in AUTO if mode == "auto" else (mode,):
        make = makers.get(name)
        if make is None:
            probes[name] = Probe(False, "this build of the agent does not have it", ())
            continue
        backends = {family: make(family) for family in families}
        tried = {family: backend.probe() for family, backend in backends.items()}
        usable = {family: backends[family] for family, probe in tried.items() if family in _families(probe)}
        reasons = "; ".join(dict.fromkeys(probe.reason for probe in tried.values()))
        complete = all(tried[family].complete for family in usable)
        probes[name] = Probe(bool(usable), reasons, tuple(usable), complete)
        if usable and (complete or mode != "auto"):
            return Chosen(name, usable, probes)
        if usable and second is None:
            second = Chosen(name, usable, probes)
    if second is not None:
        return second
    told = "\n".join(f"  {name}: {probe.reason}" for name, probe in probes.items())
    hint = "" if mode == "auto" else "\nAn explicit mode never falls back; `mode: auto` would try others."
    raise NoBackend(f"this node's kernel cannot be programmed:\n{told}{hint}")


def _families(probe: Probe) -> tuple[int, ...]:
    return probe.families if probe.usable else ()
