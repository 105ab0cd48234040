"""Names and numbers as Kubernetes and DNS spell them: the character rules that parsers of the model share."""

from __future__ import annotations

import re

#: RFC 1123 label, as Kubernetes uses it for Services, namespaces and port names (at most 63 characters).
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
#: What resolvers accept in a host name: also ``_`` (SRV owners and names found in practice).
_HOST_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_DIGITS = re.compile(r"[0-9]+", re.ASCII)
#: The last label of what inet_aton (and so every C library) would read as a number: ``127.1``, ``0x7f.1``,
#: ``2130706433``.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*", re.ASCII)

MAX_NAME = 253  #: RFC 1035 2.3.4, without the root's dot
MAX_PORT = 65535


def is_label(text: str) -> bool:
    """An RFC 1123 label in lower case: the name of a Service, a namespace, a pod's hostname or a port."""
    return _LABEL.fullmatch(text) is not None


def is_host_name(text: str) -> bool:
    """A lower-case DNS name (underscores allowed, one trailing dot allowed) that cannot be read as a number."""
    name = text.removesuffix(".")
    return (
        0 < len(name) <= MAX_NAME
        and all(_HOST_LABEL.fullmatch(part) for part in name.split("."))
        and (not ends_in_number(name))
    )


def ends_in_number(host: str) -> bool:
    """Whether C libraries may read this host as an IPv4 address in an odd spelling (WHATWG URL 3.5)."""
    return _NUMERIC_LABEL.fullmatch(host.removesuffix(".").rpartition(".")[2]) is not None


def is_digits(text: str) -> bool:
    """ASCII digits only: ``str.isdigit`` also accepts digits of other scripts."""
    return _DIGITS.fullmatch(text) is not None


def is_port_name(text: str) -> bool:
    """A Service port's name: a label with at least one character that is not a digit."""
    return is_label(text) and not is_digits(text)
