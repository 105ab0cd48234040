"""Doctor's look at the Kubernetes API: credentials, reachability, and what we may read."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from meshlib.cli.doctor.api import MAX_SERVICES, TIMEOUT, Api, Cluster
from meshlib.cli.doctor.clock import check_clock, check_token
from meshlib.cli.doctor.findings import Finding, lack, note, ok
from meshlib.cli.doctor.versions import check_kubernetes
from meshlib.discovery.kubernetes.credentials import find_credentials
from meshlib.discovery.kubernetes.rbac import ENDPOINTS, SERVICES, SLICES, Subject, role_yaml
from meshlib.discovery.kubernetes.transport import open_transport
from meshlib.discovery.kubernetes.versions import GROUP_PATH, SliceApi, choose
from meshlib.errors import MeshError

_AREA = "kubernetes"
_NAMES = {SLICES: "EndpointSlices", ENDPOINTS: "Endpoints", SERVICES: "Services"}


#: Further checks, while the connection is there: they are given the API and what is known of the cluster by then.
Further = Callable[[Api, Cluster], Awaitable[list[Finding]]]


async def _nothing_further(api: Api, cluster: Cluster) -> list[Finding]:
    return []


async def check_cluster(
    settings: Mapping[str, Any],
    environ: Mapping[str, str],
    namespaces: Sequence[str],
    further: Further = _nothing_further,
    wall: Callable[[], float] = time.time,
) -> list[Finding]:
    """All findings about the API server; asks it a handful of small questions. ``further`` is called when it answers
    and takes our credentials."""
    try:
        credentials = await find_credentials(settings, environ, asyncio.to_thread, time.monotonic, wall)
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
        findings += check_token(credentials.token, wall())
        name = credentials.tls.server_name
        api = Api(client, {"sni_hostname": name} if name else {})
        try:
            asked, taken = await _ask(api, namespaces, wall)
            findings += asked
            if taken is not None:
                findings += await further(api, taken)
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
    api: Api, namespaces: Sequence[str], wall: Callable[[], float]
) -> tuple[list[Finding], Cluster | None]:
    """The findings, and what is known of the cluster; None: our credentials are refused."""
    started, sent = time.monotonic(), wall()
    answer = await api.get(GROUP_PATH)
    took = (time.monotonic() - started) * 1000
    told = list(check_clock(answer.headers.get("date", ""), sent, wall()))
    if answer.status_code == 401:
        fix = "renew the token or log in again"
        return [*told, lack(_AREA, "the API server refuses our credentials (401)", fix)], None
    findings = [ok(_AREA, f"the API server answers ({took:.0f} ms)"), *told]
    findings += check_kubernetes(await api.object("/version"))
    version, shown = _slice_api(answer)
    findings.append(shown)
    cluster = Cluster()
    for namespace in namespaces:
        findings += await _rights(api, namespace, version, cluster)
    return findings, cluster


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


async def _rights(api: Api, namespace: str, version: SliceApi, cluster: Cluster) -> Iterable[Finding]:
    """A real list, and the API server's own review for the watch, of each kind that discovery reads."""
    endpoints = ENDPOINTS if version is SliceApi.ENDPOINTS else SLICES
    wanted = (endpoints, SERVICES)
    missing: list[tuple[str, str]] = []
    subject: Subject | None = None
    for resource in wanted:
        group, plural = resource
        root = f"/apis/{version.value}" if group else "/api/v1"
        limit = MAX_SERVICES if resource == SERVICES else 1
        answer = await api.get(f"{root}/namespaces/{namespace}/{plural}", limit=limit)
        listed = answer.status_code != 403
        watched = await _may_watch(api, namespace, group, plural)
        if resource == SERVICES:
            cluster.add_services(_document(answer))
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


async def _may_watch(api: Api, namespace: str, group: str, plural: str) -> bool | None:
    """None: the server does not tell."""
    attributes = {"namespace": namespace, "verb": "watch", "group": group, "resource": plural}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await api.client.post(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", json=body, extensions=api.extensions
    )
    try:
        return bool(answer.json()["status"]["allowed"]) if answer.status_code == 201 else None
    except (ValueError, LookupError, TypeError):
        return None


def _document(answer: httpx.Response) -> Any:
    try:
        return json.loads(answer.content)
    except ValueError:
        return None  # an error's page, perhaps; the status says what matters


def _message(answer: httpx.Response) -> str:
    try:
        return str(json.loads(answer.content)["message"])[:400]
    except (ValueError, LookupError, TypeError):
        return answer.text[:200]
