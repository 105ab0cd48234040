"""When to ask again: clamps, jitter and back-off, as pure functions of (TTL, random). Reference R4 and R5."""

from __future__ import annotations

from dataclasses import dataclass

#: Never ask one question more often than this, whatever the TTL says (TTL 0 included). R4 allows 1-5 s; 1 s keeps
#: removals visible soon where an operator chose a TTL below CoreDNS's default of 5 s.
FLOOR = 1.0
#: Names of the cluster change with every rollout, and CoreDNS's own TTL is 5 s: a longer one is a mistake (R4).
CEILING_IN_CLUSTER = 30.0
#: Names outside move with failovers of their owners, who expect minutes at most (R4).
CEILING_EXTERNAL = 300.0
#: A negative without SOA has no TTL at all (dnsmasq, unbound's local data); CoreDNS's MINTTL (R5).
NEGATIVE_WITHOUT_SOA = 5.0
#: In a cluster NXDOMAIN is how "no pod is ready" looks, so it must be short (R5).
NEGATIVE_CEILING_IN_CLUSTER = 5.0
NEGATIVE_CEILING_EXTERNAL = 30.0
#: A refresh starts somewhere in the last fifth of the TTL, so that processes started together drift apart (R4).
EARLIEST_SHARE = 0.8
#: An unexpected negative is asked again after this: long enough for a server that was caught in a reload (R6).
CONFIRM_AFTER = 1.0
#: Back-off of unusable replies, 1 s doubling to 30 s (R6; RFC 9520 demands at least 1 s and at most 5 min).
BACKOFF_FIRST = 1.0
BACKOFF_LAST = 30.0
#: Pod addresses are given to other workloads after a while: data older than this is reported as too old (R7).
MAX_STALE = 600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one question's schedule, in seconds."""

    floor: float = FLOOR
    ceiling: float = CEILING_EXTERNAL
    negative_ceiling: float = NEGATIVE_CEILING_EXTERNAL
    confirm_after: float = CONFIRM_AFTER
    backoff_first: float = BACKOFF_FIRST
    backoff_last: float = BACKOFF_LAST
    max_stale: float = MAX_STALE

    @classmethod
    def for_name(cls, name: str) -> Limits:
        """The defaults for an absolute name: those of the cluster when it has a ``svc`` label below a zone."""
        if ".svc." in f".{name}":
            return cls(ceiling=CEILING_IN_CLUSTER, negative_ceiling=NEGATIVE_CEILING_IN_CLUSTER)
        return cls()


def positive_delay(ttl: int | None, limits: Limits, random: float) -> float:
    """Seconds until a truth of this TTL is asked again; ``random`` in [0, 1). Never below the floor."""
    clamped = min(limits.ceiling, max(limits.floor, float(ttl or 0)))
    share = EARLIEST_SHARE + (1.0 - EARLIEST_SHARE) * random
    return max(limits.floor, clamped * share)


def negative_delay(ttl: int | None, limits: Limits, random: float) -> float:
    """The same for NODATA and NXDOMAIN; ``ttl`` None when the reply had no SOA."""
    if ttl is None:
        ttl = int(NEGATIVE_WITHOUT_SOA)
    clamped = min(limits.negative_ceiling, max(limits.floor, float(ttl)))
    share = EARLIEST_SHARE + (1.0 - EARLIEST_SHARE) * random
    return max(limits.floor, clamped * share)


def backoff_delay(failures: int, limits: Limits, random: float) -> float:
    """Seconds after the ``failures``-th unusable reply in a row (1 is the first), with up to a quarter of jitter."""
    exponent = min(max(failures, 1) - 1, 16)  # 2**16 s is far above any bound: keeps the float finite
    base: float = limits.backoff_first * float(2**exponent)
    return min(limits.backoff_last, base * (1.0 + 0.25 * random))
