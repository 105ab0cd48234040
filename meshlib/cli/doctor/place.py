"""Doctor's look at where we are: configuration, namespace, node, zone, names, and a mesh that is there already."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from meshlib.cli.doctor.findings import Finding, lack, note, ok
from meshlib.errors import ConfigError
from meshlib.model.target import TargetDefaults
from meshlib.runtime.config import Config
from meshlib.runtime.dev_file import find_dev_file

_DOWNWARD = (
    "env:\n"
    "- name: NODE_NAME\n"
    "  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}\n"
    "- name: POD_IP\n"
    "  valueFrom: {fieldRef: {fieldPath: status.podIP}}"
)


def check_config(config: Config) -> Iterable[Finding]:
    """The file that was read, and what was ignored."""
    yield ok(
        "configuration",
        f"file {config.file}" if config.file else "no file; defaults, MESHLIB_* and annotations",
    )
    for warning in config.warnings:
        yield note("configuration", warning)


def check_dev_file(environ: Mapping[str, str], defaults: TargetDefaults) -> Iterable[Finding]:
    """Whether targets lead to this machine."""
    area = "configuration"
    try:
        found = find_dev_file(environ, defaults)
    except ConfigError as error:
        yield lack(area, str(error), "mend the file; without it: unset MESHLIB_ENV MESHLIB_DEV_FILE")
        return
    if found.file is not None:
        count = len(found.file.entries)
        yield note(
            area, f"{found.file.path} is in use: {count} targets lead to what it says", "unset MESHLIB_ENV"
        )
    elif found.ignored:
        yield note(area, found.ignored)


def check_place(
    config: Config, defaults: TargetDefaults, environ: Mapping[str, str], sidecar: str
) -> Iterable[Finding]:
    """``sidecar``: the mesh found in this pod, in words; empty: none."""
    area = "place"
    in_cluster = bool(environ.get("KUBERNETES_SERVICE_HOST"))
    yield ok(area, "in a pod" if in_cluster else "not in a pod (KUBERNETES_SERVICE_HOST is not set)")
    yield ok(area, f"namespace {defaults.namespace}, cluster domain {defaults.cluster_domain}")
    for name, value in (("node", config.node), ("zone", config.zone)):
        if value:
            yield ok(area, f"{name} {value}, from {config.source(name)}")
        elif in_cluster:
            yield note(
                area,
                f"own {name} is not set: it is learned from the slice that lists this pod; until then Services with "
                "topology hints or a Local policy are dialled through their own address",
                _DOWNWARD if name == "node" else "set MESHLIB_ZONE, or give the pod a Service of its own",
            )
    if sidecar and config.sidecar == "auto":
        yield note(
            area,
            f"{sidecar} was found: meshlib stands back and dials Service addresses, so that it stays in charge",
            'set MESHLIB_SIDECAR=ignore (or sidecar = "ignore") to balance anyway',
        )
    elif sidecar:
        yield note(area, f"{sidecar} was found, and the configuration says to balance anyway")


def check_names(defaults: TargetDefaults, environ: Mapping[str, str]) -> Iterable[Finding]:
    """resolv.conf, and whether the cluster's DNS answers (only asked in a pod)."""
    area = "dns"
    search = " ".join(defaults.search) or "none"
    yield ok(area, f"resolv.conf: search {search}, ndots {defaults.ndots}")
    if not environ.get("KUBERNETES_SERVICE_HOST"):
        return
    if not any(name.startswith("svc.") for name in defaults.search):
        yield lack(
            area,
            "the search list has no svc.DOMAIN entry: short names are unknown, and the cluster domain is a guess",
            "set the pod's dnsPolicy to ClusterFirst (ClusterFirstWithHostNet with hostNetwork), or cluster_domain",
        )
    name = f"kubernetes.default.svc.{defaults.cluster_domain}"
    try:
        # With its final dot: else a DNS that drops would be waited for once more for every entry of the search list.
        found = {entry[4][0] for entry in socket.getaddrinfo(f"{name}.", 443, type=socket.SOCK_STREAM)}
        yield ok(area, f"{name} is {', '.join(sorted(map(str, found)))}")
    except OSError as error:
        yield lack(
            area,
            f"{name} does not resolve: {error.strerror or error}",
            "without cluster DNS there is no fall-back while the API is not reachable; allow egress to port 53",
        )
