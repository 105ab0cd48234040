"""Nouns of the DNS room: questions, answers and the taxonomy of replies. No IO, no dnspython."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RecordType(enum.Enum):
    """The record types this room asks for, with their numbers (RFC 1035, 3596, 2782)."""

    A = 1
    AAAA = 28
    SRV = 33

    @property
    def family(self) -> int:
        """4 for A, 6 for AAAA, 0 for SRV."""
        return {RecordType.A: 4, RecordType.AAAA: 6, RecordType.SRV: 0}[self]


@dataclass(frozen=True, slots=True)
class Question:
    """One (name, type) to ask. ``name`` is absolute, lower case, without the final dot.

    ``server``: ask only this ``ip:port`` (a ``dns://server/...`` target); empty: the servers of resolv.conf.
    """

    name: str
    type: RecordType
    server: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.type.name}"


class Kind(enum.Enum):
    """What a reply says (reference R6): only the first three say anything about endpoints."""

    RECORDS = "records"
    NODATA = "nodata"  #: the name exists, without records of this type
    NXDOMAIN = "nxdomain"  #: no such name: headless without a ready pod, deleted, or mistyped
    UNKNOWN = "unknown"  #: SERVFAIL, REFUSED, FORMERR, timeout, unreachable, garbage


@dataclass(frozen=True, slots=True, order=True)
class SrvRecord:
    """RFC 2782. ``target`` as in Question.name; empty for ".", which means "not offered here"."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of asking one Question.

    ``addresses`` (A, AAAA) are sorted canonical texts; ``srv`` is sorted; order and TTL of the server never make a
    difference (R12). ``glue``: addresses of SRV targets found in the additional section. ``ttl``: seconds, the minimum
    over the CNAME chain, the records and the glue, unclamped; for a negative the SOA's (None: there was no SOA, R5).
    """

    kind: Kind
    addresses: tuple[str, ...] = ()
    srv: tuple[SrvRecord, ...] = ()
    glue: tuple[tuple[str, tuple[str, ...]], ...] = ()
    ttl: int | None = None
    rcode: str = (
        ""  #: ``NOERROR``, ``SERVFAIL``, ...; ``TIMEOUT``, ``UNREACHABLE``, ``GARBAGE`` where there is none
    )
    server: str = ""  #: ``ip:port`` that gave it; ``hosts`` for the hosts file
    canonical: str = ""  #: the end of the CNAME chain; empty: the name itself
    chain_ttl: int | None = (
        None  #: for a negative: the least TTL of the CNAMEs that led to it; None: there was none
    )
    detail: str = ""  #: for people, for UNKNOWN: what each server said
    hopeless: bool = False  #: for UNKNOWN: every server actively refused, so waiting will not help soon

    @property
    def offered(self) -> bool:
        """False when the SRV answer is the single target "." (RFC 2782: decidedly not available)."""
        return not (self.srv and all(not record.target for record in self.srv))
