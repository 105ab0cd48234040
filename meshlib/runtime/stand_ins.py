"""Stand-ins: what answers for targets and hosts in the place of discovery, on a laptop and in tests.

Here is what both have in common: how an entry is written, and which entry a target finds.
"""

from __future__ import annotations

from collections.abc import Container
from ipaddress import ip_address
from typing import Any, NamedTuple

from meshlib.errors import TargetError
from meshlib.model.names import MAX_PORT
from meshlib.model.target import Target, TargetDefaults
from meshlib.model.target_grammar import cluster_host

_SERVICE_SCHEMES = ("k8s:///", "kubernetes:///")


class Key(NamedTuple):
    """What an entry is for. ``port`` None: any. A Service has a namespace; other hosts and targets have none."""

    namespace: str
    name: str
    hostname: str
    port: int | str | None

    @property
    def host(self) -> str:
        """``host`` or ``host:port`` of an entry for a host outside of the cluster's names; else ""."""
        if self.namespace or "://" in self.name:
            return ""
        return self.name if self.port is None else f"{self.name}:{self.port}"


def parse_key(what: Any, defaults: TargetDefaults = TargetDefaults()) -> Key:  # noqa: B008 - immutable
    """From ``k8s:///orders.shop:http`` (without a port: all of the Service's), any other target, ``HOST`` or
    ``HOST:PORT``. Raises TargetError, and TypeError for what is no text."""
    if not isinstance(what, str):
        raise TypeError(f"{what!r} is neither a target nor a host name")
    if what.startswith(_SERVICE_SCHEMES):
        has_port = ":" in what.partition(":///")[2]
        target = Target.parse(what if has_port else f"{what}:1", defaults)
        return Key(target.namespace, target.name, target.hostname, target.port if has_port else None)
    if "://" in what:
        return Key("", str(Target.parse(what, defaults)), "", None)
    host, colon, port = what.lower().partition(":")
    if not host or "/" in what or (colon and not _is_port(port)):
        raise TargetError(
            what, 0, len(what), "neither a target nor HOST or HOST:PORT", "for example orders.shop.svc:80"
        )
    number = int(port) if colon else None
    service = cluster_host(host, number, defaults)
    if service is not None:
        return Key(service.namespace, service.name, service.hostname, number)
    return Key("", host.removesuffix("."), "", number)


def key_for(target: Target, known: Container[Key]) -> Key | None:
    """The entry that a target finds: the one with its port before the one for all ports."""
    if target.scheme == "k8s":
        tried = [Key(target.namespace, target.name, target.hostname, port) for port in (target.port, None)]
    else:
        tried = [Key("", str(target), "", None)]
    return next((key for key in tried if key in known), None)


def parse_address(where: Any) -> str:
    """``IP:PORT`` from a port (on 127.0.0.1), ``localhost:PORT`` or ``IP:PORT``. Raises ValueError and TypeError."""
    if isinstance(where, int) and not isinstance(where, bool):
        where = f"127.0.0.1:{where}"
    if not isinstance(where, str):
        raise TypeError(f"{where!r} is no endpoint")
    host, _, port = where.rpartition(":")
    host = "127.0.0.1" if host.lower() == "localhost" else host
    try:
        ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        port = ""
    if not _is_port(port) or (":" in host) != host.startswith("["):
        raise ValueError(f"{where!r} is no IP:PORT; for example 127.0.0.1:9000 or [::1]:9000")
    return f"{host}:{port}"


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MAX_PORT
