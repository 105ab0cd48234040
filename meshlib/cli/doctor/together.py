"""The checks that need the cluster, put together: rights first, then this pod, then the targets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshlib.cli.doctor.api import Api, Cluster
from meshlib.cli.doctor.cluster import check_cluster
from meshlib.cli.doctor.findings import Finding, lack
from meshlib.cli.doctor.limits import check_limits
from meshlib.cli.doctor.neighbours import check_neighbours
from meshlib.cli.doctor.reach import Policies, Reached, check_targets, policies_between
from meshlib.cli.settings import quiet
from meshlib.errors import ConfigError, TargetError
from meshlib.model.target import Target, TargetDefaults
from meshlib.runtime.config import Config
from meshlib.runtime.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Asked:
    """The command's arguments. ``connections``: planned, from one process to each endpoint."""

    namespaces: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    connections: int = 1
    sources: tuple[Path, ...] = ()


async def examine_cluster(
    config: Config, defaults: TargetDefaults, environ: Mapping[str, str], asked: Asked
) -> list[Finding]:
    """Without the API server the targets are looked at all the same: discovery has its fall-backs."""
    targets, findings = _parsed(asked.targets, defaults)
    own = [each.namespace for each in targets.values() if each.scheme == "k8s"]
    namespaces = asked.namespaces or tuple(dict.fromkeys(own)) or (defaults.namespace,)
    api_found: list[tuple[Api, Cluster]] = []
    reached: list[Reached] = []

    async def look(api: Api | None, cluster: Cluster) -> list[Finding]:
        if not targets:
            return []
        try:
            mesh = Mesh(config=quiet(config))
        except ConfigError as error:
            return [lack("configuration", f"no target can be looked at: {error}", "mend what it names")]
        with mesh:
            found = await check_targets(mesh, tuple(targets), cluster.vips, _policies(api, environ, defaults))
            await asyncio.to_thread(mesh.close)
        reached.append(found)
        return found.findings

    async def further(api: Api, cluster: Cluster) -> list[Finding]:
        api_found.append((api, cluster))
        ignoring = config.sidecar == "ignore"
        return [
            *await check_neighbours(api, environ, defaults.namespace, ignoring),
            *await look(api, cluster),
        ]

    findings += await check_cluster(config.discovery.get("k8s", {}), environ, namespaces, further)
    if not api_found:
        findings += await look(None, Cluster())
    counts = reached[0].endpoints if reached else {}
    return [*findings, *check_limits(counts, asked.connections, config.total_connections)]


def _parsed(texts: tuple[str, ...], defaults: TargetDefaults) -> tuple[dict[str, Target], list[Finding]]:
    targets, wrong = {}, []
    for text in texts:
        try:
            targets[text] = Target.parse(text, defaults)
        except TargetError as error:
            wrong.append(lack("targets", str(error), "write k8s:///NAME.NAMESPACE:PORT"))
    return targets, wrong


def _policies(api: Api | None, environ: Mapping[str, str], defaults: TargetDefaults) -> Policies:
    """Egress policies of our own pod, and ingress policies of the target's: by labels, as far as both are known."""

    async def listed(namespace: str, direction: str, labels: Mapping[str, str]) -> list[str] | None:
        assert api is not None  # noqa: S101 - for mypy: ``policies`` returned before
        path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
        found = await api.object(path)
        return None if found is None else policies_between(found.get("items") or (), direction, labels)

    async def labels_of(path: str, *keys: str) -> Mapping[str, str]:
        assert api is not None  # noqa: S101 - as above
        found = await api.object(path) or {}
        for key in keys:
            found = found.get(key) or {}
        return {str(key): str(value) for key, value in found.items()}

    async def policies(target: Target) -> list[str] | None:
        if api is None:
            return None
        pod = environ.get("POD_NAME") or environ.get("HOSTNAME", "")
        own = f"/api/v1/namespaces/{defaults.namespace}/pods/{pod}"
        egress = await listed(defaults.namespace, "Egress", await labels_of(own, "metadata", "labels"))
        ingress: list[str] | None = []
        if target.scheme == "k8s":
            service = f"/api/v1/namespaces/{target.namespace}/services/{target.name}"
            ingress = await listed(target.namespace, "Ingress", await labels_of(service, "spec", "selector"))
        names = [*(egress or []), *(ingress or [])]
        # None found is an answer only where we were allowed to look.
        return None if not names and (egress is None or ingress is None) else names

    return policies
