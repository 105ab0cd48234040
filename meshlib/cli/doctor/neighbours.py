"""Doctor's look at its own pod: another mesh there, also one whose sidecar has not started yet (an init container)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshlib.cli.doctor.api import Api
from meshlib.cli.doctor.findings import Finding, note, ok

_AREA = "mesh"
#: Names that meshes give their sidecars (Istio, Linkerd, Consul, Kuma, App Mesh).
SIDECARS = {
    "istio-proxy": "an Istio sidecar",
    "linkerd-proxy": "a Linkerd sidecar",
    "consul-dataplane": "a Consul sidecar",
    "kuma-sidecar": "a Kuma sidecar",
    "envoy": "an Envoy sidecar",
}
_AMBIENT_POD = ("ambient.istio.io/redirection", "enabled")
_AMBIENT_NAMESPACE = ("istio.io/dataplane-mode", "ambient")
_PODINFO = (
    "volumes:\n- name: podinfo\n  downwardAPI:\n    items:\n    - path: annotations\n"
    "      fieldRef: {fieldPath: metadata.annotations}\n"
    "# in the container\nvolumeMounts:\n- {name: podinfo, mountPath: /etc/podinfo}"
)


async def check_neighbours(
    api: Api, environ: Mapping[str, str], namespace: str, ignoring: bool
) -> list[Finding]:
    """Only in a pod. ``ignoring``: the configuration says to balance although a mesh is there."""
    if not environ.get("KUBERNETES_SERVICE_HOST"):
        return []
    name = environ.get("POD_NAME") or environ.get("HOSTNAME", "")
    pod = await api.object(f"/api/v1/namespaces/{namespace}/pods/{name}") if name else None
    if pod is None:
        return [
            note(
                _AREA,
                f"the pod {namespace}/{name or '?'} could not be read, so only a mesh that runs already is seen",
                "grant get on pods to the service account for this check, or run doctor in the application's container",
            )
        ]
    found = mesh_of(pod)
    if not found:
        labels = (await api.object(f"/api/v1/namespaces/{namespace}") or {}).get("metadata", {}).get("labels")
        if _holds(labels, _AMBIENT_NAMESPACE):
            found = ["an Istio ambient mesh (label of the namespace)"]
    return list(_told(found, ignoring))


def mesh_of(pod: Mapping[str, Any]) -> list[str]:
    """What a pod's manifest says of a mesh, in words."""
    spec, metadata = pod.get("spec") or {}, pod.get("metadata") or {}
    names = [
        str(one.get("name"))
        for kind in ("initContainers", "containers")
        for one in spec.get(kind) or ()
        if isinstance(one, dict)
    ]
    found = [SIDECARS[name] for name in names if name in SIDECARS]
    if _holds(metadata.get("annotations"), _AMBIENT_POD):
        found.append("an Istio ambient mesh")
    return found


def _told(found: list[str], ignoring: bool) -> Iterable[Finding]:
    if not found:
        yield ok(_AREA, "no other mesh in this pod")
        return
    what = " and ".join(found)
    if ignoring:
        yield note(
            _AREA,
            f'double balancing: {what} balances what meshlib has picked already (sidecar = "ignore")',
            "remove MESHLIB_SIDECAR=ignore, or take the pod out of that mesh",
        )
    elif "ambient" in what:
        yield note(
            _AREA,
            f"{what} handles this pod's traffic; meshlib stands back where it can see that",
            f"mount the pod's annotations:\n{_PODINFO}",
        )
    else:
        yield note(_AREA, f"{what} is in this pod: meshlib stands back and dials Service addresses")


def _holds(pairs: object, wanted: tuple[str, str]) -> bool:
    return isinstance(pairs, dict) and pairs.get(wanted[0]) == wanted[1]
