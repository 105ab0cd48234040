"""Credentials from a kubeconfig: merged and read by the ``kubernetes`` package, with its OIDC and other providers.

What rotates is read here: certificates and keys (the package copies inlined ones to files and never looks again), and
exec plugins (it waits for them for ever).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshlib.discovery.base import RunBlocking
from meshlib.discovery.kubernetes.credentials import REREAD, TlsMaterial, check_server_url, read_file
from meshlib.discovery.kubernetes.exec_plugin import ExecCredential, run_plugin
from meshlib.errors import ConfigError, DiscoveryError, MeshError

#: Seconds that a request waits for a refresh: longer than an exec plugin may take. An OIDC provider that is silent
#: keeps its helper thread, so no second one is started meanwhile.
PATIENCE = 15.0
#: Seconds before its end at which a plugin's credential is replaced, so that it does not end on its way (client-go).
LEEWAY = 10.0

_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One reading of the files. ``context``: its name, so that a later reading does not follow ``use-context``."""

    server: str
    namespace: str
    context: str
    proxy: str
    tls: TlsMaterial
    configuration: Any
    section: dict[str, Any] | None  #: of the exec plugin
    cluster: dict[str, Any]
    folder: str
    files: dict[str, _Stamp]


@dataclass(frozen=True, slots=True)
class _Found:
    loaded: _Loaded
    token: str
    credential: ExecCredential | None
    expires_at: float  #: on the monotonic clock


