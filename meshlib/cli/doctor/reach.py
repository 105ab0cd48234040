"""Doctor's look at targets: are their endpoints known, do they take connections, and who may be in between."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from meshlib.cli.doctor.findings import Finding, lack, note, ok
from meshlib.errors import MeshError
from meshlib.model.endpoint import Endpoint
from meshlib.model.target import Target
from meshlib.runtime.balancer import Way
from meshlib.runtime.default import ready
from meshlib.runtime.mesh import Mesh

#: Endpoints of a target that are connected to: a NetworkPolicy treats the pods of a Service alike.
SAMPLE = 5
#: Seconds that one connection may take. A pod of another region answers a SYN in 0.3 s, and a lost one is sent again
#: after 1 s.
CONNECT = 2.0
#: Seconds that discovery may take for all targets together.
SYNC = 10.0
_AREA = "targets"

#: Gives the names of NetworkPolicies that may stand between us and the pods of a target, or None: not allowed to look.
Policies = Callable[[Target], Awaitable[list[str] | None]]


@dataclass(frozen=True, slots=True)
class Reached:
    """``endpoints``: how many there are in each target, for the limits."""

    findings: list[Finding]
    endpoints: dict[str, int]


async def check_targets(
    mesh: Mesh, targets: Sequence[str], vips: Mapping[str, str], policies: Policies
) -> Reached:
    """Discovers each target as the library does, and connects to a few of its endpoints, sending nothing."""
    findings: list[Finding] = []
    counts: dict[str, int] = {}
    known: list[str] = []
    for text in targets:
        with suppress(MeshError):  # each target says below what it lacks
            mesh.target(text)
            known.append(text)
    with suppress(MeshError):
        await ready(known, timeout=SYNC, mesh=mesh)
    for text in targets:
        try:
            handle = mesh.target(text)
            balancer = handle.balancer
        except MeshError as error:
            findings.append(lack(_AREA, str(error), f"meshlib resolve {text}"))
            continue
        endpoints = tuple(one.endpoint for one in balancer.subchannels)
        counts[text] = len(endpoints)
        if not endpoints:
            findings.append(
                lack(_AREA, balancer.reason or f"{text}: nothing is known", f"meshlib resolve {text}")
            )
            continue
        if balancer.way is not Way.PODS:
            findings.append(note(_AREA, f"{text}: calls go to {balancer.way.value}: {balancer.reason}"))
        findings += balanced_twice(text, endpoints, vips)
        findings += await _connected(text, handle.target, endpoints, policies)
    return Reached(findings, counts)


def balanced_twice(text: str, endpoints: Iterable[Endpoint], vips: Mapping[str, str]) -> Iterable[Finding]:
    """Endpoints that are Service addresses: kube-proxy balances each connection once more."""
    named = {
        vips[one.address]: one
        for one in endpoints
        if one.address in vips and not one.name.startswith("Service ")
    }
    for service, endpoint in named.items():
        namespace, _, name = service.partition("/")
        yield lack(
            "double balancing",
            f"{text}: its endpoint {endpoint.authority} is the address of the Service {service}: kube-proxy "
            "picks a pod for each connection, after meshlib has picked the address",
            f"call that Service itself: k8s:///{name}.{namespace}:PORT",
        )


async def _connected(
    text: str, target: Target, endpoints: Sequence[Endpoint], policies: Policies
) -> list[Finding]:
    tried = endpoints[:: max(1, len(endpoints) // SAMPLE)][:SAMPLE]
    started = time.monotonic()
    results = await asyncio.gather(*(_connect(one) for one in tried))
    took = (time.monotonic() - started) * 1000
    silent = [one for one, result in zip(tried, results, strict=True) if isinstance(result, TimeoutError)]
    failed = [
        (one, result)
        for one, result in zip(tried, results, strict=True)
        if result is not None and not isinstance(result, TimeoutError)
    ]
    told = []
    if silent:
        told.append(await _blocked(text, target, silent, len(tried), policies))
    if failed:
        first, error = failed[0]
        told.append(
            lack(
                _AREA,
                f"{text}: {len(failed)} of {len(tried)} endpoints take no connection ({first.authority}: "
                f"{os.strerror(error.errno) if error.errno else error})",
                "is something listening on that port of the pods? Pods of a strict mesh (mTLS only) refuse as well",
            )
        )
    if not told:
        told.append(
            ok(
                _AREA,
                f"{text}: {len(endpoints)} endpoints, {len(tried)} tried, all connected ({took:.0f} ms)",
            )
        )
    return told


async def _connect(endpoint: Endpoint) -> OSError | None:
    """None: it took the connection. TimeoutError is an OSError."""
    try:
        async with asyncio.timeout(CONNECT):
            _, writer = await asyncio.open_connection(endpoint.address, endpoint.port)
    except OSError as error:
        return error
    writer.transport.abort()  # nothing was said, and nothing is waited for
    return None


async def _blocked(
    text: str, target: Target, silent: Sequence[Endpoint], tried: int, policies: Policies
) -> Finding:
    names = await policies(target)
    if names is None:
        whose = (
            "NetworkPolicies could not be read here; look with: kubectl get networkpolicy --all-namespaces"
        )
    elif names:
        whose = "NetworkPolicies that may stand in between: " + ", ".join(names)
    else:
        whose = (
            "no NetworkPolicy selects these pods: look at node firewalls, security groups, the CNI's policies"
        )
    return lack(
        _AREA,
        f"{text}: {len(silent)} of {tried} endpoints drop connections (no answer from {silent[0].authority})",
        f"{whose}\nWhat must be allowed: egress of this pod, and ingress of the pods, to port {silent[0].port}",
    )


def may_select(selector: object, labels: Mapping[str, str]) -> bool:
    """Whether a podSelector can select a pod of which only ``labels`` are known: no label contradicts."""
    wanted = selector.get("matchLabels") if isinstance(selector, dict) else None
    return all(labels.get(key, value) == value for key, value in (wanted or {}).items())


def policies_between(
    items: Iterable[Mapping[str, Any]], direction: str, labels: Mapping[str, str]
) -> list[str]:
    """``NAMESPACE/NAME`` of NetworkPolicies that restrict ``Egress`` or ``Ingress`` of a pod with these labels."""
    found = []
    for item in items:
        spec, metadata = item.get("spec") or {}, item.get("metadata") or {}
        # Without policyTypes: Ingress always, Egress where there are rules for it (networking/v1).
        kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
        if direction in kinds and may_select(spec.get("podSelector"), labels):
            found.append(f"{metadata.get('namespace')}/{metadata.get('name')} ({direction.lower()})")
    return found
