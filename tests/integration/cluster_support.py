"""A source of the kernel path on a loop of its own, and all that it told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meshlib.agent.facts import Facts
from meshlib.discovery.kubernetes.cluster import KubernetesCluster
from meshlib.model.cluster import ClusterChange
from meshlib.model.service import ServiceKey
from tests.components.process import wait_for
from tests.integration.kubernetes_support import MeshLoop, account_files, mesh


class Told:
    """What was told: each change, and what it adds up to."""

    def __init__(self) -> None:
        self.changes: list[ClusterChange] = []
        self.history: list[Facts] = []
        self.facts = Facts()

    def tell(self, change: ClusterChange) -> None:
        self.changes.append(change)
        self.facts = self.facts.after(change)
        self.history.append(self.facts)

    def addresses(self, namespace: str, name: str, facts: Facts | None = None) -> set[str] | None:
        """Of all endpoints of a Service, as told; None: there is no such Service."""
        found = (facts or self.facts).services.get(ServiceKey(namespace, name))
        if found is None:
            return None
        return {each.address for slice_ in found.slices for each in slice_.endpoints}

    def wait(self, namespace: str, name: str, expected: set[str] | None) -> None:
        wait_for(
            lambda: self.changes and self.addresses(namespace, name) == expected,
            timeout=20,
            what=f"{name} to have {expected}, it has {self.addresses(namespace, name)}",
        )


@contextlib.contextmanager
def cluster(
    kube: Any, folder: Path, node: str = "", token: str = ""
) -> Iterator[tuple[MeshLoop, KubernetesCluster, Told]]:
    """Watches everything with the administrator's token, or ``token``."""
    account = account_files(folder / "sa", kube.ca_file, token or kube.admin_token)
    told = Told()
    with mesh(api_server=kube.url, service_account_dir=str(account)) as loop:

        async def begin() -> KubernetesCluster:
            source = KubernetesCluster(loop.context, node, told.tell)
            source.start()
            return source

        source = loop.call(begin)
        try:
            yield loop, source, told
        finally:
            loop.call(source.close)
