"""The facts of the kernel path from manifests in a file or folder: for a node without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from meshlib.discovery.base import ResolverContext
from meshlib.discovery.file.folder import Registry
from meshlib.discovery.file.poll import POLL, FolderPoll
from meshlib.model.cluster import ABSENT, ClusterChange, Node, ServiceFacts, TellCluster
from meshlib.model.service import ServiceKey

#: Seconds after which an unchanged state is confirmed: a mass removal that the agent holds back waits for such a word.
#: kube-proxy looks at everything again as often.
CONFIRM = 30.0


class FileCluster:
    """Like discovery.kubernetes.cluster.KubernetesCluster, told by files. ``node``: who we are, as nobody else says it.

    Nothing is told before every file could be read once; afterwards a file that breaks keeps its last good content, and
    a change that takes something away counts when it is seen twice. Control loop only.
    """

    def __init__(
        self, context: ResolverContext, path: str, node: Node, tell: TellCluster, poll: float = POLL
    ) -> None:
        self._context = context
        self._path = path
        self._node = node
        self._tell = tell
        self._poll = poll
        self._told: dict[ServiceKey, ServiceFacts] | None = None
        self._files: FolderPoll | None = None
        self._told_at = 0.0

    def start(self) -> None:
        """Returns at once."""
        self._files = FolderPoll(self._context, self._path, self._poll, self._take, self._confirm)

    async def close(self) -> None:
        """Nothing is told afterwards."""
        if self._files is not None:
            self._files.task.cancel()
            await asyncio.wait({self._files.task})

    @property
    def synced(self) -> bool:
        """Everything has been read at least once."""
        return self._told is not None

    @property
    def live(self) -> bool:
        """What is known is what the files say now."""
        return self.synced and self._files is not None and not self._files.state.problems

    @property
    def lists(self) -> int:
        """How often everything has been looked at."""
        return self._files.looks if self._files is not None else 0

    def describe(self) -> Mapping[str, Any]:
        """For status pages."""
        described = self._files.describe() if self._files is not None else {"source": f"file {self._path}"}
        return {**described, "synced": self.synced, "complete_lists": self.lists}

    def _take(self, found: Registry) -> None:
        if self._files is None or (self._told is None and not self._files.state.complete):
            return
        now = {
            key: ServiceFacts(service, found.slices.get(key, ())) for key, service in found.services.items()
        }
        before = self._told
        if before is None:
            change = ClusterChange(now, self._node, complete=True, lists=self.lists)
        else:
            changed = {key: facts for key, facts in now.items() if before.get(key) != facts}
            changed.update((key, ABSENT) for key in before if key not in now)
            change = ClusterChange(changed, lists=self.lists)
        self._told = now
        if change.complete or change.services:
            self._send(change)

    def _confirm(self) -> None:
        if self._told is not None and self._context.now() >= self._told_at + CONFIRM and self.live:
            self._send(ClusterChange(lists=self.lists))

    def _send(self, change: ClusterChange) -> None:
        self._told_at = self._context.now()
        self._tell(change)
