"""What the environment adds to a target text, and the configuration in the model's own words."""

from __future__ import annotations

from pathlib import Path

from meshlib.discovery.dns.names import parse_resolv_conf
from meshlib.errors import ConfigError, TargetError
from meshlib.model.address import METADATA, AddressPolicy
from meshlib.model.hosts import cluster_domain_of
from meshlib.model.target import Target, TargetDefaults
from meshlib.runtime.config.checks import LABEL
from meshlib.runtime.config.settings import Config

#: Where a pod finds its own namespace (fixed by Kubernetes' service account admission).
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
RESOLV_CONF = "/etc/resolv.conf"


def target_defaults(
    config: Config, *, resolv_conf: str | Path = RESOLV_CONF, namespace_file: str | Path = NAMESPACE_FILE
) -> TargetDefaults:
    """The defaults for ``Target.parse``. Files that cannot be read count as empty.

    The namespace is the configured one, else that of the pod's service account, else ``default``. The cluster domain
    is the configured one, else what follows ``svc.`` in resolv.conf's search list (decision D1), else
    ``cluster.local``.
    """
    resolver = parse_resolv_conf(_content(resolv_conf))
    namespace = config.namespace or _content(namespace_file).strip()
    return TargetDefaults(
        namespace=namespace if LABEL.fullmatch(namespace) else "default",
        cluster_domain=config.cluster_domain or cluster_domain_of(resolver.search) or "cluster.local",
        search=resolver.search,
        ndots=resolver.ndots,
    )


def alias_targets(config: Config, defaults: TargetDefaults) -> dict[str, Target]:
    """``[aliases]`` parsed: ``host`` or ``host:port`` in lower case to its Target. Raises ConfigError."""
    found = {}
    for name, text in config.aliases.items():
        try:
            found[name] = Target.parse(text, defaults)
        except TargetError as error:
            raise ConfigError(config.source("aliases", name), str(error)) from None
    return found


def address_policy(config: Config) -> AddressPolicy:
    """``[address]`` as the policy that every address of a control plane must pass; ``deny`` adds to METADATA."""
    settings = config.address
    return AddressPolicy(
        allow_loopback=settings.allow_loopback, allow=settings.allow, deny=(*METADATA, *settings.deny)
    )


def _content(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such file: not in a pod, or no resolver configured
        return ""
