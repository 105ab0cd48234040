"""MeshTargets: what answers for targets and hosts in a test, in the place of discovery."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from meshlib.discovery.base import ResolverBuilder
from meshlib.model.target import Target
from meshlib.model.update import DoesNotExist, Update
from meshlib.runtime.stand_ins import Key, key_for, parse_address, parse_key
from meshlib.runtime.under_test import under_test
from meshlib.testing.manual import ManualResolver, snapshot
from meshlib.testing.serving import ServedApp

#: Scheme of what is watched in the place of a target.
SCHEME = "mesh-targets"


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
        self._written: dict[Key, tuple[str, Any, tuple[str, ...]]] = {}  # as written, and the addresses
        self._asked: dict[str, Target] = {}  # by the name of the stand-in
        self._served: list[ServedApp] = []

    # -- the mapping ---------------------------------------------------------------------------------------------

    def __setitem__(self, what: str, where: Any) -> None:
        key = parse_key(what)
        addresses = tuple(self._address(one) for one in _each(where))
        with self._lock:
            is_new = key not in self._written
            self._written[key] = (what, where, addresses)
            self._publish()
        self._resolver.settle()
        if is_new:
            _forget_hosts()

    def __getitem__(self, what: str) -> Any:
        return self._written[parse_key(what)][1]

    def __delitem__(self, what: str) -> None:
        """From now on there is no such Service."""
        with self._lock:
            del self._written[parse_key(what)]
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
        if asked.scheme == "static" and self._finds(asked) is None:
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
                if key.host:
                    found[key.host] = Target(scheme=SCHEME, path=key.host, authority=key.name)
        return found

    def builder(self, scheme: str) -> ResolverBuilder | None:
        return self._resolver if scheme == SCHEME else None

    # -- inside --------------------------------------------------------------------------------------------------

    def _finds(self, asked: Target) -> tuple[str, ...] | None:
        if asked.scheme == SCHEME:  # one of ``aliases``
            key: Key | None = parse_key(asked.path)
        else:
            key = key_for(asked, self._written)
        entry = self._written.get(key) if key is not None else None
        return entry[2] if entry is not None else None

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
        if isinstance(where, (int, str)):
            return parse_address(where)
        address = getattr(where, "address", None)
        if isinstance(address, str):
            return parse_address(address)
        if callable(where):
            served = ServedApp(where)
            self._served.append(served)
            return served.address
        raise TypeError(f"{where!r} is no endpoint: give a port, IP:PORT, an application or a fake")


def _each(where: Any) -> Iterable[Any]:
    return where if isinstance(where, (list, tuple, set)) else [where]


def _forget_hosts() -> None:
    for table in list(under_test.tables):
        table.forget()


def _service(name: str) -> str:
    """The resolver's key: ``NAMESPACE/NAME`` of the stand-in."""
    return f"{SCHEME}/{name}"
