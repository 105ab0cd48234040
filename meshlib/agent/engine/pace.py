"""Pace: when to write to the kernel. Changes are gathered, failures wait longer, and nothing is forgotten. Pure.

The same shape as kube-proxy's bounded runner (minSyncPeriod 1 s with a burst of 2, syncPeriod 30 s).
"""

from __future__ import annotations

from dataclasses import dataclass

#: Seconds of the first wait after a failed write, and of the longest.
RETRY_FIRST = 1.0
RETRY_MOST = 30.0


@dataclass(slots=True)
class Pace:
    """Times are monotonic seconds. ``min_interval`` 0 to write at once; ``max_interval`` is the audit's period."""

    min_interval: float = 1.0
    max_interval: float = 30.0
    burst: int = 2
    _tokens: float = 2.0
    _filled: float = 0.0
    _wanted_since: float | None = None
    _writing_since: float | None = None  #: of the changes that the write in progress carries
    _retry_at: float | None = None
    _retry_wait: float = 0.0
    _full_at: float | None = None

    def __post_init__(self) -> None:
        self._tokens = float(self.burst)

    @property
    def wanted_since(self) -> float | None:
        """When the oldest change that is not applied came."""
        return min((t for t in (self._wanted_since, self._writing_since) if t is not None), default=None)

    def want(self, now: float) -> None:
        """Something changed."""
        if self._wanted_since is None:
            self._wanted_since = now

    def next(self, now: float) -> float | None:
        """When to write next (now or earlier: at once); None: nothing waits, and no audit is due ever."""
        times = []
        if self._retry_at is not None:
            times.append(self._retry_at)
        elif self._wanted_since is not None:
            times.append(max(self._wanted_since, self._token_at(now)))
        if self._full_at is not None:
            times.append(self._full_at if self._retry_at is None else max(self._full_at, self._retry_at))
        return min(times, default=None)

    def audit_due(self, now: float) -> bool:
        """Whether the whole kernel state is to be read again."""
        return self._full_at is not None and now >= self._full_at

    def began(self, now: float) -> None:
        """A write begins: it takes a token, and carries everything that was wanted until now."""
        self._fill(now)
        self._tokens = max(0.0, self._tokens - 1.0)
        self._writing_since, self._wanted_since = self.wanted_since, None

    def succeeded(self, now: float, audited: bool) -> None:
        """Everything that was wanted when the write began is applied."""
        self._writing_since = self._retry_at = None
        self._retry_wait = 0.0
        if audited or self._full_at is None:
            self._full_at = now + self.max_interval

    def failed(self, now: float) -> None:
        """Something is still to be applied: again later, each time twice as late."""
        self._wanted_since, self._writing_since = self.wanted_since, None
        self.want(now)
        self._retry_wait = min(self._retry_wait * 2, RETRY_MOST) if self._retry_wait else RETRY_FIRST
        self._retry_at = now + self._retry_wait

    def _fill(self, now: float) -> None:
        if self.min_interval > 0:
            gained = (now - self._filled) / self.min_interval
            self._tokens = min(float(self.burst), self._tokens + gained)
        else:
            self._tokens = float(self.burst)
        self._filled = now

    def _token_at(self, now: float) -> float:
        self._fill(now)
        return now if self._tokens >= 1.0 else now + (1.0 - self._tokens) * self.min_interval
