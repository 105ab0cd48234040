"""Whose channel is it? What transparent use does with a gRPC target: ours, grpc's, or to be decided at each call."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: Schemes that grpc resolves itself and that never mean one of ours (grpc's naming document, and xDS).
GRPC_SCHEMES = frozenset(
    {"unix", "unix-abstract", "vsock", "ipv4", "ipv6", "xds", "google-c2p", "google-c2p-experimental"}
)
#: Channel arguments by which an application balances for itself (decision D10), and by which it chooses a proxy.
BALANCING = frozenset({"grpc.service_config", "grpc.lb_policy_name"})
_PROXY, _PROXY_ALLOWED = "grpc.http_proxy", "grpc.enable_http_proxy"
#: Where grpc core looks for a proxy, and for what goes around it: the first that is set. Lower case only.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_HOST_PORT = re.compile(r"([A-Za-z0-9._-]+):([0-9]{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ours:
    """A target in a form that only we understand, or ``dns:///``. ``authority``: what a bare channel would send."""

    scheme: str
    target: str
    authority: str = ""


@dataclass(frozen=True, slots=True)
class ByHost:
    """``HOST:PORT`` as grpc has always taken it: ours if the host is (decision D1), which may change over time."""

    host: str
    port: int
    authority: str


def whose(target: object, options: Iterable[Any], environ: Mapping[str, str]) -> Ours | ByHost | None:
    """None: grpc's, untouched. ``options``: the channel arguments; ``environ``: for the proxy that grpc would take.

    A name that grpc would look up in DNS stays with grpc when the application balances for itself or when the
    connection would go through a proxy: both decide themselves where to connect.
    """
    if not isinstance(target, str):
        return None
    given = _arguments(options)
    found = _SCHEME.match(target)
    if found is None:
        split = _HOST_PORT.fullmatch(target)
        if split is None or _decides_itself(split[1], given, environ):
            return None
        return ByHost(split[1], int(split[2]), target)
    scheme = found[1].lower()
    if scheme in GRPC_SCHEMES:
        return None
    if scheme == "dns":
        path = target[found.end() :].partition("/")[2]
        if _decides_itself(path.rpartition(":")[0] or path, given, environ):
            return None
        return Ours(scheme, target, path)
    return Ours(scheme, target)


def _arguments(options: Iterable[Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in options:
        given[name.decode("latin-1") if isinstance(name, bytes) else str(name)] = value
    return given


def _decides_itself(host: str, given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    return not BALANCING.isdisjoint(given) or _is_proxied(host, given, environ)


def _is_proxied(host: str, given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether grpc core would send this host through an HTTP proxy (its http_proxy_mapper, in a few lines)."""
    if given.get(_PROXY_ALLOWED, 1) in (0, False):
        return False
    if not given.get(_PROXY) and not any(environ.get(name) for name in _PROXY_VARIABLES):
        return False
    around = next((environ[name] for name in _NO_PROXY_VARIABLES if environ.get(name)), "")
    return not any(_goes_around(host, entry.strip()) for entry in around.split(",") if entry.strip())


def _goes_around(host: str, entry: str) -> bool:
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")) in ipaddress.ip_network(entry)
    except ValueError:
        return False
