"""The head of a request and the framing of its body, as bytes. No IO.

What is sent and what is refused is what h11 sends and refuses (httpcore's parser), with its words: header injection,
two Host headers, a body that does not fit its Content-Length. Raises the ``error`` class given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: RFC 9110 5.6.2 and 5.5, as h11 reads them: obs-text is let through, NUL, line ends and outer blanks are not.
_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+").fullmatch
_VALUE = re.compile(rb"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?").fullmatch
_TARGET = re.compile(rb"[\x21-\x7e]+").fullmatch
_DIGITS = re.compile(rb"[0-9]{1,20}").fullmatch

#: Names found good, in lower case. Applications use a handful; the bound keeps names made from data from piling up.
_NAMES_KEPT = 512
_names: dict[bytes, bytes] = {}

CHUNKED = -1

#: Headers that httpx puts into every request. Their lines are made once; they say nothing about the framing. A client's
#: User-Agent joins them.
_COMMON = frozenset(
    {
        (b"Accept", b"*/*"),
        (b"Accept-Encoding", b"gzip, deflate"),
        (b"Accept-Encoding", b"gzip, deflate, br"),
        (b"Accept-Encoding", b"gzip, deflate, br, zstd"),
        (b"Connection", b"keep-alive"),
        (b"Content-Type", b"application/json"),
    }
)
_lines: dict[tuple[bytes, bytes], bytes] = {pair: b"%b: %b\r\n" % pair for pair in _COMMON}


class Head:
    """``data``: request line and headers. ``length``: of the body, or CHUNKED."""

    __slots__ = ("closes", "data", "length", "upgrades")

    def __init__(self, data: bytes, length: int, closes: bool, upgrades: bool) -> None:
        self.data = data
        self.length = length
        self.closes = closes  #: ``Connection: close``: not reusable afterwards
        self.upgrades = upgrades  #: proposes another protocol, so that a 101 is an answer to it


def request_head(
    method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], error: type[Exception]
) -> Head:
    """Host goes first, everything else in the order given, with the case given."""
    if not _TOKEN(method):
        raise error("Illegal method characters")
    if not _TARGET(target):
        raise error("Illegal target characters")
    hosts: list[bytes] = []
    lines: list[bytes] = []
    length: bytes | None = None
    chunked = closes = upgrades = False
    for pair in headers:
        line = _lines.get(pair)
        if line is not None:
            lines.append(line)
            continue
        raw, value = pair
        name = _names.get(raw) or _name(raw, error)
        if not _VALUE(value):
            raise error(f"Illegal header value {value!r}")
        if name == b"host":
            hosts.append(b"%b: %b\r\n" % pair)
            continue
        if name == b"content-length":
            found = _length(value, error)
            if length is not None:
                if found != length:
                    raise error("conflicting Content-Length headers")
                continue
            length = value = found
        elif name == b"transfer-encoding":
            if chunked:
                raise error("multiple Transfer-Encoding headers")
            value = value.lower()
            if value != b"chunked":
                raise error("Only Transfer-Encoding: chunked is supported")
            chunked = True
        elif name == b"connection":
            words = [word.strip() for word in value.lower().split(b",")]
            closes = closes or b"close" in words
        elif name == b"upgrade":
            upgrades = True
        line = b"%b: %b\r\n" % (raw, value)
        lines.append(line)
        if name == b"user-agent" and len(_lines) < _NAMES_KEPT:  # the same in every request of a client
            _lines[pair] = line
    if len(hosts) != 1:
        raise error("Found multiple Host: headers" if hosts else "Missing mandatory Host: header")
    data = b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, target, hosts[0], b"".join(lines))
    return Head(data, CHUNKED if chunked else int(length or 0), closes, upgrades)


def _name(raw: bytes, error: type[Exception]) -> bytes:
    if not _TOKEN(raw):
        raise error(f"Illegal header name {raw!r}")
    name = raw.lower()
    if len(_names) < _NAMES_KEPT:
        _names[raw] = name
    return name


def _length(value: bytes, error: type[Exception]) -> bytes:
    lengths = {length.strip() for length in value.split(b",")}
    if len(lengths) != 1:
        raise error("conflicting Content-Length headers")
    found = lengths.pop()
    if not _DIGITS(found):
        raise error("bad Content-Length")
    return found


class Framing:
    """Turns the parts of a body into what goes on the wire, and holds the body to its declared length."""

    __slots__ = ("_error", "_left")

    def __init__(self, length: int, error: type[Exception]) -> None:
        self._left = length
        self._error = error

    def part(self, data: bytes) -> bytes:
        if self._left == CHUNKED:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if len(data) > self._left:
            raise self._error("Too much data for declared Content-Length")
        self._left -= len(data)
        return data

    def end(self) -> bytes:
        if self._left == CHUNKED:
            return b"0\r\n\r\n"
        if self._left:
            raise self._error("Too little data for declared Content-Length")
        return b""
