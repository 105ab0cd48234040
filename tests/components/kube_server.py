"""etcd, kube-apiserver and kube-controller-manager as child processes, in three flavours.

`v1beta1`    serves discovery.k8s.io/v1beta1; slices are made from Pods by the real controllers
`v1`         serves discovery.k8s.io/v1; on servers older than 1.21 through a CustomResourceDefinition, and then
             tests write the slices themselves
`endpoints`  serves no discovery.k8s.io at all; Endpoints are made by the real controller
"""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import httpx
import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.components.kube_binaries import Binaries, find_binaries
from tests.components.process import Daemon, NotAvailable, free_port, wait_for

Flavour = Literal["v1beta1", "v1", "endpoints"]

ISSUER = "https://kubernetes.default.svc"
ADMIN_TOKEN = "admintoken"
# Both programs need them: without, this version's server strips serving, terminating and nodeName.
GATES = "EndpointSliceTerminatingCondition=true,EndpointSliceNodeName=true"

SLICE_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "endpointslices.discovery.k8s.io",
        # Names under k8s.io are protected; the API server wants to see that somebody approved.
        "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes/enhancements/pull/752"},
    },
    "spec": {
        "group": "discovery.k8s.io",
        "scope": "Namespaced",
        "names": {
            "kind": "EndpointSlice",
            "listKind": "EndpointSliceList",
            "plural": "endpointslices",
            "singular": "endpointslice",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        ],
    },
}


class ApiError(AssertionError):
    def __init__(self, response: httpx.Response) -> None:
        request = response.request
        super().__init__(f"{request.method} {request.url.path}: {response.status_code} {response.text[:500]}")
        self.status = response.status_code


