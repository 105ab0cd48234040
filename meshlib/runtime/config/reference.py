"""What each key means: the catalogue that docs/configuration.md is made from (``scripts/config_reference.py``).

``keys``, ``sources`` and ``settings`` hold what a machine can check: which keys exist, their checks, variables and
defaults. Here is what only people can say, and nothing else; ``tests/unit/config/test_reference.py`` compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from meshlib.discovery.dns.schedule import CEILING_EXTERNAL, CEILING_IN_CLUSTER, FLOOR, MAX_STALE


class Described(NamedTuple):
    """A key in words.

    ``kind``: its type, or the words it takes, quoted. ``default``: shown where the code's own is "find out", or belongs
    to a resolver. ``annotation``: of the Service, without its prefix. ``live``: a change counts without a restart.
    """

    kind: str
    meaning: str
    default: str = ""
    annotation: str = ""
    live: bool = False


_SECONDS = "seconds"
_LIST = "list of text"
_NETWORKS = "list of networks"
_PROCESS = "the process's"

SCALARS: Mapping[str, Described] = {
    "mode": Described(
        '`"off"`, `"observe"`, `"on"`',
        "how far meshlib may go ([rollout.md](rollout.md)); an annotation can only lower it",
        annotation="mode",
        live=True,
    ),
    "percent": Described(
        "number, 0 to 100", "share of the requests that go through meshlib, in mode on", live=True
    ),
    "allow_targets": Described(
        "list of targets and hosts", "those that may be more than off; not set: all", "not set", live=True
    ),
    "strict": Described("true, false", "every fall-back of [kubernetes.md](kubernetes.md) becomes an error"),
    "namespace": Described("text", "namespace of names without one", "the service account's, else `default`"),
    "cluster_domain": Described(
        "text", "what follows `.svc` in host names", "from resolv.conf's search list, else `cluster.local`"
    ),
    "node": Described(
        "text", "this pod's node, for Local policies and hints", "learned from the slice that lists this pod"
    ),
    "zone": Described("text", "this pod's zone, for hints", "learned in the same way"),
    "short_names": Described("true, false", "whether `http://orders/` can be ours ([urls.md](urls.md))"),
    "sync_timeout": Described("seconds, 0 to 60", "how long a first call may wait for knowledge, at most"),
    "sidecar": Described(
        '`"auto"`, `"ignore"`',
        "whether to stand back where another mesh is found, or to balance all the same",
    ),
    "picker": Described("name", "the policy ([policies.md](policies.md))", annotation="picker"),
    "picker_settings": Described("table", "settings of that policy", annotation="picker-settings"),
    "hash_key": Described(
        "text",
        "where the key of hash policies is ([policies.md](policies.md))",
        "none",
        annotation="hash-key",
    ),
    "plugins": Described(_LIST, "plugin policies that an annotation may choose"),
    "exporters": Described(_LIST, "started with the first Mesh ([metrics](metrics.md))"),
    "wire": Described(
        '`"fast"`, `"httpcore"`',
        "whose connections carry httpx's HTTP/1.1 ([clients-httpx.md](clients-httpx.md#wires))",
    ),
    "total_connections": Described(
        "number, 0 to 1048576",
        "connections that one httpx client may have in all (an async client: on one loop)",
        "3/4 of the descriptors",
    ),
    "status_socket": Described(
        '`"auto"`, `"off"`, or an absolute path',
        "where `meshlib status` finds this process ([status.md](status.md))",
    ),
}
ADDRESS: Mapping[str, Described] = {
    "allow": Described(
        _NETWORKS, "if not empty, only addresses in these networks are used; they may be special ones"
    ),
    "deny": Described(_NETWORKS, "never used, in addition to the metadata services of clouds"),
    "allow_loopback": Described("true, false", "accept 127.0.0.0/8 and ::1 from a control plane"),
}
TABLES: Mapping[str, Described] = {
    "aliases": Described("table", "host, or host:port, to target"),
    "discovery": Described("table", "settings of a resolver by scheme, below"),
    "target": Described("table", "settings of one target, below"),
}
TARGET: Mapping[str, Described] = {
    "picker": Described("name", "the policy for it", _PROCESS, annotation="picker"),
    "settings": Described("table", "settings of that policy", "`{}`", annotation="picker-settings"),
    "hash_key": Described("text", "where the key of hash policies is", _PROCESS, annotation="hash-key"),
    "mode": Described(
        '`"off"`, `"observe"`, `"on"`',
        "how far meshlib may go for it",
        _PROCESS,
        annotation="mode",
        live=True,
    ),
    "percent": Described("number, 0 to 100", "share of its requests", _PROCESS, live=True),
    "authority": Described(
        "host", "the name for TLS, and gRPC's `:authority` ([tls.md](tls.md))", "the target's own"
    ),
}
KUBERNETES: Mapping[str, Described] = {
    "api_server": Described(
        "URL",
        "the API server, asked without credentials unless `service_account_dir` is set",
        "as the credentials say",
    ),
    "service_account_dir": Described(
        "path",
        "folder with `token`, `ca.crt` and `namespace`",
        "`/var/run/secrets/kubernetes.io/serviceaccount`",
    ),
    "in_cluster": Described("true, false", "the service account only, or never", "it is tried"),
    "kubeconfig": Described("path", "this kubeconfig, before all other credentials", "none"),
    "context": Described("text", "context of the kubeconfig", "its current one"),
    "allow_kubeconfig": Described(
        "true, false",
        "whether `KUBECONFIG` and `~/.kube/config` are read",
        "true; false for `install()` and `meshlib run`",
    ),
    "insecure_skip_tls_verify": Described(
        "true, false",
        "accept a kubeconfig that asks for it; anybody on the way can then read the token",
        "false",
    ),
}
DNS: Mapping[str, Described] = {
    "families": Described(
        "list of 4 and 6", "address families to use, preferred first", "those of this host"
    ),
    "floor": Described(_SECONDS, "shortest time between two look-ups of a name", f"{FLOOR:g}"),
    "ceiling": Described(
        _SECONDS,
        "longest time between two look-ups of a name",
        f"{CEILING_IN_CLUSTER:g} for names of the cluster, else {CEILING_EXTERNAL:g}",
    ),
    "max_stale": Described(
        _SECONDS,
        "how long an answer is used while the servers fail, before it counts as too old",
        f"{MAX_STALE:g}",
    ),
    "poll": Described(_SECONDS, "how often resolv.conf and the hosts file are looked at"),
    "port": Described("number", "of the servers that resolv.conf names"),
    "resolv_conf": Described("path", "which servers to ask, and the search list"),
    "hosts": Described("path", "the hosts file"),
    "allow_loopback": Described("true, false", "accept loopback addresses from answers"),
}
FILE: Mapping[str, Described] = {
    "poll": Described(_SECONDS, "how often the files are looked at"),
}
