"""Doctor's look at the Kubernetes API: credentials, reachability, and what we may read."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from meshlib.cli.doctor.findings import Finding, lack, note, ok
from meshlib.discovery.kubernetes.credentials import Credentials, find_credentials
from meshlib.discovery.kubernetes.rbac import ENDPOINTS, SERVICES, SLICES, Subject, role_yaml
from meshlib.discovery.kubernetes.transport import open_transport
from meshlib.discovery.kubernetes.versions import GROUP_PATH, SliceApi, choose
from meshlib.errors import MeshError

#: A question of doctor's may take this long, seconds: longer than an API server ever should, shorter than patience.
TIMEOUT = 5.0
_AREA = "kubernetes"
_NAMES = {SLICES: "EndpointSlices", ENDPOINTS: "Endpoints", SERVICES: "Services"}


async def check_cluster(
    settings: Mapping[str, Any], environ: Mapping[str, str], namespaces: Sequence[str]
) -> list[Finding]:
    """All findings about the API server; asks it a handful of small questions."""
    try:
        credentials = await find_credentials(settings, environ, asyncio.to_thread, time.monotonic, time.time)
    except MeshError as error:
        what = f"k8s targets cannot ask the API: {error}"
        if environ.get("KUBERNETES_SERVICE_HOST"):
            return [
                lack(_AREA, what, "set automountServiceAccountToken: true on the pod or its service account")
            ]
        return [note(_AREA, what, "name one: --kubeconfig FILE, or KUBECONFIG")]
    findings = [ok(_AREA, f"credentials: {credentials.description}, server {credentials.server}")]
    if credentials.problem:
        findings.append(note(_AREA, f"the last re-read of the credentials failed: {credentials.problem}"))
    headers = {"accept": "application/json"}
    if credentials.token:
        headers["authorization"] = f"Bearer {credentials.token}"
    transport = open_transport(credentials.tls, credentials.proxy)
    async with httpx.AsyncClient(
        transport=transport, base_url=credentials.server, headers=headers, timeout=TIMEOUT, trust_env=False
    ) as client:
        try:
            findings += await _ask(client, credentials, namespaces)
        except httpx.HTTPError as error:
            findings.append(
                lack(
                    _AREA,
                    f"the API server does not answer: {type(error).__name__} {error}".rstrip(),
                    "allow egress to it: meshlib rbac --from NS/SERVICEACCOUNT --to NS/SERVICE prints a NetworkPolicy",
                )
            )
    return findings


async def _ask(
    client: httpx.AsyncClient, credentials: Credentials, namespaces: Sequence[str]
) -> list[Finding]:
    extensions = {"sni_hostname": credentials.tls.server_name} if credentials.tls.server_name else {}
    started = time.monotonic()
    answer = await client.get(GROUP_PATH, extensions=extensions)
    took = (time.monotonic() - started) * 1000
    if answer.status_code == 401:
        return [
            lack(_AREA, "the API server refuses our credentials (401)", "renew the token or log in again")
        ]
    findings = [ok(_AREA, f"the API server answers ({took:.0f} ms)")]
    api, told = _slice_api(answer)
    findings.append(told)
    for namespace in namespaces:
        findings += await _rights(client, namespace, api, extensions)
    return findings


def _slice_api(answer: httpx.Response) -> tuple[SliceApi, Finding]:
    """Where discovery will read endpoints, from what the server says of the group; and that as a finding."""
    if answer.status_code == 404:
        return SliceApi.ENDPOINTS, note(_AREA, "EndpointSlices are not served; Endpoints are used instead")
    try:
        if answer.status_code != 200:
            raise msgspec.ValidationError(f"HTTP {answer.status_code}")
        api = choose(answer.content)
    except msgspec.MsgspecError as error:
        return SliceApi.V1, note(_AREA, f"{GROUP_PATH} does not tell its versions ({error}); asking for v1")
    return api, ok(_AREA, f"endpoints are served as {api.value}")


async def _rights(
    client: httpx.AsyncClient, namespace: str, api: SliceApi, extensions: dict[str, str]
) -> Iterable[Finding]:
    """A real list of one item, and the API server's own review for the watch, of each kind that discovery reads."""
    endpoints = ENDPOINTS if api is SliceApi.ENDPOINTS else SLICES
    wanted = (endpoints, SERVICES)
    missing: list[tuple[str, str]] = []
    subject: Subject | None = None
    for resource in wanted:
        group, plural = resource
        root = f"/apis/{api.value}" if group else "/api/v1"
        answer = await client.get(
            f"{root}/namespaces/{namespace}/{plural}", params={"limit": 1}, extensions=extensions
        )
        listed = answer.status_code != 403
        watched = await _may_watch(client, namespace, group, plural, extensions)
        if not listed or watched is False:
            missing.append(resource)
            subject = subject or Subject.from_forbidden_message(_message(answer))
        if answer.status_code not in (200, 403):
            return [
                lack(
                    _AREA,
                    f"listing {_NAMES[resource]} in {namespace}: HTTP {answer.status_code}",
                    _message(answer),
                )
            ]
    if missing:
        names = " and ".join(_NAMES[resource] for resource in missing)
        # The whole Role, though only a part lacks: applying it replaces the Role of that name that is there.
        fix = "kubectl apply -f - <<'EOF'\n" + role_yaml(namespace, subject, wanted) + "EOF"
        return [lack(_AREA, f"no right to list and watch {names} in namespace {namespace}", fix)]
    return [ok(_AREA, f"may list and watch {_NAMES[endpoints]} and Services in namespace {namespace}")]


async def _may_watch(
    client: httpx.AsyncClient, namespace: str, group: str, plural: str, extensions: dict[str, str]
) -> bool | None:
    """None: the server does not tell."""
    attributes = {"namespace": namespace, "verb": "watch", "group": group, "resource": plural}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await client.post(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", json=body, extensions=extensions
    )
    try:
        return bool(answer.json()["status"]["allowed"]) if answer.status_code == 201 else None
    except (ValueError, LookupError, TypeError):
        return None


def _message(answer: httpx.Response) -> str:
    try:
        return str(json.loads(answer.content)["message"])[:400]
    except (ValueError, LookupError, TypeError):
        return answer.text[:200]
