"""Slow start: what part of its share an endpoint that joined a running set gets."""

from __future__ import annotations

#: Seconds until a joiner has its full share. Envoy leaves it unset and its documentation warns of windows so
#: short that nothing is warmed; ten seconds cover a JIT, a connection pool and a cache, and end before a
#: rollout's next step.
WINDOW = 10.0
#: The longest window that can be set, seconds: Dubbo's, the longest in use.
MAX_WINDOW = 600.0
#: The part of its share that a joiner has from the first moment (Envoy's ``min_weight_percent``, 10 %): it must
#: get some requests, or it would never be warm.
FLOOR = 0.1


def ramp(now: float, joined_at: float, window: float) -> float:
    """The factor in [FLOOR, 1] at ``now``: a straight line (Envoy's slow start, aggression 1.0); without window 1."""
    age = now - joined_at
    if window <= 0.0 or age >= window:
        return 1.0
    return max(FLOOR, age / window)