class KubeconfigCredentials:
    """One context of a kubeconfig (or of several, joined by ``:``). All work of the package runs in a helper thread."""

    def __init__(
        self,
        path: str,
        context: str | None,
        description: str,
        allow_insecure: bool,
        run_blocking: RunBlocking,
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.description = description + (f", context {context}" if context else "")
        self.server = ""
        self.namespace = ""
        self.tls = TlsMaterial()
        self.proxy = ""
        self.problem = ""
        self._path = path
        self._context = context
        self._allow_insecure = allow_insecure
        self._run_blocking = run_blocking
        self._now = now
        self._wall = wall
        self._found: _Found | None = None
        self._due_at = -math.inf
        self._working: asyncio.Task[None] | None = None
        self._silent = False  #: the refresh under way took longer than PATIENCE

    @property
    def token(self) -> str:
        return self._found.token if self._found is not None else ""

    async def refresh(self, force: bool = False) -> None:
        """See Credentials. Raises ConfigError or DiscoveryError only while nothing is known."""
        if self._working is None:
            if not force and self._now() < self._due_at:
                return
            self._working = asyncio.create_task(self._work(force), name="kubeconfig")
            self._working.add_done_callback(self._worked)
        elif self._silent and not force and self._found is not None:
            return
        try:
            # Shielded: others wait for it, too, and what runs in the helper thread cannot be cancelled.
            async with asyncio.timeout(PATIENCE):
                await asyncio.shield(self._working)
        except TimeoutError:
            self._silent = True
            self.problem = f"{self.description}: its refresh gives no answer"
            if self._found is None:
                raise DiscoveryError(self.problem) from None

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._working, self._silent = None, False
        if not task.cancelled():
            task.exception()  # whoever waits has it; if nobody does any more, there is nobody to tell

    async def _work(self, force: bool) -> None:
        now = self._now()
        try:
            found = await self._run_blocking(self._read, self._found, force, now)
        except MeshError as error:
            self.problem = str(error)
            self._due_at = now + REREAD
            if self._found is None:
                raise
            return
        self._found, self.problem = found, ""
        self._due_at = max(now, min(now + REREAD, found.expires_at))
        loaded = found.loaded
        self.server, self.namespace, self.proxy = loaded.server, loaded.namespace, loaded.proxy
        self.tls = _with_certificate(loaded.tls, found.credential)

    # -- in the helper thread -----------------------------------------------------------------------------------------

    def _read(self, before: _Found | None, force: bool, now: float) -> _Found:
        loaded, credential, expires_at = None, None, math.inf
        if before is not None and not force and before.loaded.files == _stamps(before.loaded.files):
            loaded = before.loaded
            if now < before.expires_at:
                credential, expires_at = before.credential, before.expires_at
        loaded = loaded or self._load(before.loaded if before is not None else None)
        token = self._token_of(loaded.configuration)
        if not token and loaded.section is not None:
            if credential is None:
                try:
                    credential = run_plugin(loaded.section, loaded.folder, loaded.cluster)
                except DiscoveryError as error:
                    raise DiscoveryError(f"{self.description}: {error}") from None
                if credential.expires is not None:
                    expires_at = now + max(0.0, credential.expires - self._wall() - LEEWAY)
            token = self._checked(credential.token)
        return _Found(loaded, token, credential, expires_at)

    def _load(self, before: _Loaded | None) -> _Loaded:
        from kubernetes import client, config
        from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

        paths = [str(Path(each).expanduser()) for each in self._path.split(os.pathsep) if each]
        there = [each for each in paths if Path(each).is_file()]
        if not there:  # of several, those that are not there do not count, as for kubectl
            raise ConfigError(self.description, f"{self._path} is not a file")
        files = _stamps(paths)
        configuration = client.Configuration()
        # Proxies from the environment are not for the API server: a mistake in NO_PROXY would hand them the traffic.
        configuration.proxy = None
        configuration.verify_ssl = True
        try:
            merger: Any = KubeConfigMerger  # untyped in the package, like the loader below
            merged: Any = merger(os.pathsep.join(there)).config
            name = (before.context if before is not None else self._context) or merged["current-context"]
            chosen = merged["contexts"].get_with_name(name)["context"]
            cluster = merged["clusters"].get_with_name(chosen["cluster"])["cluster"]
            user = None
            if chosen.safe_get("user") and merged.safe_get("users"):
                user = merged["users"].get_with_name(chosen["user"], safe=True)
            user = user["user"] if user is not None and user.safe_get("user") else None
            secrets = _Secrets(self.description, files)
            tls = TlsMaterial(
                ca_data=secrets.take(cluster, "certificate-authority"),
                cert_data=secrets.take(user, "client-certificate"),
                key_data=secrets.take(user, "client-key"),
                server_name=str(cluster.safe_get("tls-server-name") or ""),
                insecure=bool(cluster.safe_get("insecure-skip-tls-verify")),
            )
            section = user.value.pop("exec", None) if user is not None else None
            if user is not None and user.safe_get("tokenFile"):
                secrets.stamp(user, str(user["tokenFile"]))
            loader: Any = KubeConfigLoader
            loader(config_dict=merged, active_context=name, config_base_path=None).load_and_set(configuration)
            server = str(cluster.safe_get("server") or "")
            namespace = str(chosen.safe_get("namespace") or "")
            folder = os.path.dirname(os.path.abspath(user.path)) if user is not None else ""
        except MeshError:
            raise
        except Exception as error:
            # The package raises whatever its YAML and plugins raise. Its own texts name keys of the file, others may
            # quote values, so only the type of those is shown.
            known = isinstance(error, config.ConfigException)
            raise ConfigError(self.description, str(error) if known else type(error).__name__) from None
        if tls.insecure and not self._allow_insecure:
            raise ConfigError(
                self.description,
                "insecure-skip-tls-verify lets anybody on the way read the token",
                "add certificate-authority(-data), or set discovery.k8s.insecure_skip_tls_verify = true",
            )
        server = check_server_url(server, self.description)
        if before is not None and server != before.server:
            raise ConfigError(self.description, f"now names another server ({server}): restart to use it")
        info = {**cluster.value}
        if tls.ca_data:  # a plugin is given the data, whichever way the file has it
            info["certificate-authority-data"] = base64.b64encode(tls.ca_data).decode()
        # the package itself knows this field since version 31
        proxy = str(cluster.safe_get("proxy-url") or "")
        if section is not None and not isinstance(section, dict):
            raise ConfigError(self.description, "the user's exec is no mapping")
        return _Loaded(server, namespace, name, proxy, tls, configuration, section, info, folder, files)

    def _token_of(self, configuration: Any) -> str:
        try:
            if configuration.refresh_api_key_hook is not None:
                configuration.refresh_api_key_hook(configuration)
            keys = configuration.api_key
            # The name of the key differs between releases of the package.
            value = str(keys.get("BearerToken") or keys.get("authorization") or "")
        except Exception as error:
            raise DiscoveryError(
                f"{self.description}: the token was not refreshed ({type(error).__name__})"
            ) from None
        return self._checked(value.removeprefix("Bearer ").strip())

    def _checked(self, token: str) -> str:
        # What is no token cannot be sent as a header, and the error of that would show it.
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise DiscoveryError(f"{self.description}: the user's token is not one word of ASCII")
        return token

    def __repr__(self) -> str:
        return f"<KubeconfigCredentials {self.server} {self._path}>"


class _Secrets:
    """Takes certificates and keys out of a kubeconfig's nodes, so that the package makes no copies on disk."""

    def __init__(self, description: str, files: dict[str, _Stamp]) -> None:
        self._description = description
        self._files = files

    def take(self, node: Any, key: str) -> bytes:
        """The bytes of ``KEY-data``, else of the file that ``KEY`` names; b"" for neither. Raises ConfigError."""
        if node is None:
            return b""
        path, data = node.value.pop(key, None), node.value.pop(f"{key}-data", None)
        try:
            if data:
                return base64.b64decode("".join(str(data).split()), validate=True)
            if path:
                return read_file(Path(self.stamp(node, str(path))))
        except binascii.Error:
            raise ConfigError(self._description, f"{key}-data is not base64") from None
        except OSError as error:
            raise ConfigError(self._description, f"{key}: {error}") from None
        return b""

    def stamp(self, node: Any, path: str) -> str:
        """Watch a file that the kubeconfig names; returns its path."""
        full = os.path.join(os.path.dirname(os.path.abspath(node.path)), path)
        self._files |= _stamps([full])
        return full


def _with_certificate(tls: TlsMaterial, credential: ExecCredential | None) -> TlsMaterial:
    if credential is None or not credential.certificate:
        return tls
    return TlsMaterial(tls.ca_data, credential.certificate, credential.key, tls.server_name, tls.insecure)


def _stamps(paths: Iterable[str]) -> dict[str, _Stamp]:
    """What changes when a file does; None for one that is not there."""
    found: dict[str, _Stamp] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found[path] = None
        else:
            found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found
