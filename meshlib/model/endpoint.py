"""Endpoint: one address and port that may receive traffic, and EndpointSet: all that may, with the verdict."""

from __future__ import annotations

import enum

import msgspec


class Endpoint(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One eligible address and port.

    A ``msgspec.Struct`` instead of a dataclass, because ten thousand of them are made at once (a frozen
    dataclass costs about ten times as much to build).

    ``address`` is the canonical text of an IPv4 or IPv6 address that has passed the address policy, never a
    host name. ``identity`` of balancer state is (address, port, uid): the same address under a new pod uid is
    another endpoint.
    """

    address: str
    port: int
    uid: str = ""  #: targetRef.uid of the pod; empty when unknown
    name: str = ""  #: targetRef.name, for people
    hostname: str = ""  #: headless per-pod name
    node: str = ""
    zone: str = ""
    weight: int = 1  #: relative share; 0 means never picked
    priority: int = (
        0  #: tier, lower first (SRV priority); a higher tier is used only when the lower ones are empty
    )
    ready: bool = True
    serving: bool = True
    terminating: bool = False

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address else 4

    @property
    def authority(self) -> str:
        """``ip:port`` with IPv6 in brackets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def identity(self) -> tuple[str, int, str]:
        """What balancer state is keyed by."""
        return (self.address, self.port, self.uid)


class Verdict(enum.Enum):
    """Why a set is what it is; the kernel path turns the empty ones into reject and drop."""

    OK = "ok"
    NO_ENDPOINTS = "no-endpoints"  #: nothing anywhere (kernel: reject)
    NO_LOCAL_ENDPOINTS = (
        "no-local-endpoints"  #: a Local policy and none here, though others exist (kernel: drop)
    )


class Locality(enum.Enum):
    """Which topology level narrowed the set."""

    ANY = "any"
    SAME_NODE = "same-node"
    SAME_ZONE = "same-zone"
    LOCAL_POLICY = "local-policy"


class EndpointSet(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of the eligibility function for one Service port, vantage point and path.

    ``endpoints`` are sorted by (address, port): equal facts give an equal value.
    """

    endpoints: tuple[Endpoint, ...] = ()
    verdict: Verdict = Verdict.NO_ENDPOINTS
    locality: Locality = Locality.ANY
    terminating_fallback: bool = False  #: no ready endpoint at all, so serving-terminating ones are used
