"""Runs a kubeconfig's exec plugin (``client.authentication.k8s.io``) with a time limit. Blocks: use a helper thread.

The kubernetes package can run them, too, but waits for ever, takes a plugin that fails for a user without credentials,
and does not run one again whose client certificate has expired.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from meshlib.errors import DiscoveryError

#: Seconds for one run. Plugins of the clouds take 1-3 s, most of it their own start; one that asks a person something
#: never ends here, because it gets no terminal.
TIME_LIMIT = 10.0
#: Longest output in bytes: a token or a certificate with its chain has some KB.
_MAX_OUTPUT = 1 << 20
#: Characters of what a plugin wrote for people.
_MAX_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class ExecCredential:
    """What a plugin gave. ``expires``: seconds since 1970; None: it did not say."""

    token: str = field(default="", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    expires: float | None = None


def run_plugin(
    section: Mapping[str, Any], folder: str, cluster: Mapping[str, Any], time_limit: float = TIME_LIMIT
) -> ExecCredential:
    """Run the plugin of a user's ``exec`` section; ``folder`` is that of the kubeconfig. Raises DiscoveryError."""
    command = section.get("command")
    version = section.get("apiVersion")
    if not isinstance(command, str) or not command or not isinstance(version, str):
        raise DiscoveryError("the exec section needs command and apiVersion")
    name = f"the exec plugin {os.path.basename(command)}"
    if os.sep in command:
        command = os.path.join(folder, command)
    spec: dict[str, Any] = {"interactive": False}
    if section.get("provideClusterInfo"):
        spec["cluster"] = _cluster_info(cluster)
    try:
        environ = os.environ | {str(each["name"]): str(each["value"]) for each in section.get("env") or ()}
        arguments = [command, *(str(each) for each in section.get("args") or ())]
    except (TypeError, KeyError):
        raise DiscoveryError(f"{name}: args or env of the exec section is no list of them") from None
    info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
    environ["KUBERNETES_EXEC_INFO"] = json.dumps(info)
    return _read(_run(name, arguments, environ, time_limit), version, name)


def _run(name: str, arguments: list[str], environ: Mapping[str, str], time_limit: float) -> bytes:
    try:
        # A session of its own, so that a plugin that is a shell script is ended with all that it started.
        process = subprocess.Popen(  # noqa: S603 - the command is the kubeconfig's own, and no shell reads it
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise DiscoveryError(f"{name} cannot be started: {error}") from None
    with process:
        try:
            out, told = process.communicate(timeout=time_limit)
        except subprocess.TimeoutExpired:
            raise DiscoveryError(f"{name} did not end within {time_limit:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended just now
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        text = "".join(c if c.isprintable() else " " for c in told.decode(errors="replace").strip())
        raise DiscoveryError(f"{name} failed ({process.returncode}): {text[-_MAX_MESSAGE:]}".rstrip(": "))
    if len(out) > _MAX_OUTPUT:
        raise DiscoveryError(f"{name} wrote more than {_MAX_OUTPUT} bytes")
    return out


def _read(out: bytes, version: str, name: str) -> ExecCredential:
    # Nothing of the output goes into a message: it may hold the token.
    try:
        found = json.loads(out)
        status = found["status"]
        token = status.get("token") or ""
        certificate, key = status.get("clientCertificateData") or "", status.get("clientKeyData") or ""
        stamp = status.get("expirationTimestamp")
        expires = None if not stamp else datetime.fromisoformat(stamp).timestamp()
        credential = ExecCredential(token, certificate.encode(), key.encode(), expires)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise DiscoveryError(f"{name} did not write an ExecCredential with a status") from None
    if found.get("apiVersion") != version:
        raise DiscoveryError(f"{name} wrote another apiVersion than {version}")
    if not isinstance(token, str) or not (token or (certificate and key)):
        raise DiscoveryError(f"{name} wrote neither a token nor a certificate with its key")
    return credential


def _cluster_info(cluster: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "server",
        "tls-server-name",
        "insecure-skip-tls-verify",
        "certificate-authority-data",
        "proxy-url",
    )
    info = {each: cluster[each] for each in names if each in cluster}
    for extension in cluster.get("extensions") or ():
        if isinstance(extension, dict) and extension.get("name") == "client.authentication.k8s.io/exec":
            info["config"] = extension.get("extension")
    return info
