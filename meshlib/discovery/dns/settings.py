"""The ``[discovery.dns]`` table of the configuration, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshlib.discovery.dns.schedule import Limits
from meshlib.discovery.dns.system import HOSTS, RESOLV_CONF
from meshlib.errors import ConfigError

#: How often resolv.conf and the hosts file are looked at, seconds. glibc looks at each look-up; a refresh comes
#: once per TTL, so once a second is as fresh, and it costs two stat calls.
POLL = 1.0
_KEYS = (
    "allow_loopback",
    "ceiling",
    "families",
    "floor",
    "hosts",
    "max_stale",
    "poll",
    "port",
    "resolv_conf",
)


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """``allow_loopback``: accept loopback addresses from answers (development, tests). ``floor``, ``ceiling``,
    ``max_stale``, ``poll``: seconds. ``families``: those to use, preferred first; empty: what the host has.
    ``port``: of the servers that resolv.conf names. ``resolv_conf``, ``hosts``: paths.
    """

    allow_loopback: bool = False
    floor: float | None = None
    ceiling: float | None = None
    max_stale: float | None = None
    poll: float = POLL
    families: tuple[int, ...] = ()
    port: int = 53
    resolv_conf: str = RESOLV_CONF
    hosts: str = HOSTS

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> DnsSettings:
        """Raises ConfigError naming the key."""
        for key in table:
            if key not in _KEYS:
                raise ConfigError(f"discovery.dns.{key}", "unknown setting", f"known: {', '.join(_KEYS)}")
        floor, ceiling = _seconds(table, "floor"), _seconds(table, "ceiling")
        if floor is not None and ceiling is not None and floor > ceiling:
            raise ConfigError("discovery.dns.floor", f"{floor:g} s is above the ceiling of {ceiling:g} s")
        return cls(
            allow_loopback=_flag(table, "allow_loopback"),
            floor=floor,
            ceiling=ceiling,
            max_stale=_seconds(table, "max_stale"),
            poll=_seconds(table, "poll") or POLL,
            families=_families(table),
            port=_port(table),
            resolv_conf=_path(table, "resolv_conf", RESOLV_CONF),
            hosts=_path(table, "hosts", HOSTS),
        )

    def limits(self, name: str) -> Limits:
        """The schedule's bounds for an absolute name."""
        limits = Limits.for_name(name)
        if self.floor is not None:
            limits = replace(limits, floor=self.floor, ceiling=max(self.floor, limits.ceiling))
        if self.ceiling is not None:
            limits = replace(limits, ceiling=self.ceiling, floor=min(self.ceiling, limits.floor))
        if self.max_stale is not None:
            limits = replace(limits, max_stale=self.max_stale)
        return limits


def _flag(table: Mapping[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"discovery.dns.{key}", f"{value!r} is not true or false")
    return value


def _seconds(table: Mapping[str, Any], key: str) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ConfigError(f"discovery.dns.{key}", f"{value!r} is not a number of seconds above 0")
    return float(value)


def _families(table: Mapping[str, Any]) -> tuple[int, ...]:
    value = table.get("families", ())
    if isinstance(value, list | tuple) and all(item in (4, 6) for item in value):
        return tuple(dict.fromkeys(value))
    raise ConfigError("discovery.dns.families", f"{value!r} is not a list of 4 and 6")


def _port(table: Mapping[str, Any]) -> int:
    value = table.get("port", 53)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise ConfigError("discovery.dns.port", f"{value!r} is not a port number")
    return value


def _path(table: Mapping[str, Any], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"discovery.dns.{key}", f"{value!r} is not a path")
    return value
