"""Doctor's look at what is installed: versions, plugins, and packages that get in each other's way."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any
from urllib import request

from meshlib.cli.doctor.findings import Finding, lack, note, ok
from meshlib.clients.autostart import DISABLED, disabled
from meshlib.clients.httpx.flavour import LIBRARIES
from meshlib.runtime.registry import plugins

#: Another project's distribution, a 3D library, installs a package of the same name over ours.
_NAMESAKE = "meshlib"
_LIBRARIES = ("httpx", "httpx2", "grpcio", "kubernetes", "dnspython")
#: Used only where an application has it; that it is not there is not worth a line.
_OPTIONAL = frozenset({"httpx2"})


def check_libraries() -> Iterable[Finding]:
    """Installed versions, and whether meshlib knows them."""
    area = "libraries"
    yield ok(area, f"Python {sys.version.split()[0]}")
    for name in _LIBRARIES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name not in _OPTIONAL:
                yield lack(area, f"{name} is not installed", f"pip install {name}")
            continue
        problem, doubt = _probe(name)
        if problem:
            yield lack(
                area,
                f"{name} {version}: {problem}",
                "see docs/dependencies.md for the versions that are known",
            )
        elif doubt:
            yield note(area, f"{name} {version}: {doubt}")
        else:
            yield ok(area, f"{name} {version}")
    try:
        other = metadata.version(_NAMESAKE)
    except metadata.PackageNotFoundError:
        return
    yield lack(
        area,
        f"the distribution meshlib {other} (a 3D library) installs a package of the same name as ours",
        "pip uninstall meshlib && pip install --force-reinstall meshlib-sdk",
    )


def _probe(name: str) -> tuple[str, str]:
    """(why it cannot be used, what is worth knowing) after importing it, as the clients would."""
    try:
        if name in LIBRARIES:
            from meshlib.clients.httpx.flavour import load

            return "", load(name).unsupported
        if name == "grpcio":
            from meshlib.clients.grpc.routing import differences

            return "", differences()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what other packages warn about at import is not our report
            __import__({"kubernetes": "kubernetes", "dnspython": "dns"}[name])
    except Exception as error:  # a broken installation may raise anything, and saying so is the purpose
        return f"cannot be imported: {error!r}", ""
    return "", ""


def check_plugins() -> Iterable[Finding]:
    """Plugins by group, with the distribution they come from."""
    for group, found in plugins().items():
        for name, origin in sorted(found.items()):
            yield ok("plugins", f"{group}: {name} ({origin})")


def check_environment(environ: Mapping[str, str]) -> Iterable[Finding]:
    """Variables of other libraries that are known to break clients."""
    area = "environment"
    if re.fullmatch(r"0|false|no|off", environ.get("GRPC_ENABLE_FORK_SUPPORT", "").strip().lower()):
        yield lack(
            area,
            "GRPC_ENABLE_FORK_SUPPORT is off: gRPC calls hang in forked children, even on new channels",
            "unset GRPC_ENABLE_FORK_SUPPORT",
        )
    if disabled(environ):
        yield note(
            area, f"{DISABLED} is set: meshlib.install() and meshlib run do nothing", f"unset {DISABLED}"
        )
    yield from check_proxies(environ)


def check_proxies(environ: Mapping[str, str]) -> Iterable[Finding]:
    """What goes through a proxy is not balanced; unless NO_PROXY says that the cluster's names go around it."""
    names = [
        name
        for name in (
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
            "grpc_proxy",
        )
        if environ.get(name)
    ]
    if not names:
        return
    around = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    hosts = ("orders.shop.svc", "orders.shop.svc.cluster.local")
    bypass: Any = request.proxy_bypass_environment  # type: ignore[attr-defined]  # left out of typeshed
    if all(bypass(host, {"no": around}) for host in hosts):
        yield ok("environment", f"{', '.join(names)} is set, and the cluster's names go around it (NO_PROXY)")
        return
    yield note(
        "environment",
        f"{', '.join(names)} is set: clients send requests through the proxy, and those are not balanced",
        "list the cluster's names in NO_PROXY: .svc,.svc.cluster.local",
    )
