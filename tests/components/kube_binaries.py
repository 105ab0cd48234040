"""Where the Kubernetes programs are, and how old they are."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.components.process import NotAvailable, program

# What build_kube.sh builds.
BUILT_VERSION = "1.20.2"


@dataclass(frozen=True)
class Binaries:
    etcd: str
    apiserver: str
    controller_manager: str | None
    """None with the envtest binaries, which bring no controllers."""
    minor: int
    """20 for Kubernetes 1.20."""


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "meshlib" / "kube" / BUILT_VERSION


@functools.cache
def find_binaries() -> Binaries:
    """KUBEBUILDER_ASSETS first, then the cache of build_kube.sh, then PATH."""
    places = (os.environ.get("KUBEBUILDER_ASSETS"), cache_folder())
    apiserver = program("kube-apiserver", *places)
    try:
        # Never a controller manager of another version than the API server's.
        manager = program("kube-controller-manager", Path(apiserver).parent)
    except NotAvailable:
        manager = None
    version = subprocess.run(
        [apiserver, "--version"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    match = re.search(r"v1\.(\d+)", version)
    if match is None:
        raise NotAvailable(f"cannot read the version of kube-apiserver: {version!r}")
    return Binaries(
        etcd=program("etcd", *places, package="etcd-server"),
        apiserver=apiserver,
        controller_manager=manager,
        minor=int(match[1]),
    )
