"""Hash key: from where in a request the key of the hash pickers comes. Reading the setting is here; clients extract."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from meshlib.errors import ConfigError

#: A field name (RFC 9110 5.1) and a cookie name (RFC 6265 4.1.1) are both tokens.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: What gRPC allows as a metadata key (its HTTP/2 mapping), binary ones included.
_METADATA = re.compile(r"[0-9a-z_.-]+")
_FORMS = "header:NAME, cookie:NAME, metadata:NAME, client or callable"


class HashKeySource(Enum):
    """HEADER, COOKIE and METADATA have a name; CLIENT is this process's identity; CALLABLE is given in code."""

    HEADER = "header"
    COOKIE = "cookie"
    METADATA = "metadata"
    CLIENT = "client"
    CALLABLE = "callable"


@dataclass(frozen=True, slots=True)
class HashKeySpec:
    """Where the key comes from. The helpers are pure; each gives None when the request does not have the key."""

    source: HashKeySource
    name: str = ""

    def from_headers(self, headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> str | None:
        """The header or cookie asked for; names of headers are compared without case, of cookies exactly.

        A field that occurs several times gives its values joined by ``, `` (RFC 9110 5.3); of several cookies
        of one name the first counts, as it is the most specific one (RFC 6265 5.4). None for other sources.
        """
        if self.source is HashKeySource.HEADER:
            values = _all(headers, self.name)
            return ", ".join(values) if values else None
        if self.source is HashKeySource.COOKIE:
            for line in _all(headers, "cookie"):
                for pair in line.split(";"):
                    name, equals, value = pair.strip().partition("=")
                    if equals and name == self.name:
                        return value.strip('"')
        return None

    def from_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> str | bytes | None:
        """The gRPC metadata entry asked for, or the header of that name (gRPC metadata are headers); else None."""
        if self.source not in (HashKeySource.METADATA, HashKeySource.HEADER):
            return None
        wanted = self.name.lower()
        for key, value in metadata:
            if key.lower() == wanted:
                return value
        return None

    def __str__(self) -> str:
        return f"{self.source.value}:{self.name}" if self.name else self.source.value


def parse_hash_key(text: str, where: str) -> HashKeySpec:
    """Parse ``header:NAME``, ``cookie:NAME``, ``metadata:NAME``, ``client`` or ``callable``.

    Raises ConfigError, with ``where`` as its place, for anything else.
    """
    kind, colon, name = text.partition(":")
    try:
        source = HashKeySource(kind)
    except ValueError:
        raise ConfigError(where, f"unknown source {kind[:80]!r}", f"allowed: {_FORMS}") from None
    if source in (HashKeySource.CLIENT, HashKeySource.CALLABLE):
        if colon:
            raise ConfigError(where, f"{kind!r} takes no name, given {name[:80]!r}", f"allowed: {_FORMS}")
        return HashKeySpec(source)
    if not name:
        raise ConfigError(where, f"{kind!r} needs a name", f"write {kind}:NAME")
    if source is HashKeySource.METADATA:
        if not _METADATA.fullmatch(name):
            raise ConfigError(
                where, f"{name[:80]!r} is no metadata key", "lower-case letters, digits and _ - ."
            )
    elif not _TOKEN.fullmatch(name):
        raise ConfigError(where, f"{name[:80]!r} is no {kind} name", "letters, digits and !#$%&'*+-.^_`|~")
    return HashKeySpec(source, name.lower() if source is HashKeySource.HEADER else name)


def _all(headers: Mapping[str, str] | Iterable[tuple[str, str]], wanted: str) -> list[str]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [value for name, value in pairs if name.lower() == wanted]
