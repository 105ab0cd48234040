"""Where the API server is and who we are: service-account files or a kubeconfig. No secret reaches a message."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from meshlib.discovery.base import RunBlocking
from meshlib.errors import ConfigError, DiscoveryError

#: Where Kubernetes mounts the files of the service account.
SERVICE_ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
#: Seconds between two reads of token and CA (client-go re-reads every minute; kubelet rotates at 80 % of an hour).
REREAD = 60.0
#: Largest file that is read, bytes: a CA bundle with all of Mozilla's roots has 250 KB.
_MAX_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What a TLS context is built from: the PEM data itself and not paths, so that comparing it shows a rotation."""

    ca_data: bytes = field(default=b"", repr=False)
    cert_data: bytes = field(default=b"", repr=False)
    key_data: bytes = field(default=b"", repr=False)
    server_name: str = ""  #: verify this name instead of the URL's
    insecure: bool = False


class Credentials(Protocol):
    """One identity at one API server. Used on the control loop only."""

    server: str  #: base URL without a slash at its end
    description: str  #: which source won, for people
    namespace: str  #: the source's own namespace, or ""
    tls: TlsMaterial
    proxy: str
    problem: str  #: why the last re-read failed while the old values stay in use; "" when it worked

    @property
    def token(self) -> str:
        """The bearer token to send, or "" for none."""
        ...

    async def refresh(self, force: bool = False) -> None:
        """Re-read what may rotate, at most every 60 s unless ``force``. DiscoveryError only if nothing is known."""
        ...


