"""MeshTargets: what answers for targets and hosts in a test, in the place of discovery."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from ipaddress import ip_address
from typing import Any, NamedTuple

from meshlib.discovery.base import ResolverBuilder
from meshlib.errors import TargetError
from meshlib.model.names import MAX_PORT
from meshlib.model.target import Target, TargetDefaults
from meshlib.model.target_grammar import cluster_host
from meshlib.model.update import DoesNotExist, Update
from meshlib.runtime.under_test import under_test
from meshlib.testing.manual import ManualResolver, snapshot
from meshlib.testing.serving import ServedApp

#: Scheme of what is watched in the place of a target.
SCHEME = "mesh-targets"
_SERVICE_SCHEMES = ("k8s:///", "kubernetes:///")


class _Key(NamedTuple):
    """What a key of the mapping means. ``port`` None: any. A Service has a namespace; other hosts and targets none."""

    namespace: str
    name: str
    hostname: str
    port: int | str | None


class MeshTargets(MutableMapping[str, Any]):
    """``targets[what] = where``, seen by every Mesh of the process while the fixture ``mesh_targets`` is in use.

    ``what``: a target (``k8s:///orders.shop:http``; without a port, every port of the Service), a host of the cluster
    (``orders.shop.svc``, ``orders.shop.svc:8080``), or any other host (``payments.example.com``).

    ``where``: a port on 127.0.0.1, ``IP:PORT``, something with such an ``address`` (``ScriptedEndpoint``), a WSGI or
    ASGI application, or a list of those. An empty list is a Service without endpoints; no entry at all is no such
    Service.

    Assignments take effect at once, also for targets in use. Any thread. Raises TargetError for a ``what``, ValueError
    and TypeError for a ``where`` that is none. Kubeconfig, API server and DNS are not asked.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._resolver = ManualResolver(SCHEME)
        self._written: dict[_Key, tuple[str, Any, tuple[str, ...]]] = {}  # as written, and the addresses
        self._asked: dict[str, Target] = {}  # by the name of the stand-in
        self._served: list[ServedApp] = []

    # -- the mapping ---------------------------------------------------------------------------------------------

    def __setitem__(self, what: str, where: Any) -> None:
        key = _key(what)
        addresses = tuple(self._address(one) for one in _each(where))
        with self._lock:
            is_new = key not in self._written
            self._written[key] = (what, where, addresses)
            self._publish()
        self._resolver.settle()
        if is_new:
            _forget_hosts()

    def __getitem__(self, what: str) -> Any:
        return self._written[_key(what)][1]

    def __delitem__(self, what: str) -> None:
        """From now on there is no such Service."""
        with self._lock:
            del self._written[_key(what)]
            self._publish()
        self._resolver.settle()
        _forget_hosts()

    def __iter__(self) -> Iterator[str]:
        return iter([written for written, _, _ in self._written.values()])

    def __len__(self) -> int:
        return len(self._written)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{what} -> {', '.join(found) or 'no endpoints'}" for what, _, found in self._written.values()
        )
        return f"<mesh_targets: {shown or 'empty'}>"

    def close(self) -> None:
        """All is gone, and the applications that were served are stopped."""
        with self._lock:
            self._written.clear()
            self._publish()
        while self._served:
            self._served.pop().close()

    # -- for the runtime (StandIns) ------------------------------------------------------------------------------

    def target(self, asked: Target) -> Target:
        """What is watched for a target: one of ours, whose endpoints are those of the entry."""
        if asked.scheme == "static" and not self._finds(asked):
            return asked  # a list of addresses asks nobody
        name = str(asked)
        with self._lock:
            if name not in self._asked:
                self._asked[name] = asked
                self._resolver.publish(_service(name), self._update(asked))
        return Target(scheme=SCHEME, namespace=SCHEME, name=name, path=name, authority=asked.authority)

    @property
    def aliases(self) -> Mapping[str, Target]:
        """Hosts outside of the cluster's names, short ones included."""
        found = {}
        with self._lock:
            for key in self._written:
                if not key.namespace and "://" not in key.name:
                    host = key.name if key.port is None else f"{key.name}:{key.port}"
                    found[host] = Target(scheme=SCHEME, path=host, authority=key.name)
        return found

    def builder(self, scheme: str) -> ResolverBuilder | None:
        return self._resolver if scheme == SCHEME else None

    # -- inside --------------------------------------------------------------------------------------------------

    def _finds(self, asked: Target) -> tuple[str, ...] | None:
        if asked.scheme == SCHEME:
            name, _, port = asked.path.partition(":")
            keys = [_Key("", name, "", int(port) if port else None)]
        elif asked.scheme == "k8s":
            keys = [_Key(asked.namespace, asked.name, asked.hostname, port) for port in (asked.port, None)]
        else:
            keys = [_Key("", str(asked), "", None)]
        return next((self._written[key][2] for key in keys if key in self._written), None)

    def _update(self, asked: Target) -> Update:
        found = self._finds(asked)
        if found is None:
            known = ", ".join(self) or "none"
            return DoesNotExist(f"mesh_targets has no entry for it (it has: {known})")
        return snapshot(_service(str(asked)), found)

    def _publish(self) -> None:
        for name, asked in self._asked.items():
            self._resolver.publish(_service(name), self._update(asked))

    def _address(self, where: Any) -> str:
        if isinstance(where, bool) or where is None:
            raise TypeError(f"{where!r} is no endpoint: give a port, IP:PORT, an application or a fake")
        if isinstance(where, int):
            return _checked(f"127.0.0.1:{where}")
        if isinstance(where, str):
            return _checked(where)
        address = getattr(where, "address", None)
        if isinstance(address, str):
            return _checked(address)
        if callable(where):
            served = ServedApp(where)
            self._served.append(served)
            return served.address
        raise TypeError(f"{where!r} is no endpoint: give a port, IP:PORT, an application or a fake")


def _key(what: str) -> _Key:
    if not isinstance(what, str):
        raise TypeError(f"{what!r} is neither a target nor a host name")
    if what.startswith(_SERVICE_SCHEMES):
        has_port = ":" in what.partition(":///")[2]
        target = Target.parse(what if has_port else f"{what}:1")
        return _Key(target.namespace, target.name, target.hostname, target.port if has_port else None)
    if "://" in what:
        return _Key("", str(Target.parse(what)), "", None)
    host, colon, port = what.lower().partition(":")
    if not host or (colon and not (port.isascii() and port.isdigit() and 1 <= int(port) <= MAX_PORT)):
        raise TargetError(what, 0, len(what), "neither a target nor HOST or HOST:PORT")
    number = int(port) if colon else None
    service = cluster_host(host, number, TargetDefaults())
    if service is not None:
        return _Key(service.namespace, service.name, service.hostname, number)
    return _Key("", host.removesuffix("."), "", number)


def _each(where: Any) -> Iterable[Any]:
    return where if isinstance(where, (list, tuple, set)) else [where]


def _checked(address: str) -> str:
    host, colon, port = address.rpartition(":")
    try:
        ip_address(host.strip("[]"))
        if not (colon and 1 <= int(port) <= MAX_PORT):
            raise ValueError("no port")
    except ValueError:
        raise ValueError(f"{address!r} is no IP:PORT; for example 127.0.0.1:9000") from None
    return address


def _forget_hosts() -> None:
    for table in list(under_test.tables):
        table.forget()


def _service(name: str) -> str:
    """The resolver's key: ``NAMESPACE/NAME`` of the stand-in."""
    return f"{SCHEME}/{name}"
