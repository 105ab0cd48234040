"""Credentials from a kubeconfig, read by the ``kubernetes`` package: exec plugins, OIDC, certificates, merging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshlib.discovery.base import RunBlocking
from meshlib.discovery.kubernetes.credentials import REREAD, TlsMaterial, check_server_url
from meshlib.errors import ConfigError, DiscoveryError


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
        self._configuration: Any = None
        self._token = ""
        self._read_at = 0.0

    @property
    def token(self) -> str:
        return self._token

    async def load(self) -> None:
        """Read the file; raises ConfigError naming it."""
        configuration, namespace = await self._run_blocking(self._load)
        if not configuration.verify_ssl and not self._allow_insecure:
            raise ConfigError(
                self.description,
                "insecure-skip-tls-verify lets anybody on the way read the token",
                "add certificate-authority(-data), or set discovery.k8s.insecure_skip_tls_verify = true",
            )
        self.server = check_server_url(str(configuration.host), self.description)
        self.namespace = namespace
        self._configuration = configuration
        self.proxy = getattr(configuration, "proxy", None) or ""
        self.tls = TlsMaterial(
            ca_file=configuration.ssl_ca_cert or "",
            cert_file=configuration.cert_file or "",
            key_file=configuration.key_file or "",
            server_name=getattr(configuration, "tls_server_name", None) or "",
            insecure=not configuration.verify_ssl,
        )

    def _load(self) -> tuple[Any, str]:
        from kubernetes import client, config

        for each in self._path.split(":"):
            if each and not Path(each).expanduser().is_file():
                raise ConfigError(self.description, f"{each} is not a file")
        configuration = client.Configuration()
        # Proxies from the environment are not for the API server: a mistake in NO_PROXY would hand them the traffic.
        configuration.proxy = None
        configuration.verify_ssl = True
        try:
            load: Any = config.load_kube_config  # untyped in the package
            load(
                config_file=self._path,
                context=self._context,
                client_configuration=configuration,
                persist_config=False,
            )
            contexts_of: Any = config.list_kube_config_contexts
            contexts, active = contexts_of(config_file=self._path)
        except Exception as error:
            # The package raises whatever its YAML and plugins raise. Its own texts name keys of the file, others may
            # quote values, so only the type of those is shown.
            known = isinstance(error, config.ConfigException)
            raise ConfigError(self.description, str(error) if known else type(error).__name__) from None
        if self._context is not None:
            active = next((each for each in contexts if each.get("name") == self._context), active)
        return configuration, str((active.get("context") or {}).get("namespace") or "")

    async def refresh(self, force: bool = False) -> None:
        now = self._now()
        if self._token and not force and now < self._read_at + REREAD:
            return
        try:
            if force and self._token:
                await self.load()  # runs an exec plugin again, and reads a token file again
            token = await self._run_blocking(self._read_token)
        except (ConfigError, DiscoveryError) as error:
            self.problem = str(error)
            if not self._token:
                raise
            return
        finally:
            self._read_at = now
        self.problem = ""
        self._token = token or self._token

    def _read_token(self) -> str:
        configuration = self._configuration
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
        token = value.removeprefix("Bearer ").strip()
        # What is no token cannot be sent as a header, and the error of that would show it.
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise DiscoveryError(f"{self.description}: the user's token is not one word of ASCII")
        return token

    def __repr__(self) -> str:
        return f"<KubeconfigCredentials {self.server} {self._path}>"
