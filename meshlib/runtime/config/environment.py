"""What the environment adds to a target text: namespace, cluster domain, search list, ndots."""

from __future__ import annotations

from pathlib import Path

from meshlib.model.target import TargetDefaults
from meshlib.runtime.config.checks import LABEL
from meshlib.runtime.config.settings import Config

#: Where a pod finds its own namespace (fixed by Kubernetes' service account admission).
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
RESOLV_CONF = "/etc/resolv.conf"
#: resolv.conf(5): the resolver library caps ndots at this.
_MAX_NDOTS = 15


def target_defaults(
    config: Config, *, resolv_conf: str | Path = RESOLV_CONF, namespace_file: str | Path = NAMESPACE_FILE
) -> TargetDefaults:
    """The defaults for ``Target.parse``. Files that cannot be read count as empty.

    The namespace is the configured one, else that of the pod's service account, else ``default``. The cluster domain
    is the configured one, else what follows ``svc.`` in resolv.conf's search list (decision D1), else
    ``cluster.local``.
    """
    search, ndots = _read_resolv_conf(_content(resolv_conf))
    namespace = config.namespace or _content(namespace_file).strip()
    learned = next((name.removeprefix("svc.") for name in search if name.startswith("svc.")), "")
    return TargetDefaults(
        namespace=namespace if LABEL.fullmatch(namespace) else "default",
        cluster_domain=config.cluster_domain or learned or "cluster.local",
        search=search,
        ndots=ndots,
    )


def _content(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such file: not in a pod, or no resolver configured
        return ""


def _read_resolv_conf(text: str) -> tuple[tuple[str, ...], int]:
    search: tuple[str, ...] = ()
    ndots = 1
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if not words:
            continue
        if words[0] in ("search", "domain"):  # the last one wins: resolv.conf(5)
            search = tuple(word.lower().removesuffix(".") for word in words[1:])
        elif words[0] == "options":
            for word in words[1:]:
                name, _, number = word.partition(":")
                if name == "ndots" and number.isascii() and number.isdigit():
                    ndots = min(int(number), _MAX_NDOTS)
    return search, ndots