class ControlPlane:
    def __init__(
        self,
        flavour: Flavour = "v1beta1",
        *,
        controllers: bool = True,
        watch_cache: bool = True,
        apiserver_args: tuple[str, ...] = (),
    ) -> None:
        self.flavour: Flavour = flavour
        self._binaries: Binaries = find_binaries()
        if flavour == "v1beta1" and self._binaries.minor >= 25:
            raise NotAvailable(
                f"Kubernetes 1.{self._binaries.minor} no longer serves discovery.k8s.io/v1beta1"
            )
        self._native_v1 = flavour == "v1" and self._binaries.minor >= 21
        self._want_controllers = controllers
        self._watch_cache = watch_cache
        self._extra_args = apiserver_args
        self.folder = Path(tempfile.mkdtemp(prefix="meshlib-kube-"))
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca_file = self.folder / "ca.pem"
        self.admin_token = ADMIN_TOKEN
        self.real_slices = flavour == "v1beta1" or self._native_v1
        """Whether controllers make slices from Pods here (else put_slice is the only source of them)."""
        self._etcd_port = free_port()
        self.etcd_url = f"http://127.0.0.1:{self._etcd_port}"
        self.etcd = Daemon("etcd", self._etcd_args(), self.folder)
        self.apiserver = Daemon("kube-apiserver", self._apiserver_args(), self.folder)
        self.controller_manager: Daemon | None = None
        self._client: httpx.Client | None = None

    @property
    def slice_version(self) -> str | None:
        """The version of discovery.k8s.io that this flavour serves."""
        return None if self.flavour == "endpoints" else self.flavour

    def __enter__(self) -> ControlPlane:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # start and stop

    def start(self) -> None:
        begun = time.monotonic()
        self._write_credentials()
        self.etcd.start()
        self.start_api(wait=False)
        # Without a server the client object may exist: it connects on first use.
        self._client = httpx.Client(
            base_url=self.url,
            verify=ssl.create_default_context(cafile=str(self.ca_file)),
            headers={"Authorization": f"Bearer {self.admin_token}"},
            timeout=30,
            trust_env=False,
        )
        self.wait_ready()
        if self.flavour == "v1" and not self._native_v1:
            self._install_slice_crd()
        if self._want_controllers and self._binaries.controller_manager:
            self._start_controllers(self._binaries.controller_manager)
        took = time.monotonic() - begun
        print(
            f"kube {self.flavour}: ready in {took:.1f} s on port {self.port}", file=sys.__stderr__, flush=True
        )

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        for daemon in (self.controller_manager, self.apiserver):
            if daemon is not None:
                daemon.kill()
        self.etcd.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_api(self) -> None:
        """SIGKILL, as a crashing node would. etcd and the data stay."""
        self.apiserver.kill()

    def start_api(self, *, wait: bool = True) -> None:
        """Same port, same certificate, same data."""
        self.apiserver.start()
        if wait:
            self.wait_ready()

    def restart_api(self) -> None:
        self.kill_api()
        self.start_api()

    def pause_api(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self.apiserver.pause()

    def resume_api(self) -> None:
        self.apiserver.resume()

    def wait_ready(self, timeout: float = 60.0) -> None:
        def ready() -> bool:
            try:
                if self.client.get("/readyz", timeout=2).text != "ok":
                    return False
                # Made by the server itself, at its own time: it may call itself ready a moment before.
                return self.client.get("/api/v1/namespaces/default", timeout=2).is_success
            except httpx.HTTPError:
                return False

        self.apiserver.wait_until(ready, timeout)

    # talking to it

    @property
    def client(self) -> httpx.Client:
        """The administrator's HTTP client."""
        if self._client is None:
            raise RuntimeError("the cluster is stopped")
        return self._client

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """One request as administrator; the decoded answer, or ApiError."""
        response = self.client.request(method, path, json=body, **options)
        if response.is_error:
            raise ApiError(response)
        return response.json()

    def compact(self, *, forget: bool = False) -> int:
        """Compacts etcd: revisions up to now are gone. Returns the revision.

        A server started with watch_cache=False answers 410 for older revisions at once. The ordinary one still
        knows recent ones from its watch cache; `forget=True` restarts it, after which they are gone as well.
        """
        with httpx.Client(base_url=self.etcd_url, timeout=30, trust_env=False) as etcd:
            status = etcd.post("/v3/maintenance/status", json={}).raise_for_status().json()
            revision = int(status["header"]["revision"])
            etcd.post("/v3/kv/compaction", json={"revision": revision, "physical": True}).raise_for_status()
        if forget:
            self.restart_api()
        return revision

    def write_kubeconfig(self, path: Path, token: str | None = None, namespace: str = "default") -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {"name": "test", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}
            ],
            "users": [{"name": "test", "user": {"token": token or self.admin_token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
            ],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    # how it is put together

    def _write_credentials(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        names = ("127.0.0.1", "localhost", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
        server = authority.issue_cert(*names)
        server.private_key_pem.write_to_path(str(self.folder / "server.key"))
        for link in server.cert_chain_pems:
            link.write_to_path(str(self.folder / "server.pem"), append=True)
        self.signing_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (self.folder / "sa.key").write_bytes(
            self.signing_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        (self.folder / "tokens.csv").write_text(f'{self.admin_token},admin,1,"system:masters"\n')

    def _etcd_args(self) -> list[str]:
        peer = f"http://127.0.0.1:{free_port()}"
        return [
            self._binaries.etcd,
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            # the data lives as long as the test
            "--unsafe-no-fsync",
        ]

    def _apiserver_args(self) -> list[str]:
        folder = self.folder
        args = [
            self._binaries.apiserver,
            f"--etcd-servers={self.etcd_url}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            # An address for documentation: never used, but a machine without a default route has none to offer.
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
            f"--cert-dir={folder}",
            f"--tls-cert-file={folder / 'server.pem'}",
            f"--tls-private-key-file={folder / 'server.key'}",
            f"--service-account-key-file={folder / 'sa.key'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            f"--service-account-issuer={ISSUER}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged",
            f"--watch-cache={'true' if self._watch_cache else 'false'}",
        ]
        if self._binaries.minor < 22:
            args.append(f"--feature-gates={GATES}")
        if self.flavour == "v1" and not self._native_v1:
            args.append("--runtime-config=discovery.k8s.io/v1beta1=false")
        if self.flavour == "endpoints":
            versions = ["v1beta1"] if self._binaries.minor < 25 else []
            versions += ["v1"] if self._binaries.minor >= 21 else []
            args.append("--runtime-config=" + ",".join(f"discovery.k8s.io/{v}=false" for v in versions))
        return args + list(self._extra_args)

    def _install_slice_crd(self) -> None:
        self.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", SLICE_CRD)
        wait_for(
            lambda: self.client.get("/apis/discovery.k8s.io/v1/endpointslices").is_success,
            what="discovery.k8s.io/v1 to be served",
        )

    def _start_controllers(self, executable: str) -> None:
        controllers = ["namespace", "serviceaccount", "serviceaccount-token"]
        if self.flavour != "v1" or self._native_v1:
            controllers.append("endpoint")
        if self.real_slices:
            controllers += ["endpointslice", "endpointslicemirroring"]
        kubeconfig = self.write_kubeconfig(self.folder / "controllers.kubeconfig")
        args = [
            executable,
            f"--controllers={','.join(controllers)}",
            f"--kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={self.folder / 'sa.key'}",
            f"--root-ca-file={self.ca_file}",
            "--leader-elect=false",
            "--secure-port=0",
            # Its usual 20 requests per second would make a scale-up to 200 pods a matter of minutes.
            "--kube-api-qps=1000",
            "--kube-api-burst=2000",
        ]
        if self._binaries.minor < 22:
            args += ["--port=0", f"--feature-gates={GATES}"]
        self.controller_manager = Daemon("kube-controller-manager", args, self.folder)
        self.controller_manager.start()
        # Every new namespace gets its `default` account: the sign that the controllers have synced.
        self.controller_manager.wait_until(
            lambda: self.client.get("/api/v1/namespaces/default/serviceaccounts/default").is_success
        )


def encode_segment(data: dict[str, Any] | bytes) -> str:
    """One of the three parts of a JSON Web Token."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
