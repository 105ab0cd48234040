"""Checks of single values: ``(place, value) -> value``, or ConfigError naming the place and what is allowed."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import MappingProxyType
from typing import Any

from meshlib.errors import ConfigError, TargetError
from meshlib.model.target import Target
from meshlib.pickers.hash_key import parse_hash_key

Check = Callable[[str, Any], Any]
Network = IPv4Network | IPv6Network

#: The bound on waiting for the first knowledge, seconds (decision D3). More than a minute is a typing error: a caller
#: that waits so long for names to be known is stuck, not patient.
MAX_SYNC_TIMEOUT = 60.0
#: As many descriptors as Linux lets a process have unless it is told otherwise (fs.nr_open).
MAX_CONNECTIONS = 1_048_576
#: A DNS label as Kubernetes wants it (RFC 1123): namespaces.
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
#: A host or domain name; underscores are tolerated, as resolvers do.
_NAME = re.compile(r"[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?(\.[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?)*")
#: RFC 1035's limit of 255 octets, in presentation form.
MAX_NAME = 253
#: A Kubernetes label value: what a zone may look like.
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
#: What entry points and resolvers may be called.
_WORD = re.compile(r"[A-Za-z0-9_][-+.A-Za-z0-9_]{0,99}")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint at the closest choice, or ""."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def known(where: str, key: object, choices: Iterable[str]) -> None:
    """Refuse a key that does not exist."""
    names = tuple(choices)
    if key not in names:
        hint = did_you_mean(str(key), names) or f"known: {', '.join(sorted(names))}"
        raise ConfigError(where, f"unknown key {key!r}", hint)


def _kind(value: object) -> str:
    names = {bool: "true/false", int: "the number", float: "the number", str: "the text", list: "the list"}
    return f"{names.get(type(value), type(value).__name__)} {str(value)[:80]!r}"


def boolean(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(where, f"needs true or false, not {_kind(value)}")
    return value


def text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(where, f"needs text, not {_kind(value)}")
    if not value.isprintable():
        raise ConfigError(where, f"has unprintable characters: {value!r}")
    return value


def _matching(pattern: re.Pattern[str], what: str, example: str, lower: bool = False) -> Check:
    def check(where: str, value: Any) -> str:
        found = text(where, value)
        found = found.lower().removesuffix(".") if lower else found
        if found and (len(found) > MAX_NAME or not pattern.fullmatch(found)):
            raise ConfigError(where, f"{value!r} is not {what}", f"for example {example!r}")
        return found

    return check


namespace = _matching(LABEL, "a namespace name", "shop")
domain = _matching(_NAME, "a domain name", "cluster.local", lower=True)
node = _matching(_NAME, "a node name", "node-1", lower=True)
zone = _matching(_LABEL_VALUE, "a zone name", "eu-west-1a")
host = _matching(_NAME, "a host name", "orders.internal", lower=True)


def host_and_port(where: str, value: Any) -> str:
    """``host`` or ``host:port``, in lower case."""
    name, colon, port = text(where, value).partition(":")
    if colon and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ConfigError(where, f"{value!r} has no port from 1 to 65535 after the colon")
    checked: str = host(where, name)
    if not checked:
        raise ConfigError(where, "needs a host name", "for example 'orders.internal'")
    return checked + colon + port


def seconds(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(where, f"needs a number of seconds, not {_kind(value)}")
    if not (math.isfinite(value) and 0 <= value <= MAX_SYNC_TIMEOUT):
        raise ConfigError(where, f"{value!r} is outside 0 to {MAX_SYNC_TIMEOUT:g} seconds")
    return float(value)


def connections(where: str, value: Any) -> int:
    """A number of connections; 0: as many as the default says."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(where, f"needs a whole number, not {_kind(value)}")
    if not 0 <= value <= MAX_CONNECTIONS:
        raise ConfigError(where, f"{value!r} is outside 0 to {MAX_CONNECTIONS}")
    return value


def percent(where: str, value: Any) -> float:
    """A share of requests."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(where, f"needs a number from 0 to 100, not {_kind(value)}")
    if not (math.isfinite(value) and 0 <= value <= 100):
        raise ConfigError(where, f"{value!r} is outside 0 to 100")
    return float(value)


def one_of(*choices: str) -> Check:
    def check(where: str, value: Any) -> str:
        found = text(where, value)
        if found not in choices:
            raise ConfigError(
                where, f"{found!r} is not one of {', '.join(choices)}", did_you_mean(found, choices)
            )
        return found

    return check


def status_socket(where: str, value: Any) -> str:
    """A word, or an absolute path: a worker and the command that asks it rarely have one working directory."""
    found = text(where, value)
    if found not in ("auto", "off") and not found.startswith("/"):
        raise ConfigError(
            where, f"{found!r} is neither auto, off nor an absolute path", "for example '/run/app'"
        )
    return found


def word(where: str, value: Any) -> str:
    found = text(where, value)
    if not _WORD.fullmatch(found):
        raise ConfigError(where, f"{found!r} is not a name", "for example 'peak_ewma'")
    return found


def _items(where: str, value: Any, what: str, example: str) -> list[tuple[str, Any]]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(where, f"needs a list of {what}, not {_kind(value)}", f"write {example}")
    return [(f"{where}[{index}]", item) for index, item in enumerate(value)]


def words(where: str, value: Any) -> tuple[str, ...]:
    return tuple(word(place, item) for place, item in _items(where, value, "names", '["my_picker"]'))


def networks(where: str, value: Any) -> tuple[Network, ...]:
    found = []
    for place, item in _items(where, value, "networks", '["10.0.0.0/8"]'):
        written = text(place, item)
        try:
            found.append(ip_network(written))
        except ValueError as error:
            raise ConfigError(place, f"not a network: {error}", "for example '10.0.0.0/8'") from None
    return tuple(found)


def table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(where, f"needs a table, not {_kind(value)}")
    return MappingProxyType(dict(value))


def hash_key(where: str, value: Any) -> str:
    found = text(where, value)
    if found:
        parse_hash_key(found, where)
    return found


def target(where: str, value: Any) -> str:
    found = text(where, value)
    try:
        Target.parse(found)
    except TargetError as error:
        raise ConfigError(where, str(error)) from None
    return found


def targets_or_hosts(where: str, value: Any) -> tuple[str, ...]:
    """Targets, and host names with or without a port."""
    return tuple(
        target(place, item) if "://" in text(place, item) else host_and_port(place, item)
        for place, item in _items(where, value, "targets or host names", '["orders.shop.svc"]')
    )


def as_is(where: str, value: Any) -> Any:
    """For settings that their resolver checks itself when it is built."""
    return value
