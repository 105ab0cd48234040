"""KubeCluster: a real control plane, with short words for what tests do to it.

with KubeCluster("v1beta1") as kube:
    kube.create_node("node-a", zone="zone-1")
    kube.create_service("shop", "orders", port=80, target_port=8080)
    kube.create_pod("shop", "orders-1", labels={"app": "orders"}, ip="10.0.0.1", node="node-a")
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from tests.components.kube_server import ISSUER, ApiError, ControlPlane, Flavour, encode_segment
from tests.components.process import wait_for

__all__ = ["ApiError", "Flavour", "KubeCluster"]

Obj = dict[str, Any]

READER_RULES: list[Obj] = [
    {"apiGroups": [""], "resources": ["services", "endpoints"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
]
"""What a client of the mesh needs."""

# jose libraries forgive this much after `exp`; the API server's does, and cannot be told otherwise.
JWT_LEEWAY = 60

# apiVersion, kind → plural, namespaced
_RESOURCES: dict[str, tuple[str, bool]] = {
    "Namespace": ("namespaces", False),
    "Node": ("nodes", False),
    "Pod": ("pods", True),
    "Service": ("services", True),
    "Endpoints": ("endpoints", True),
    "EndpointSlice": ("endpointslices", True),
    "ServiceAccount": ("serviceaccounts", True),
    "Secret": ("secrets", True),
    "ConfigMap": ("configmaps", True),
    "Role": ("roles", True),
    "RoleBinding": ("rolebindings", True),
    "ClusterRole": ("clusterroles", False),
    "ClusterRoleBinding": ("clusterrolebindings", False),
    "CustomResourceDefinition": ("customresourcedefinitions", False),
}


class KubeCluster(ControlPlane):
    def __enter__(self) -> KubeCluster:
        super().__enter__()
        return self

    # any object

    def path(self, obj: Obj) -> tuple[str, str]:
        """(path of the collection, name)"""
        plural, namespaced = _RESOURCES[obj["kind"]]
        version = obj["apiVersion"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        metadata = obj["metadata"]
        if namespaced:
            root += f"/namespaces/{metadata.get('namespace', 'default')}"
        return f"{root}/{plural}", metadata["name"]

    def apply(self, obj: Obj) -> Obj:
        """Creates the object, or replaces the one that is there."""
        collection, name = self.path(obj)
        try:
            return self.request("POST", collection, obj)
        except ApiError as error:
            if error.status != 409:
                raise
        present = self.request("GET", f"{collection}/{name}")
        new = {
            **obj,
            "metadata": {**obj["metadata"], "resourceVersion": present["metadata"]["resourceVersion"]},
        }
        if obj["kind"] == "Service" and "clusterIP" in present["spec"]:
            # may not change in an update, so a manifest without it means "as it is"
            new["spec"] = {"clusterIP": present["spec"]["clusterIP"], **obj["spec"]}
        return self.request("PUT", f"{collection}/{name}", new)

    def delete(self, obj: Obj) -> None:
        collection, name = self.path(obj)
        self.request("DELETE", f"{collection}/{name}")

    def watch(
        self, path: str, resource_version: str = "", timeout: float = 5.0, **params: Any
    ) -> Iterator[tuple[str, Obj]]:
        """(event type, object) pairs until the server ends the watch after `timeout` seconds."""
        query = {"watch": "1", "resourceVersion": resource_version, "timeoutSeconds": int(timeout), **params}
        with self.client.stream("GET", path, params=query, timeout=timeout + 5) as response:
            if response.is_error:
                response.read()
                raise ApiError(response)
            for line in response.iter_lines():
                event = json.loads(line)
                yield event["type"], event["object"]

    # the things a Service is made of

    def create_namespace(self, name: str | None = None, labels: Mapping[str, str] | None = None) -> str:
        name = name or f"test-{uuid.uuid4().hex[:8]}"
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": dict(labels or {})},
            }
        )
        return name

    def create_node(self, name: str, zone: str | None = None, region: str | None = None, ip: str = "") -> Obj:
        labels = {"kubernetes.io/hostname": name}
        if zone:
            labels["topology.kubernetes.io/zone"] = zone
        if region:
            labels["topology.kubernetes.io/region"] = region
        node = self.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
        addresses = [{"type": "InternalIP", "address": ip}] if ip else []
        status = {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]}
        self._patch_status(f"/api/v1/nodes/{name}", status)
        return node

    def create_service(
        self,
        namespace: str,
        name: str,
        *,
        port: int = 80,
        target_port: int | str = 8080,
        ports: Sequence[Obj] | None = None,
        selector: Mapping[str, str] | None = None,
        headless: bool = False,
        annotations: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> Obj:
        """`selector` None means app=NAME, {} means none; `spec` holds further fields of the Service's spec."""
        body: Obj = {
            "ports": list(ports)
            if ports is not None
            else [{"name": "http", "port": port, "targetPort": target_port}],
            **({"clusterIP": "None"} if headless else {}),
            **spec,
        }
        chosen = {"app": name} if selector is None else dict(selector)
        if chosen:
            body["selector"] = chosen
        metadata = {"name": name, "namespace": namespace, "annotations": dict(annotations or {})}
        return self.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": body})

    def create_pod(
        self,
        namespace: str,
        name: str,
        labels: Mapping[str, str],
        ip: str,
        *,
        ready: bool = True,
        node: str = "node-a",
        ports: Sequence[Obj] = (),
    ) -> Obj:
        """A running Pod without a kubelet. The node must exist: the slice controller looks it up."""
        pod = self.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/pods",
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": dict(labels)},
                "spec": {
                    "nodeName": node,
                    "containers": [{"name": "main", "image": "example.invalid/app", "ports": list(ports)}],
                },
            },
        )
        self._set_pod_status(
            namespace, name, ready, {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}
        )
        return pod

    def set_pod_ready(self, namespace: str, name: str, ready: bool) -> None:
        self._set_pod_status(namespace, name, ready, {})

    def terminate_pod(self, namespace: str, name: str, grace: int = 30) -> None:
        """Marks it as terminating. It stays so, there being no kubelet, until delete_pod."""
        self.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": grace})

    def delete_pod(self, namespace: str, name: str) -> None:
        self.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": 0})

    # slices and Endpoints, by hand or as the controllers made them

    def put_slice(
        self,
        namespace: str,
        name: str,
        service: str,
        endpoints: Iterable[Obj | str],
        ports: Sequence[Obj] = ({"name": "http", "port": 8080, "protocol": "TCP"},),
        *,
        address_type: str = "IPv4",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Obj:
        """An endpoint is an address, meaning a ready one, or the object as the API has it."""
        if self.slice_version is None:
            raise RuntimeError("this flavour serves no EndpointSlices")
        entries = [
            {"addresses": [entry], "conditions": {"ready": True}} if isinstance(entry, str) else entry
            for entry in endpoints
        ]
        return self.apply(
            {
                "apiVersion": f"discovery.k8s.io/{self.slice_version}",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "labels": {
                        "kubernetes.io/service-name": service,
                        "endpointslice.kubernetes.io/managed-by": "meshlib-tests",
                        **(labels or {}),
                    },
                    "annotations": dict(annotations or {}),
                },
                "addressType": address_type,
                "endpoints": entries,
                "ports": list(ports),
            }
        )

    def delete_slice(self, namespace: str, name: str) -> None:
        self.request("DELETE", f"{self._slices_path(namespace)}/{name}")

    def slices(self, namespace: str, service: str | None = None) -> list[Obj]:
        params = {"labelSelector": f"kubernetes.io/service-name={service}"} if service else {}
        return self.request("GET", self._slices_path(namespace), params=params)["items"]

    def slice_endpoints(self, namespace: str, service: str) -> dict[str, Obj]:
        """first address → endpoint, over all slices of the Service"""
        found = (e for s in self.slices(namespace, service) for e in s.get("endpoints") or ())
        return {endpoint["addresses"][0]: endpoint for endpoint in found}

    def wait_endpoints(self, namespace: str, service: str, ready: Iterable[str], timeout: float = 15) -> None:
        """Until exactly these addresses are ready in the Service's slices."""
        wanted = set(ready)

        def same() -> bool:
            found = self.slice_endpoints(namespace, service)
            return {ip for ip, e in found.items() if e["conditions"].get("ready")} == wanted

        wait_for(same, timeout=timeout, what=f"{service} to have {sorted(wanted)}")

    # who may do what

    def service_account(
        self, namespace: str, name: str = "app", *, expires_in: int = 3600, legacy: bool = False
    ) -> str:
        """Creates the account if need be; returns a token of it.

        From 600 seconds on, the API server's own TokenRequest issues it. Shorter ones, which it refuses to issue,
        are signed here with its key; it accepts them until `expires_in` (its leeway is taken into account), plus
        the ten seconds for which it remembers a token it has seen. `legacy` takes the kind that never expires.
        """
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace},
        }
        created = self.apply(account) if not self._exists(account) else self._get(account)
        if legacy:
            return self._legacy_token(namespace, name)
        if expires_in < 600:
            return self._sign_token(namespace, name, created["metadata"]["uid"], expires_in)
        answer = self.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": expires_in},
            },
        )
        return answer["status"]["token"]

    def grant(
        self,
        namespace: str,
        account: str = "app",
        rules: Sequence[Obj] = tuple(READER_RULES),
        *,
        in_namespace: str | None = None,
        cluster: bool = False,
    ) -> None:
        """Lets the account `namespace/account` do `rules` in its own namespace, another one, or everywhere."""
        kind = "ClusterRole" if cluster else "Role"
        where = {} if cluster else {"namespace": in_namespace or namespace}
        digest = hashlib.sha256(json.dumps([namespace, account, list(rules)]).encode()).hexdigest()[:8]
        metadata = {"name": f"{account}-{digest}", **where}
        group = "rbac.authorization.k8s.io"
        self.apply({"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "rules": list(rules)})
        self.apply(
            {
                "apiVersion": f"{group}/v1",
                "kind": f"{kind}Binding",
                "metadata": metadata,
                "roleRef": {"apiGroup": group, "kind": kind, "name": metadata["name"]},
                "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": account}],
            }
        )

    # inside

    def _slices_path(self, namespace: str) -> str:
        return f"/apis/discovery.k8s.io/{self.slice_version}/namespaces/{namespace}/endpointslices"

    def _get(self, obj: Obj) -> Obj:
        collection, name = self.path(obj)
        return self.request("GET", f"{collection}/{name}")

    def _exists(self, obj: Obj) -> bool:
        collection, name = self.path(obj)
        return self.client.get(f"{collection}/{name}").is_success

    def _patch_status(self, path: str, status: Obj) -> None:
        headers = {"Content-Type": "application/strategic-merge-patch+json"}
        self.request("PATCH", f"{path}/status", {"status": status}, headers=headers)

    def _set_pod_status(self, namespace: str, name: str, ready: bool, status: Obj) -> None:
        state = "True" if ready else "False"
        conditions = [{"type": kind, "status": state} for kind in ("Ready", "ContainersReady")]
        self._patch_status(
            f"/api/v1/namespaces/{namespace}/pods/{name}", {**status, "conditions": conditions}
        )

    def _legacy_token(self, namespace: str, account: str) -> str:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/service-account-token",
            "metadata": {
                "name": f"{account}-legacy-token",
                "namespace": namespace,
                "annotations": {"kubernetes.io/service-account.name": account},
            },
        }
        self.apply(secret)
        data = wait_for(
            lambda: (self._get(secret).get("data") or {}).get("token"), what="the token controller"
        )
        return base64.b64decode(data).decode()

    def _sign_token(self, namespace: str, account: str, uid: str, expires_in: int) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": [ISSUER],
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": now - JWT_LEEWAY,
            "nbf": now - JWT_LEEWAY,
            "exp": now - JWT_LEEWAY + expires_in,
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account, "uid": uid}},
        }
        signed = f"{encode_segment({'alg': 'RS256', 'typ': 'JWT'})}.{encode_segment(claims)}"
        signature = self.signing_key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{encode_segment(signature)}"