def check_server_url(url: str, where: str) -> str:
    """The base URL without a trailing slash; ConfigError. Plain http is for loopback only (``kubectl proxy``)."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(where, f"not a URL: {error}") from None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise ConfigError(where, "not the URL of an API server", "write https://HOST:PORT")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(where, "the URL holds credentials", "use a kubeconfig or a token file")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigError(where, "plain http to another host would show the token to everybody", "use https")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_file(path: Path) -> bytes:
    """A credential file; OSError, also when it is too large to be one."""
    with path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise OSError(f"{path} is larger than {_MAX_FILE} bytes")
    return data


def _read_token(path: Path) -> str:
    token = read_file(path).decode("ascii").strip()
    if not token:
        raise OSError(f"{path} is empty")
    if not token.isprintable() or " " in token:
        raise OSError(f"{path} does not hold one token")
    return token


class ServiceAccountCredentials:
    """The files of a service account. An unreadable or empty token file keeps the old token in use."""

    def __init__(
        self, server: str, folder: Path, description: str, run_blocking: RunBlocking, now: Callable[[], float]
    ) -> None:
        self.server = server
        self.description = description
        self.namespace = ""
        self.tls = TlsMaterial()
        self.proxy = ""
        self.problem = ""
        self._folder = folder
        self._run_blocking = run_blocking
        self._now = now
        self._token = ""
        self._read_at: float | None = None

    @property
    def token(self) -> str:
        return self._token

    async def refresh(self, force: bool = False) -> None:
        now = self._now()
        if self._read_at is not None and not force and now < self._read_at + REREAD:
            return
        token, ca, namespace, problem = await self._run_blocking(self._read_files)
        self._read_at = now
        self.problem = problem
        if token:
            self._token = token
        if ca:
            self.tls = TlsMaterial(ca_data=ca)
        self.namespace = namespace or self.namespace
        if not self._token:
            self._read_at = None
            raise DiscoveryError(f"no service-account token: {problem}")

    def _read_files(self) -> tuple[str, bytes, str, str]:
        token, ca, namespace, problems = "", b"", "", []
        try:
            token = _read_token(self._folder / "token")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(_why(error, self._folder / "token"))
        try:
            ca = read_file(self._folder / "ca.crt")
        except OSError as error:
            problems.append(_why(error, self._folder / "ca.crt"))
        try:
            namespace = read_file(self._folder / "namespace").decode("ascii", "replace").strip()
        except FileNotFoundError:
            pass  # only a convenience
        except OSError as error:
            problems.append(_why(error, self._folder / "namespace"))
        return token, ca, namespace, "; ".join(problems)

    def __repr__(self) -> str:
        return f"<ServiceAccountCredentials {self.server} {self._folder}>"


def _why(error: Exception, path: Path) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{path} does not hold one token"  # the error's own text would show bytes of it
    return str(error)


class NoCredentials:
    """A server that asks for none: ``kubectl proxy``, or a test."""

    def __init__(self, server: str, description: str) -> None:
        self.server, self.description = server, description
        self.namespace = self.proxy = self.problem = self.token = ""
        self.tls = TlsMaterial()

    async def refresh(self, force: bool = False) -> None:
        """There is nothing to read."""

    def __repr__(self) -> str:
        return f"<NoCredentials {self.server}>"


async def find_credentials(
    settings: Mapping[str, Any],
    environ: Mapping[str, str],
    run_blocking: RunBlocking,
    now: Callable[[], float],
    wall: Callable[[], float],
) -> Credentials:
    """The first source of decision D12: explicit, KUBECONFIG, in-cluster, ~/.kube/config.

    Keys of ``settings``: ``api_server`` (URL), ``service_account_dir``, ``in_cluster`` (True: nothing else,
    False: never), ``kubeconfig`` (path), ``context``, ``allow_kubeconfig`` (without it a kubeconfig is read only
    when ``kubeconfig`` names it), ``insecure_skip_tls_verify``. Raises ConfigError for a bad setting,
    DiscoveryError if no source has anything.
    """
    where = "discovery.k8s"
    folder_setting = settings.get("service_account_dir")
    folder = Path(folder_setting or SERVICE_ACCOUNT_DIR)
    found: Credentials
    if settings.get("api_server"):
        server = check_server_url(str(settings["api_server"]), f"{where}.api_server")
        if folder_setting:
            found = ServiceAccountCredentials(server, folder, f"api_server and {folder}", run_blocking, now)
        else:
            found = NoCredentials(server, "api_server, without credentials")
    elif settings.get("kubeconfig"):
        path = str(settings["kubeconfig"])
        found = await _kubeconfig(path, f"kubeconfig {path}", settings, run_blocking, now, wall)
    elif settings.get("in_cluster"):
        found = _in_cluster(environ, folder, run_blocking, now)
    elif settings.get("allow_kubeconfig") and environ.get("KUBECONFIG"):
        path = environ["KUBECONFIG"]
        found = await _kubeconfig(path, f"KUBECONFIG={path}", settings, run_blocking, now, wall)
    elif (
        settings.get("in_cluster") is not False
        and environ.get("KUBERNETES_SERVICE_HOST")
        and await run_blocking((folder / "token").exists)
    ):
        found = _in_cluster(environ, folder, run_blocking, now)
    else:
        home = Path(environ.get("HOME") or "/") / ".kube" / "config"
        if not settings.get("allow_kubeconfig") or not await run_blocking(home.exists):
            raise DiscoveryError(
                _nothing_found(environ, folder, home, bool(settings.get("allow_kubeconfig")))
            )
        found = await _kubeconfig(str(home), str(home), settings, run_blocking, now, wall)
    await found.refresh(force=True)
    return found


def _nothing_found(environ: Mapping[str, str], folder: Path, home: Path, allowed: bool) -> str:
    tried = [
        f"{folder}/token does not exist"
        if environ.get("KUBERNETES_SERVICE_HOST")
        else "KUBERNETES_SERVICE_HOST is not set"
    ]
    if allowed:
        tried += ["KUBECONFIG is not set", f"{home} does not exist"]
    else:
        tried.append("a kubeconfig is not read unless it is named")
    return (
        "no Kubernetes credentials: "
        + ", ".join(tried)
        + "; in a pod, mount the service account (automountServiceAccountToken), elsewhere set discovery.k8s.kubeconfig"
    )


def _in_cluster(
    environ: Mapping[str, str], folder: Path, run_blocking: RunBlocking, now: Callable[[], float]
) -> Credentials:
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError(
            "discovery.k8s.in_cluster", "KUBERNETES_SERVICE_HOST is not set, so this is not a pod"
        )
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    server = check_server_url(
        f"https://{bracketed}:{port}", "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT"
    )
    return ServiceAccountCredentials(
        server, folder, f"in-cluster service account ({folder})", run_blocking, now
    )


async def _kubeconfig(
    path: str,
    description: str,
    settings: Mapping[str, Any],
    run_blocking: RunBlocking,
    now: Callable[[], float],
    wall: Callable[[], float],
) -> Credentials:
    # Here and not above: it imports the kubernetes package when it loads, 60 MB and half a second.
    from meshlib.discovery.kubernetes.kubeconfig import KubeconfigCredentials

    context = str(settings["context"]) if settings.get("context") else None
    allow_insecure = bool(settings.get("insecure_skip_tls_verify"))
    return KubeconfigCredentials(path, context, description, allow_insecure, run_blocking, now, wall)
