"""The keys that exist, and one source (file, environment, code) flattened into checked entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from meshlib.runtime.config import checks
from meshlib.runtime.config.checks import Check

#: ``("strict",)``, ``("aliases", "orders.internal")``, ``("target", "k8s:///orders:http", "picker")``.
KeyPath = tuple[str, ...]


class Entry(NamedTuple):
    """A checked value and the place it was written in."""

    value: Any
    place: str


Entries = dict[KeyPath, Entry]

SCALARS: Mapping[str, Check] = {
    "mode": checks.one_of("off", "observe", "on"),
    "percent": checks.percent,
    "allow_targets": checks.targets_or_hosts,
    "strict": checks.boolean,
    "namespace": checks.namespace,
    "cluster_domain": checks.domain,
    "node": checks.node,
    "zone": checks.zone,
    "short_names": checks.boolean,
    "sync_timeout": checks.seconds,
    "sidecar": checks.one_of("auto", "ignore"),
    "picker": checks.word,
    "picker_settings": checks.table,
    "hash_key": checks.hash_key,
    "plugins": checks.words,
    "exporters": checks.words,
    "wire": checks.one_of("httpcore", "fast"),
    "total_connections": checks.connections,
    "status_socket": checks.status_socket,
}
ADDRESS: Mapping[str, Check] = {
    "allow": checks.networks,
    "deny": checks.networks,
    "allow_loopback": checks.boolean,
}
TARGET: Mapping[str, Check] = {
    "mode": checks.one_of("off", "observe", "on"),
    "percent": checks.percent,
    "picker": checks.word,
    "settings": checks.table,
    "hash_key": checks.hash_key,
    "authority": checks.host,
}
#: ``[discovery.k8s]``; the other resolvers check their tables themselves, plugins' included, when they are built.
KUBERNETES: Mapping[str, Check] = {
    "api_server": checks.text,
    "service_account_dir": checks.text,
    "in_cluster": checks.boolean,
    "kubeconfig": checks.text,
    "context": checks.text,
    "allow_kubeconfig": checks.boolean,
    "insecure_skip_tls_verify": checks.boolean,
    "environ": checks.table,  # instead of os.environ, for tests
}
TABLES = ("aliases", "address", "discovery", "target")


def dotted(path: KeyPath) -> str:
    """The path as TOML writes it: parts that are not bare words are quoted."""
    return ".".join(
        part if part.replace("_", "").replace("-", "").isalnum() else f'"{part}"' for part in path
    )


def flatten(raw: Mapping[str, Any], place: Callable[[KeyPath], str]) -> Entries:
    """Check one source. ``place`` names where a key was written. Raises ConfigError at the first bad entry."""
    entries: Entries = {}

    def take(path: KeyPath, check: Check, value: Any) -> None:
        where = place(path)
        entries[path] = Entry(check(where, value), where)

    for key, value in raw.items():
        checks.known(place((str(key),)), key, (*SCALARS, *TABLES))
        if key in SCALARS:
            take((key,), SCALARS[key], value)
            continue
        for name, item in checks.table(place((key,)), value).items():
            path = (key, name)
            if key == "aliases":
                take((key, checks.host_and_port(place(path), name)), checks.target, item)
            elif key == "address":
                checks.known(place(path), name, ADDRESS)
                take(path, ADDRESS[name], item)
            else:
                allowed: Mapping[str, Check] | None
                if key == "target":
                    checks.target(place(path), name)
                    allowed = TARGET
                else:
                    checks.word(place(path), name)
                    allowed = KUBERNETES if name == "k8s" else None
                for setting, inner in checks.table(place(path), item).items():
                    if allowed is not None:
                        checks.known(place((*path, setting)), setting, allowed)
                    take((*path, setting), allowed[setting] if allowed else checks.as_is, inner)
    return entries
