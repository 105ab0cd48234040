"""Which module resolves which scheme. Only names: a module is imported when its scheme is first used."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: scheme -> ``module:attribute`` of its ResolverBuilder, in the notation of entry points.
BUILTIN: Mapping[str, str] = MappingProxyType(
    {
        "k8s": "meshlib.discovery.kubernetes.resolver:BUILDER",
        "dns": "meshlib.discovery.dns.resolver:BUILDER",
        "dns+srv": "meshlib.discovery.dns.resolver:BUILDER",
        "file": "meshlib.discovery.file.resolver:BUILDER",
        "static": "meshlib.discovery.static.resolver:BUILDER",
    }
)
