"""An engine without an agent: the facts are read once, and nothing is written."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from meshlib.agent import assembly
from meshlib.agent.engine.ledger_file import LedgerFile
from meshlib.agent.engine.node import NodeEngine
from meshlib.agent.host import read_host
from meshlib.agent.modes import Chosen, choose
from meshlib.agent.netlink.socket import ROUTE, NetlinkSocket
from meshlib.agent.settings import AgentSettings
from meshlib.agent.state import LEDGER
from meshlib.discovery.file.cluster import FileCluster
from meshlib.discovery.kubernetes.cluster import KubernetesCluster
from meshlib.errors import DiscoveryError
from meshlib.model.cluster import ClusterChange, Node
from meshlib.model.events import Event, SourceFailed


def filled_engine(
    options: AgentSettings, state: Path, files: Path | None, timeout: float
) -> tuple[Chosen, NodeEngine]:
    """An engine that knows everything a source told once, and the host. Raises MeshError, OSError."""
    chosen = choose(options.mode, options.families, assembly.makers(options))
    ledger = LedgerFile(state / LEDGER, read_only=True)
    engine = assembly.engine(options, chosen, ledger, lambda step: None, lambda family, change: None)
    with NetlinkSocket(ROUTE) as netlink:
        engine.tell(read_host(netlink))
    asyncio.run(_fill(engine, assembly.kubernetes_settings(options, os.environ), options, files, timeout))
    return chosen, engine


async def _fill(
    engine: NodeEngine, kubernetes: dict[str, Any], options: AgentSettings, files: Path | None, timeout: float
) -> None:
    """Wait for everything to be told once. Raises DiscoveryError with what the source said last."""
    told = asyncio.Event()
    known = False
    said: list[str] = []

    def tell(change: ClusterChange) -> None:
        nonlocal known
        engine.tell(change)
        known = True
        told.set()

    def emit(event: Event) -> None:
        if isinstance(event, SourceFailed):
            said.append(str(event.error))
            if files is not None:  # a manifest does not mend itself, as a cluster does
                told.set()

    def crashed(name: str, error: BaseException) -> None:
        said.append(repr(error))

    context = assembly.context(kubernetes, emit, crashed)
    source: FileCluster | KubernetesCluster
    if files is not None:
        own = Node(options.node_name, options.zone, options.node_addresses, options.pod_cidrs)
        source = FileCluster(context, str(files), own, tell)
    else:
        source = KubernetesCluster(context, options.node_name, tell)
    source.start()
    try:
        async with asyncio.timeout(timeout):
            await told.wait()
        if not known:
            raise DiscoveryError(f"{files} cannot be read: {'; '.join(said)}")
    except TimeoutError:
        last = said[-1] if said else str(source.describe().get("problem") or "no answer")
        raise DiscoveryError(f"the cluster was not read within {timeout:g} s: {last}") from None
    finally:
        await source.close()
    engine.take()
